"""The columns cache equals the rows, follows every change, and survives damage."""

from __future__ import annotations

import json

import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrobench.core.cell import Cell
from retrobench.store import columns
from retrobench.store.flatten import read_flat
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


def test_columns_are_chosen_by_pattern(tmp_path):
    store = ResultStore(tmp_path)
    write(store, 7, [{"sample": "a", "meta": {"depth": 1, "words": 2}, "score": 1}])
    chosen = store.columns(["score", "meta.*", "live.*"])
    assert list(chosen) == ["score", "meta.depth", "meta.words"]


def test_changes_are_followed_cell_by_cell(tmp_path):
    store = ResultStore(tmp_path)
    first = write(store, 1, [{"sample": "a", "score": 1, "note": 2}])
    assert len(store.columns()) == 1
    write(store, 1, [{"sample": "a", "score": 0.5}, {"sample": "b", "score": 0.25}])
    second = write(store, 2, [{"sample": "a", "note": "odd"}])  # text beside numbers
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


numbers = st.one_of(st.none(), st.integers(-(2**40), 2**40), st.floats(-1e9, 1e9))
words = st.one_of(st.none(), st.text(max_size=8), st.just("2026-01-31T10:00:00+00:00"))
rows = st.fixed_dictionaries(
    {"score": numbers, "prediction": words, "meta": st.fixed_dictionaries({"depth": numbers})},
    optional={
        "message": words,
        "note": words,
        "references": st.lists(st.text(max_size=4), max_size=3),
        "live": st.fixed_dictionaries(
            {"hit_ratio": numbers, "calls": st.dictionaries(st.sampled_from("01"), numbers)},
            optional={"stop": st.lists(st.integers(), max_size=2)},
        ),
        "fidelity": st.fixed_dictionaries({"sparse_layers": st.lists(st.integers(0, 9))}),
    },
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(rows, min_size=1, max_size=4))
def test_the_native_reader_says_what_the_slow_one_says(tmp_path_factory, monkeypatch, made):
    store = ResultStore(tmp_path_factory.mktemp("store"))
    key = write(store, 1, [{"sample": str(i), **row} for i, row in enumerate(made)])
    quick = store.columns()
    (store.root / "columns.feather").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(columns, "read_flat", lambda path: None)
        slow = store.columns()
    assert set(slow) <= set(quick)
    assert quick[[c for c in quick if c not in slow]].isna().all(axis=None)
    for name in slow:
        ours, theirs = (f[name].astype(object).where(f[name].notna(), None) for f in (quick, slow))
        assert ours.tolist() == theirs.tolist(), name
    assert len(store.read(key).rows) == len(made)


def test_the_native_reader_leaves_retries_and_torn_lines_to_the_slow_one(tmp_path):
    store = ResultStore(tmp_path)
    path = tmp_path / write(store, 1, [{"sample": "a", "score": 0.5}]) / "rows.jsonl"
    assert read_flat(path) is not None
    with path.open("a") as stream:
        stream.write('{"sample": "b", "sta')
    assert read_flat(path) is None and len(store.columns()) == 1
    write(store, 1, [{"sample": "a", "score": 1.0}])
    assert read_flat(path) is None and store.columns()["score"].tolist() == [1.0]
