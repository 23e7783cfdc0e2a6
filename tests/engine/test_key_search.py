"""The study of search structures: curves, distances and options against plain references."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from retrobench.core.spec import parse
from retrobench.engine.attention.key_search import SearchConfig
from retrobench.evaluate.key_search import PERCENTS, Study, between, measure, spread
from retrobench.run.plan import prepare
from retrobench.run.spec import parse_run
from tests.conf.test_conf import composed
from tests.support import open_on, random_ids, ticks

SMALL = {"sink_tokens": 4, "local_tokens": 16, "degree": 6, "knn": 20, "keys_per_list": 20}


def study(index, seed=0, tokens=600, dim=16):
    """A layer of two KV heads and four query heads, whose queries lie beside the keys."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.randn(2, tokens, dim, generator=generator)
    q = torch.randn(4, tokens + 9, dim, generator=generator) + 3
    made = Study(parse(SearchConfig, {"index": index, **SMALL}, "method"), ticks())
    made.add(q, torch.cat([k, k[:, :9]], 1), tokens)
    return made.plain(), q, k


def test_flat_finds_everything_and_looks_at_everything():
    found, _, _ = study("flat")
    for kind in ("queries", "keys"):
        curve = found["of"][kind]
        assert (curve["recall"], curve["scanned"]) == ([1.0], [1.0])
        assert curve["recall_5"] is None and curve["scanned_95"] == 1
    assert found["asked_queries"] == 9 and found["asked_keys"] + found["keys"] == 600 - 4 - 16


@pytest.mark.parametrize("index", ["ivf", "keys", "roar"])
def test_more_effort_looks_at_more_keys_and_finds_more(index):
    found, _, _ = study(index, tokens=1000)
    for curve in found["of"].values():
        assert len(curve["effort"]) > 1
        assert curve["scanned"] == sorted(curve["scanned"])
        assert curve["recall"] == sorted(curve["recall"])
        assert 0 < curve["recall"][0] <= curve["recall"][-1] <= 1
    if index == "ivf":
        assert found["of"]["queries"]["recall"][-1] > 0.95


def test_layers_are_told_apart_and_together():
    """A layer whose queries are keys is easier than one whose queries lie elsewhere."""
    made = Study(parse(SearchConfig, {"index": "ivf", **SMALL}, "method"), ticks())
    k = torch.randn(1, 900, 16)
    made.add(k[:, :, :].expand(2, -1, -1), k, 880)
    apart = torch.randn(2, 900, 16) - 3
    made.add(apart, k, 880)
    alone = Study(made.config, ticks())
    alone.add(apart, k, 880)
    curve, own = (found.plain()["of"]["queries"] for found in (made, alone))
    first, second = curve["scanned_95_by_layer"]
    assert second == own["scanned_95"] and first != second
    assert min(first, second) <= curve["scanned_95"] <= max(first, second)


def test_distances_equal_those_of_numpy():
    found, q, k = study("flat")
    assert found["distance"]["percent"] == list(PERCENTS)
    expected = []
    for head in spread(range(4), 3):
        keys = k[head // 2, 4:-16].double().numpy()
        inverse = np.linalg.inv(np.cov(keys.T, bias=True))
        away = q[head, 4 : 600 - 16].double().numpy() - keys.mean(0)
        distance = np.sqrt(np.einsum("td,de,te->t", away, inverse, away))
        expected.append(np.percentile(distance, PERCENTS))
    assert found["distance"]["queries"] == pytest.approx(np.mean(expected, 0), rel=1e-3)
    assert found["distance"]["queries"][10] > 2 * found["distance"]["keys"][10]


def test_between_is_linear_and_honest_about_its_ends():
    assert between([0.1, 0.3], [0.5, 0.9], 0.2) == pytest.approx(0.7)
    assert between([0.1, 0.3], [0.5, 0.9], 0.1) == 0.5
    assert between([0.1, 0.3], [0.5, 0.9], 0.05) is None
    assert between([0.1, 0.3], [0.5, 0.9], 0.4) is None


def test_spread_takes_both_ends():
    assert spread(range(30), 3) == [0, 14, 29]
    assert spread([5], 3) == [5]
    assert spread(range(9), 3) == [0, 4, 8]


def test_a_session_is_searched(tiny_llama):
    def opened(steps, method_class):
        prompts = [random_ids(500)]
        return open_on(tiny_llama, method_class, prompts, SearchConfig(), new_tokens=steps)

    config = parse(SearchConfig, {"index": "roar", **SMALL}, "method")
    result, found = measure(opened, ticks(), config, steps=4, stop_ids=frozenset())
    assert result.decode_steps == found["asked_queries"] == 3
    assert found["layers"] == [0, 1, 2] and found["build_s"] > 0
    with pytest.raises(ValueError, match="is too short; 840 do"):
        measure(opened, ticks(), SearchConfig(), steps=4, stop_ids=frozenset())


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="needs the extra ann")
def test_controls_of_faiss_look_and_find_alike():
    for index, name in (("ivf", "faiss IVF"), ("keys", "faiss HNSW")):
        found, _, _ = study(index, tokens=1000)
        theirs, ours = found["controls"][name]["keys"], found["of"]["keys"]
        assert theirs["effort"] == ours["effort"]
        assert theirs["recall"][-1] == pytest.approx(ours["recall"][-1], abs=0.1)
        assert theirs["scanned"][0] == pytest.approx(ours["scanned"][0], rel=0.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=quest"], "method=quest searches no keys; use method=retrieval_attention"),
        (["method=retrieval_attention", "engine.batch=2"], "one prompt at a time: engine.batch=1"),
        (["method=retrieval_attention", "protocol=multi_turn"], "one turn"),
    ],
)
def test_what_cannot_be_searched_is_refused(overrides, message):
    summary = prepare(
        parse_run(composed("model=constructed", "measure=search", *overrides))
    ).summary
    assert message in summary.refusal
