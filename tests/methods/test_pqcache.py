"""PQCache equals a plain reference, and fetches the tokens that its counters say."""

from __future__ import annotations

import itertools

import pytest
import torch
from retrobench_methods.pqcache import PQCache, kmeans, nearest
from retrobench_methods.pqcache.config import PQCacheConfig

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.measure.probe import CountingProbe
from retrobench.memory.page_cache import most_asked
from tests.memory.indexes import STORES

from .inputs import HEADS, KINDS, decoded, is_best, shape_of, tensors

ARGS = AttentionArgs(scale=0.3)
SMALL = {"sink_tokens": 5, "kept_frac": 0.2, "bits": 3}


def reference(method, qkv, row, g, t, chosen, args):
    """Scores of the tokens between sinks and window, and outputs ``ND`` over the chosen ones."""
    config, pad = method.config, method.shape.pad_tokens[row]
    group = method.shape.num_heads // method.shape.num_kv_heads
    q = qkv[0][row, g * group : g * group + group, t].double()
    k, v = (x[row, g, pad : t + 1].double() for x in qkv[1:])
    centroid_YCD = method.index.centroid_LBGYCD[0, row, g, :, : method.index.clusters[row]].double()
    rebuilt = torch.zeros_like(k)
    width = k.shape[1] // config.subvectors
    for s, y in itertools.product(range(len(k)), range(config.subvectors)):
        part = slice(y * width, y * width + width)
        code = int(method.index.code_LBGYS[0, row, g, y, pad + s])
        far = (centroid_YCD[y] - k[s, part]).norm(dim=1)
        assert far[code] <= far.min() + 1e-3  # the nearest, but for rounding
        rebuilt[s, part] = centroid_YCD[y, code]
    recent = method.index.zones[row][0]
    between = range(config.sink_tokens, max(config.sink_tokens, len(k) - recent))
    score, outs = torch.zeros(len(between)).double(), []
    for query in q:
        guess, exact = rebuilt[between] @ query * args.scale, k[chosen] @ query * args.scale
        if args.softcap:
            guess, exact = (args.softcap * torch.tanh(x / args.softcap) for x in (guess, exact))
        score += guess.softmax(0)
        outs.append(exact.softmax(0) @ v[chosen])
    return between, score, torch.stack(outs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    ("dtype", "softcap", "parts"),
    [("float32", None, 2), ("float32", 4.0, 4), ("bfloat16", None, 1)],
)
def test_selection_and_output_equal_the_reference(kind, heads, dtype, softcap, parts):
    args = AttentionArgs(scale=0.3, softcap=softcap)
    qkv = tensors(kind, heads, 75, batch=2, dtype=dtype)
    config = PQCacheConfig(subvectors=parts, **SMALL)
    method = PQCache(config, shape_of(*qkv[:2], 70, (0, 21)))
    assert method.index.zones == [(6, 7), (4, 5)]  # halves of 20% of 65 and of 44, both rounded
    tolerance = 1e-4 if dtype == "float32" else 3e-2
    for t, out in decoded(method, qkv, args):
        token = method.index.select(0, qkv[0][:, :, t : t + 1], method.store, args).token_BGR
        for row, g in itertools.product(range(2), range(heads[1])):
            pad, (recent, retrieved) = method.shape.pad_tokens[row], method.index.zones[row]
            chosen = token[row, g][token[row, g] >= 0] - pad
            between, score, expected = reference(method, qkv, row, g, t, chosen, args)
            always = {s for s in range(t + 1 - pad) if s not in between}
            assert always <= set(chosen.tolist()) and len(always) == 5 + recent
            free = torch.tensor([c for c in chosen.tolist() if c in between]) - between.start
            assert is_best(score, free, retrieved, 1e-5 if dtype == "float32" else 1e-3)
            one = slice(g * len(expected), (g + 1) * len(expected))
            torch.testing.assert_close(
                out[row, one].double(), expected, atol=tolerance, rtol=tolerance
            )


@pytest.mark.parametrize("kind", KINDS)
def test_kmeans_equals_lloyds_algorithm_point_by_point(kind):
    x = tensors(kind, (2, 2), 90)[1][0].double()
    found = kmeans(x, 6, 4)
    for n in range(2):
        centre = x[n][[round(i * 89 / 5 - 0.499) for i in range(6)]].clone()
        for _ in range(4):
            label = [int((centre - p).square().sum(1).argmin()) for p in x[n]]
            for c in range(6):
                members = [p for p, own in zip(x[n], label, strict=True) if own == c]
                centre[c] = torch.stack(members).mean(0) if members else centre[c]
        torch.testing.assert_close(found[n], centre)
    assert torch.equal(nearest(found, found)[:, :1], torch.zeros(2, 1).long())


def test_as_many_centroids_as_keys_find_every_key_again():
    qkv = tensors("random", (2, 2), 41, dim=8)
    config = PQCacheConfig(subvectors=1, bits=6, sink_tokens=0, kept_frac=0.1)
    method = PQCache(config, shape_of(*qkv[:2], 40))
    list(decoded(method, qkv, ARGS))
    index, trained = method.index, method.index.trained[0]
    code = index.code_LBGYS[0, 0, :, 0, :trained].long()
    rebuilt = index.centroid_LBGYCD[0, 0, :, 0].gather(1, code[..., None].expand(-1, -1, 8))
    assert index.clusters == [trained]
    torch.testing.assert_close(rebuilt, qkv[1][0, :, :trained])


