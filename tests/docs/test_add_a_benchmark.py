"""The example of docs/add_a_benchmark.md is written to a module and run."""

import json
import re
import sys
from pathlib import Path

import pytest

from retrobench import tasks
from retrobench.cli import app as cli
from retrobench.store.results import ResultStore
from tests.e2e.runs import config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_benchmark.md"
TEXT = PAGE.read_text(encoding="utf-8")
(SOURCE,) = re.findall(r'```python\n(""".*?)```', TEXT, re.S)


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """``task=documents`` under the name that the page gives it, with two records."""
    (tmp_path / "documented_task.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(tasks._TASKS, "documents", "documented_task:DocumentsTask")
    record = json.loads(re.findall(r"```json\n(.*?)```", TEXT, re.S)[0])
    record["document"] = "Ada wrote the report. " * 40
    lines = [json.dumps(record), json.dumps({**record, "answers": ["Ada", "Bob"]})]
    (tmp_path / "documents.jsonl").write_text("\n".join(lines))
    yield tmp_path
    sys.modules.pop("documented_task", None)


def test_the_documented_benchmark_runs_and_resumes(documented):
    results = documented / "runs"
    raw = config(results, data={"root": str(documented)})
    for samples in (1, 2):
        raw["task"] = {"name": "documents", "samples": samples}
        outcome = cli.run_job(raw)
        assert outcome["ran"] == 1 and not outcome["failed"], outcome
    rows = ResultStore(results).read(outcome["key"]).rows
    assert set(rows) == {"documents/0", "documents/1"}
    assert all(row["status"] == "ok" for row in rows.values())


def test_the_documented_benchmark_scores_and_names_a_missing_file(documented):
    task = tasks.task_class("documents")
    made = task(task.Config(), str(documented))

    class Tokens:
        tokenizer_id = "any"

    first, second = made.samples(Tokens())
    assert made.score(first, "It was ada.") == 1 and made.score(first, "Nobody.") == 0
    assert made.score(second, "Ada") == 0.5
    before = made.fingerprint(Tokens())
    (documented / "documents.jsonl").write_text(json.dumps({"document": "", "answers": ["x"]}))
    assert made.fingerprint(Tokens()) != before
    with pytest.raises(ValueError, match="task.file=none: no such file in"):
        task(task.Config(file="none"), str(documented)).fingerprint(Tokens())


def test_the_documented_registration_names_the_class():
    (line,) = re.findall(r'"documents": "(\S+)"', TEXT)
    assert line == "retrobench.tasks.documents:DocumentsTask"
    (yaml,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    assert yaml.strip() == "name: documents" and "\n    def score" in SOURCE
