"""What tests of benchmarks with local records share: a small model, files, and a run."""

from __future__ import annotations

import json

import pyarrow
from pyarrow import parquet

from retrobench.cli import app as cli
from retrobench.core.spec import parse
from retrobench.engine.embedded import build_tokenizer
from retrobench.store.results import ResultStore
from retrobench.tasks import task_class
from retrobench.tasks.prompt import PromptBuilder
from tests.support import architecture

CHATML = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A real, if untrained, model: every row is generated and scored.
RANDOM = {
    "name": "random",
    "weights": "random",
    "config_json": architecture(
        vocab_size=20800,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
}


def prompt(template=None):
    """A prompt builder; with a template it chats."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return PromptBuilder(tokenizer)


def write(path, *entries):
    """Records as JSON lines, or as parquet by the file's name; texts are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(entries)), path)
        return
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_text("\n".join(lines), encoding="utf-8")


def samples(root, name, builder=None, **options):
    """A task and its samples."""
    kind = task_class(name)
    task = kind(parse(kind.Config, options, "task"), str(root))
    return task, list(task.samples(prompt() if builder is None else builder))


def substitutes(root, name, task):
    """A prompt builder, the task and its samples of one data set of which no file is there."""
    builder = prompt()
    made, found = samples(root, name, builder, tasks=[task], substitute_tokens=2048)
    assert len(found) == 4 and all(sample.meta["stand_in"] for sample in found)
    return builder, made, found


def run(root, results, task, **config):
    """The outcome of a cell of full attention, and its rows."""
    raw = {
        "model": RANDOM,
        "method": {"name": "full"},
        "task": task,
        "results_dir": str(results),
        "progress": False,
        "data": {"root": str(root)},
    }
    outcome = cli.run_job({**raw, **config})
    return outcome, list(ResultStore(results).read(outcome["key"]).rows.values())
