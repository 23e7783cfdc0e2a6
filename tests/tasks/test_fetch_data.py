"""Converted data is what the tasks read; a whole file is kept, a broken one fetched again."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from retrobench.engine.embedded import build_tokenizer
from retrobench.tasks.prompt import PromptBuilder
from retrobench.tasks.ruler import RulerConfig, RulerTask

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fetch_data.py"
SPEC = importlib.util.spec_from_file_location("fetch_data", SCRIPT)
assert SPEC and SPEC.loader
fetch_data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fetch_data)


def paragraph(i):
    return f"Paragraph {i} tells of a lake. " + "It is wide and cold. " * 30 + f"Its age is {i}00."


ROWS = {
    "baber/paul_graham_essays": [{"text": "One reads. " * 500}, {"text": "One writes. " * 500}],
    "rajpurkar/squad_v2": [
        {
            "title": f"lake{i // 4}",
            "context": paragraph(i),
            "question": f"What age has lake {i}?",
            "answers": {"text": [f"{i}00", f"{i}00"] if i % 3 else []},
        }
        for i in range(40)
    ],
    "hotpotqa/hotpot_qa": [
        {
            "question": f"Where is {i}?",
            "answer": f"north of {i}",
            "context": {
                "title": [f"T{i}", f"U{i}"],
                "sentences": [[f"It is north of {i}.", " It is big."], [paragraph(i)]],
            },
        }
        for i in range(30)
    ],
}


def test_fetched_files_feed_the_tasks(tmp_path):
    calls = []

    def load(name, *config, split):
        calls.append(name)
        return ROWS[name]

    assert len(fetch_data.fetch(tmp_path, load)) == 3
    config = RulerConfig(
        tasks=("niah_single_2", "qa_1", "qa_2"), length=(2048,), samples=2, stand_in=False
    )
    task = RulerTask(config, str(tmp_path))
    samples = list(task.samples(PromptBuilder(build_tokenizer())))
    assert [sample.meta["haystack"] for sample in samples[::2]] == [
        "PaulGrahamEssays.json",
        "squad",
        "hotpotqa",
    ]
    assert all(r in s.context for s in samples for r in s.references) and task.notes() == ()
    assert len(calls) == 3 and all(
        "already there" in message for message in fetch_data.fetch(tmp_path, load)
    )
    (tmp_path / "ruler" / "squad.json").write_text("{")
    fetch_data.fetch(tmp_path, load)
    assert calls[3:] == ["rajpurkar/squad_v2"]
