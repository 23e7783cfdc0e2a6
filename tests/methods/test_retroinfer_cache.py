"""RetroInfer on every tier: caches, their counts, and what fills them beside attention."""

from __future__ import annotations

import itertools
from dataclasses import replace
from threading import Event

import pytest
import torch
from retrobench_methods.retroinfer import RetroInfer
from retrobench_methods.retroinfer.async_cache import next_ranked
from retrobench_methods.retroinfer.config import sizes

from .retroinfer_run import Run

TIERS = list(itertools.product(("gpu", "pinned", "cpu"), ("none", "host", "device")))


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_every_tier_gives_the_same_output(softcap):
    steps, pads = range(300, 340), (0, 21)
    options = {"new": 40, "pads": pads, "softcap": softcap, "cache_frac": 0.1, "page_tokens": 4}
    expected = None
    for place, cache in TIERS if softcap is None else TIERS[:3]:
        run = Run(placement=place, cache=cache, **options)
        got = torch.stack([run.step(n) for n in steps])
        expected = got if expected is None else expected
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
        row = run.row()
        assert (row["hit_ratio"] is None) == (cache == "none")
        if cache != "none":
            assert 0.2 < row["hit_ratio"] < 1 and row["bytes_per_step"]["h2d"] > 0
            assert row["pages_per_step"]["evictions"] > 0
            assert run.method.stats()["hit_ratio"] == pytest.approx(row["hit_ratio"])
        assert run.method.allocated() == RetroInfer.plan(run.method.config, run.shape)
        assert run.method.stats()["index_updates"] == 1


def test_host_and_device_managers_count_the_same():
    rows = []
    for cache in ("host", "device"):
        run = Run(new=40, cache=cache, cache_frac=0.08, page_tokens=4, cache_bound=True)
        for n in range(300, 340):
            run.step(n)
        rows.append(run.row())
        stats = run.method.stats()
        assert stats["hit_ratio"] < stats["best_hit_ratio"] <= 1
    assert rows[0] == rows[1]


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_work_aside_changes_no_output(softcap):
    options = {"new": 40, "pads": (0, 21), "cache_frac": 0.12, "page_tokens": 4}
    options["softcap"] = softcap
    options |= {"tail": True, "index_codec": "int4", "weigh_sizes": True} if softcap else {}
    extras = {"overlap": True}, {"prefetch_frac": 1.0}, {"overlap": True, "prefetch_frac": 1.0}
    extras += ({"async_update": True},)
    plain = {cache: Run(cache=cache, **options) for cache in ("host", "device")}
    runs = {cache: [Run(cache=cache, **options, **extra) for extra in extras] for cache in plain}
    for n in range(300, 340):
        for cache, others in runs.items():
            expected = plain[cache].step(n)
            for run in others:
                torch.testing.assert_close(run.step(n), expected, atol=1e-5, rtol=1e-4)
    rows = {cache: [run.row() for run in found] for cache, found in runs.items()}
    assert rows["host"] == rows["device"]
    overlapped, ahead, both, aside = rows["host"]
    asked = plain["host"].row()
    assert overlapped == aside == asked and both == ahead
    pages = [
        sum(row["pages_per_step"][kind] for kind in ("hits", "misses")) for row in (asked, ahead)
    ]
    assert pages[0] == pytest.approx(pages[1], abs=0.21)  # rounded
    method = runs["device"][1].method
    copied = method.stats()["prefetched_pages"]
    assert copied > 0 and asked["hit_ratio"] != ahead["hit_ratio"]
    moved = ahead["bytes_per_step"]["h2d"] * 40  # of what was missed, and of what came ahead
    assert moved > copied * 4 * 2 * 16 * 4
    assert method.allocated() == RetroInfer.plan(method.config, method.shape)
    method.close()


@pytest.mark.parametrize("cache", ["host", "device"])
def test_an_update_aside_delays_no_attention_of_a_later_layer(cache, monkeypatch):
    """The first layer's pages come in only after the last layer has attended."""
    run = Run(new=2, cache=cache, page_tokens=4, async_update=True)
    first, last = run.shape.layers[0], run.shape.layers[-1]
    store, filler, attended, admitted = run.method.store, run.method.filler, Event(), []
    admit, update = store.cache.admit, filler.update

    def late(layer, *pool, **options):
        if layer == first:
            assert attended.wait(timeout=60)
        admit(layer, *pool, **options)
        admitted.append(layer)

    def noted(layer, *rest):
        assert not admitted  # nobody waited
        update(layer, *rest)
        if layer == last:
            attended.set()

    monkeypatch.setattr(store.cache, "admit", late)
    monkeypatch.setattr(filler, "update", noted)
    run.step(300)
    assert admitted == list(run.shape.layers)  # end_step waited for all
    run.method.close()


def test_forming_a_segment_is_a_part_of_the_step():
    run = Run(new=40)
    run.probe.timing = True
    run.step(300)
    assert "update" not in run.row()["span_s"]
    for n in range(301, 340):
        run.step(n)
    assert run.method.updates and run.row()["span_s"]["update"] > 0


def test_prefetch_takes_the_clusters_ranked_next():
    run = Run(new=1, cache="host", retrieval_frac=0.2, page_tokens=4, estimation_frac=0.3)
    query, index = torch.randn(1, 4, 1, 16), run.method.index
    zones, size_BGC = run.select(0, query), index.size_LBGC[0]
    wider = replace(run.method.config, retrieval_frac=0.3)
    more = sizes(wider, 300, None, 1)[0].retrieved - index.retrieved[0][0]
    found = next_ranked(zones, size_BGC, more)
    index.retrieved_LB += more
    index.retrieved[0][0] += more
    both = torch.cat([zones.chosen_BGN, found], -1).sort(-1).values
    wide = run.select(0, query).chosen_BGN
    assert torch.equal(both, wide.sort(-1).values)
    everything = next_ranked(zones, size_BGC, 10**6)
    assert (everything >= 0).sum() == (size_BGC > 0).sum() - (zones.chosen_BGN >= 0).sum()


@pytest.mark.parametrize(
    "extra", [{}, {"overlap": True, "prefetch_frac": 0.5}, {"async_update": True}]
)
@pytest.mark.parametrize("cache", ["host", "device"])
def test_a_cache_smaller_than_one_retrieval_is_harmless(cache, extra):
    options = {"new": 20, "retrieval_frac": 0.5, "page_tokens": 8}
    plain = Run(**options)
    tiny = Run(cache=cache, cache_frac=0.001, **options, **extra)
    assert tiny.method.store.cache.size.slots == 1
    for n in range(300, 320):
        torch.testing.assert_close(tiny.step(n), plain.step(n), atol=1e-5, rtol=1e-4)


def test_moved_bytes_are_those_of_the_missed_tokens():
    run = Run(new=1, cache="host", page_tokens=4)
    run.step(300)
    index = run.method.index
    row = run.row()
    attended = sum(row["bytes_per_step"][kind] for kind in ("kv",))
    steady = 2 * 2 * 69 * 2 * 16 * 4
    assert row["bytes_per_step"]["h2d"] == attended - steady  # the first step misses everything
    assert row["attended_tokens"] == pytest.approx(attended / (2 * 2 * 2 * 16 * 4))
    assert index.retrieved[0] == [index.sizes[0][0].retrieved]
