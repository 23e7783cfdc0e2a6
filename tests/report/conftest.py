"""A store of synthetic rows: shapes as real runs write them, numbers chosen by the tests."""

from __future__ import annotations

import pytest

from retrobench.core.cell import Cell
from retrobench.core.code import code_fingerprint
from retrobench.store.results import ResultStore

TASKS = ("niah_single_2", "niah_multikey_2")


class Lab:
    """Writes cells into a store."""

    def __init__(self, root):
        self.store = ResultStore(root)

    def cell(self, method="retroinfer", rows=(), state="done", **options):
        budget = options.pop("budget", None)
        model, code = options.pop("model", "made_up"), options.pop("code", "")
        task, batch = options.pop("benchmark", "ruler"), options.pop("batch", 1)
        more_labels = options.pop("labels", {})
        cell = Cell(
            model={"name": model},
            method={"name": method, **options},
            task={"name": task, "lengths": sorted({row["length"] for row in rows})},
            engine={"batch": batch},
            budget=budget,
        )
        changed = " ".join(f"{k}={v}" for k, v in options.items())
        labels = {"model": model, "method": method, "changed": changed, "benchmark": task}
        labels |= {"protocol": "query_aware", "measure": "score", "budget": budget, **more_labels}
        about = {"labels": labels, "provenance": {"commit": "c" * 40, "cpu": "some CPU"}}
        with self.store.writer(cell, about) as writer:
            for row in rows:
                writer.append({"code": code or code_fingerprint(method), **row})
        self.store.set_status(cell.key, {"state": state})
        return cell.key

    def refuse(self, method, length, tasks, reason="oom"):
        """A cell that was refused before it ran."""
        task = {"name": "ruler", "tasks": tasks, "length": [length]}
        cell = Cell(
            model={"name": "made_up"},
            method={"name": method},
            task=task,
            engine={"batch": 1},
            budget=None,
        )
        labels = {"model": "made_up", "method": method, "changed": "", "benchmark": "ruler"}
        labels |= {"protocol": "query_aware", "measure": "score", "budget": None}
        about = {"labels": labels, "provenance": {"commit": "c" * 40}}
        self.store.refuse(cell, about, reason, "too large")
        return cell.key

    def row(self, task=TASKS[0], length=4096, index=0, score=1.0, mib=1.0, seal=0.1, **extra):
        return {
            "sample": f"{task}/{length}/{index}",
            "task": task,
            "length": length,
            "status": "ok",
            "score": score,
            "references": ["x"],
            "prediction": "x",
            "prompt_hash": f"{task}{length}{index}",
            "meta": {"stand_in": True, **extra.pop("meta", {})},
            "prefill_s": length / 1000,
            "seal_s": seal,
            "decode_s": 1.0,
            "decode_steps": 10,
            "batch": 1,
            "live": {
                "decode_calls": {"0": 10, "1": 10},
                "attended_tokens": 100.0,
                "estimated_tokens": 200.0,
                "bytes_per_step": {"kv": round(mib * 2**20), "index": 1000},
                "hit_ratio": extra.pop("hit", None),
                "span_s": extra.pop("spans", {}),
            },
            "footprint": {"device": 2**20, "pinned": 0, "host": 0},
            **extra,
        }

    def rows(self, lengths=(4096,), count=3, **more):
        return [
            self.row(task, length, index, **more)
            for task in TASKS
            for length in lengths
            for index in range(count)
        ]


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "runs")
