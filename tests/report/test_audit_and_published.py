"""The audit names what differs between cells; published scores are compared with ours."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from retrobench.core.cell import digest
from retrobench.report.checks.audit import audit
from retrobench.report.checks.published import compare_published
from retrobench.store.results import ResultStore
from retrobench.tasks.ruler.spec import TASKS

RULES = {"template": "t", "stop_ids": [1], "stop": [], "max_new_tokens": 30, "truncate": None}
ROW = {"sample": "vt/0", "task": "vt", "status": "ok", "score": 1.0, "meta": {}, "rules": RULES}
ROW |= {"prompt_hash": "p", "truncated": False}
CELL = {"protocol": "query_aware", "engine": {"temperature": 0.0}, "model": {"dtype": "float32"}}
CELL |= {"task": {"name": "ruler"}}


def store(tmp_path, *cells):
    for number, changes in enumerate(cells):
        cell = {**CELL, "number": number, **changes.get("about", {}).get("cell", {})}
        folder = tmp_path / digest(cell)
        folder.mkdir()
        labels = {"model": "m", "benchmark": "ruler", "method": f"method{number}"}
        about = {"labels": labels, "provenance": {"versions": {"torch": "2"}}, "cell": cell}
        (folder / "cell.json").write_text(
            json.dumps({**about, **changes.pop("about", {}), "cell": cell})
        )
        (folder / "rows.jsonl").write_text(json.dumps({**ROW, **changes}) + "\n")
    return ResultStore(tmp_path)


def test_equal_cells_are_clean(tmp_path):
    found = store(tmp_path, {}, {})
    assert audit(found, found.cell_keys()) == []


def test_cells_that_were_asked_for_other_lengths_hold_other_samples(tmp_path):
    longer = {"about": {"cell": {"task": {"name": "ruler", "length": [8192]}}}, "sample": "vt/1"}
    found = store(tmp_path, {}, longer)
    assert audit(found, found.cell_keys()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt_hash": "q"}, "prompt differs in 1 sample (first: vt/0; "),
        ({"truncated": True}, "truncation differs"),
        ({"rules": {**RULES, "template": "u"}}, "template differs"),
        ({"rules": {**RULES, "stop_ids": [1, 2]}}, "stop_ids differs"),
        ({"rules": {**RULES, "max_new_tokens": 31}}, "max_new_tokens differs"),
        ({"rules": {**RULES, "truncate": {"tokens": 5}}}, "truncate differs"),
        ({"status": "oom"}, "vt/0 is oom"),
        ({"sample": "vt/1"}, "hold different samples"),
        ({"meta": {"stand_in": True}}, "substitute and real data side by side in vt"),
        ({"about": {"provenance": {"versions": {"torch": "3"}}}}, "versions.torch differs"),
        ({"about": {"provenance": {"versions": {"torch": "2"}, "gpu": "H"}}}, "gpu differs"),
        ({"about": {"cell": {**CELL, "protocol": "decode_tail:8"}}}, "protocol differs"),
        ({"about": {"cell": {**CELL, "model": {"dtype": "bfloat16"}}}}, "model.dtype differs"),
    ],
)
def test_what_differs_is_named(tmp_path, changes, words):
    found = store(tmp_path, {}, changes)
    findings = audit(found, found.cell_keys())
    assert any(words in finding for finding in findings), findings


def test_published_scores(tmp_path):
    common = {"key": "k" * 16, "benchmark": "ruler", "model": "llama31_8b", "method": "full"}
    rows = [
        {**common, "task": task, "length": 4096, "status": "ok", "score": 0.9} for task in TASKS
    ]
    table = compare_published(pd.DataFrame(rows))
    assert list(table["paper"]) == ["95.5"] and list(table["difference"]) == ["-5.5"]
    assert "NVIDIA/RULER" in table["source"][0] and table["budget"][0] == "default"
    rows[3]["status"] = "oom"
    assert compare_published(pd.DataFrame(rows)).empty