@pytest.mark.parametrize(("place", "manager"), STORES)
def test_every_store_gives_the_same_output(place, manager):
    qkv = tensors("clustered", (4, 2), 330, batch=2)
    shape = shape_of(*qkv[:2], 300, (0, 9))
    found = []
    for options in ({}, {"placement": place, "cache": manager, "eviction": "lru"}):
        config = PQCacheConfig(
            page_tokens=16, cache_frac=0.2, **SMALL, **{"eviction": "lru", **options}
        )
        method = PQCache(config, shape)
        found.append(torch.stack([out for _, out in decoded(method, qkv, ARGS)]))
        assert method.allocated() == PQCache.plan(method.config, shape)
    torch.testing.assert_close(found[1], found[0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("eviction", ["lru", "lfu", "fifo"])
def test_what_moves_are_the_missed_tokens(eviction):
    """Of every block that is not in the cache, the chosen tokens; the hottest blocks enter."""
    qkv = tensors("clustered", (4, 2), 230)
    shape, probe = shape_of(*qkv[:2], 200), CountingProbe()
    options = {"placement": "cpu", "cache": "host", "page_tokens": 16, "cache_frac": 0.2}
    config = PQCacheConfig(eviction=eviction, **options, **SMALL)
    method = PQCache(config, shape, probe)
    moved = hits = misses = 0
    held: list[dict[int, list[int]]] = [{}, {}]  # page -> [uses, since, last use]
    for step, (t, _) in enumerate(decoded(method, qkv, ARGS)):
        token = method.index.select(0, qkv[0][:, :, t : t + 1], method.store, ARGS).token_BGR[0]
        for g in range(2):
            chosen = [s for s in token[g].tolist() if 0 <= s < method.store.in_pool[0]]
            pages = [s // 16 for s in chosen]
            asked = sorted(set(pages), key=lambda p: (-pages.count(p), p))
            missed = [p for p in asked if p not in held[g]]
            hits, misses = hits + len(asked) - len(missed), misses + len(missed)
            moved += sum(pages.count(p) for p in missed)
            for p in set(asked) & set(held[g]):
                held[g][p][0] += 1
                held[g][p][2] = step
            rank = {"lru": lambda e: e[2], "lfu": lambda e: (e[0], e[2]), "fifo": lambda e: e[1]}
            for p in missed:
                if len(held[g]) == 3:  # round(0.2 * 230 / 16)
                    out = [o for o in held[g] if o not in asked]
                    if not out:
                        break
                    del held[g][min(out, key=lambda o, g=g: (rank[eviction](held[g][o]), o))]
                held[g][p] = [1, step, step]
    counted = {name: probe.by_layer(name)[0] for name in ("h2d", "hits", "misses")}
    assert counted["misses"] == pytest.approx(misses, rel=0.1)
    assert counted["h2d"] == pytest.approx(moved * 2 * 8 * 4, rel=0.1) and counted["hits"] > 0
    assert counted["hits"] + counted["misses"] == hits + misses
    if eviction == "fifo":  # no ties between equally old pages that a model would break otherwise
        assert counted["misses"] == misses and counted["h2d"] == moved * 2 * 8 * 4


def test_most_asked_counts_every_page():
    generator = torch.Generator().manual_seed(0)
    page = torch.randint(-1, 6, (2, 3, 20), generator=generator)
    single, times = most_asked(page)
    for row, g in itertools.product(range(2), range(3)):
        asked = [p for p in page[row, g].tolist() if p >= 0]
        expected = sorted(set(asked), key=lambda p: (-asked.count(p), p))
        got = single[row, g].tolist()
        assert got[: len(expected)] == expected and set(got[len(expected) :]) <= {-1}
        assert times[row, g, : len(expected)].tolist() == [asked.count(p) for p in expected]
        assert not times[row, g, len(expected) :].any()


def test_a_step_reads_codes_and_centroids():
    qkv = tensors("random", (4, 2), 340, batch=2, dim=32)
    shape, probe = shape_of(*qkv[:2], 320, (0, 20)), CountingProbe()
    method = PQCache(PQCacheConfig(subvectors=4, **SMALL), shape, probe)
    list(decoded(method, qkv, ARGS))
    codes = sum(t + 1 - pad - 5 - recent for t in range(320, 340)
                for pad, (recent, _) in zip((0, 20), method.index.zones, strict=True))  # fmt: skip
    centroids = 2 * 2 * 8 * 32 * 4  # rows, heads, 2^bits whole vectors
    assert probe.by_layer("index")[0] == 2 * 4 * codes + 20 * centroids
    attended = sum(5 + sum(zone) for zone in method.index.zones)
    assert attended == 10 + round(0.2 * 315) + round(0.2 * 295)
    assert probe.by_layer("kv")[0] == 20 * 2 * attended * 2 * 32 * 4
    probe.reset()
    whole = PQCache(PQCacheConfig(subvectors=4, **SMALL), shape, probe, Budget.parse("100%"))
    list(decoded(whole, qkv, ARGS))
    assert whole.index.zones[0][0] >= 340  # all in the window: no code is read
    assert probe.by_layer("index")[0] == 20 * centroids


def test_bad_options_are_one_line():
    shape = shape_of(*tensors("random", (4, 2), 90)[:2], 80)
    with pytest.raises(ValueError, match="first 32 are always attended .method.sink_tokens"):
        PQCache.plan(PQCacheConfig(), shape, Budget.parse("32tok"))
    with pytest.raises(ValueError, match="method.subvectors=3: keys of 8 channels .* divisor"):
        PQCache.plan(PQCacheConfig(subvectors=3), shape)
