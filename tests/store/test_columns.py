"""The columns cache equals the rows, follows every change, and survives damage."""

from __future__ import annotations

import json

import pandas as pd

from retrobench.core.cell import Cell
from retrobench.store.results import ResultStore


def write(store, number, rows):
    cell = Cell(model={"name": "m"}, method={"name": "full", "x": number}, task={"name": "t"})
    labels = {"model": "m", "method": "full", "benchmark": "t"}
    with store.writer(cell, {"labels": labels}) as writer:
        for row in rows:
            writer.append({"status": "ok", **row})
    return cell.key


def test_nested_values_become_columns_and_missing_ones_are_empty(tmp_path):
    store = ResultStore(tmp_path)
    live = {"hit_ratio": None, "decode_calls": {"0": 3}, "bytes_per_step": {"kv": 5}}
    key = write(store, 7, [{"sample": "a", "score": 1, "live": live, "references": ["x", "y"]}])
    frame = store.columns()
    assert frame.loc[0, "live.bytes_per_step.kv"] == 5 and frame.loc[0, "method.x"] == 7
    assert json.loads(frame.loc[0, "references"]) == ["x", "y"]
    assert not any(name.endswith(".0") for name in frame)
    chosen = store.columns(["score", "live.hit_ratio", "nothing"], [key])
    assert list(chosen) == ["score", "live.hit_ratio", "nothing"]
    assert chosen["live.hit_ratio"].dtype == float and chosen["nothing"].isna().all()


def test_changes_are_followed_cell_by_cell(tmp_path):
    store = ResultStore(tmp_path)
    first = write(store, 1, [{"sample": "a", "score": 1}])
    assert len(store.columns()) == 1
    write(store, 1, [{"sample": "a", "score": 0.5}, {"sample": "b", "score": 0.25}])
    second = write(store, 2, [{"sample": "a", "score": "odd"}])  # text beside numbers
    frame = store.columns()
    assert dict(frame.groupby("key").size()) == {first: 2, second: 1}
    assert frame.loc[frame["key"] == first, "score"].astype(float).tolist() == [0.5, 0.25]
    (tmp_path / second / "cell.json").unlink()
    assert set(store.columns()["key"]) == {first}


def test_a_damaged_or_foreign_cache_is_made_again(tmp_path):
    store = ResultStore(tmp_path)
    write(store, 1, [{"sample": "a", "score": 1}])
    before = store.columns()
    (tmp_path / "columns.feather").write_bytes(b"damaged")
    pd.testing.assert_frame_equal(store.columns(), before)
    assert store.columns(["key"], ["0" * 16]).empty
    assert ResultStore(tmp_path / "none").columns(["key"]).empty
