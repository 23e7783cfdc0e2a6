"""Wave index and buffer: clusters partition the tokens, pages and updates; sizes as published."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retrobench_kernels.codes import decode
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from retrobench_kernels.wave_step import cluster_pages
from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig
from retrobench_methods.retroinfer.config import sizes
from retrobench_methods.retroinfer.vectors import ClusterVectors

from retrobench.core.method import AttentionArgs
from tests.support import build, kv_shape

ARGS = AttentionArgs(scale=0.25)


def make_shape(length, new=0, pads=(0,), layers=(0,), heads=4, dim=16):
    return kv_shape(
        pad_tokens=pads,
        layers=layers,
        num_heads=heads,
        head_dim=dim,
        prompt_tokens=length,
        max_tokens=length + new,
    )


def built(length, new=0, pads=(0,), seed=0, **options):
    """A method after its prompt, with the prompt's keys and values."""
    torch.manual_seed(seed)
    shape = make_shape(length, new, pads)
    method = RetroInfer(RetroInferConfig(update_tokens=32, **options), shape)
    k, v = torch.randn(2, shape.batch, 2, length, 16).unbind(0)
    build(method, {0: (None, k, v)}, ARGS)
    return method, k, v


def clusters_of(method, row, head, i=0):
    """``(number, pool slice)`` of the clusters that hold tokens."""
    size, first = method.index.size_LBGC[i, row, head], method.index.first_LBGC[i, row, head]
    for c in torch.nonzero(size)[:, 0].tolist():
        yield c, slice(int(first[c]), int(first[c] + size[c]))


def rows_of(tensor):
    return sorted(map(tuple, tensor.tolist()))


@pytest.mark.parametrize(
    ("context", "clusters", "retrieved", "estimated"),
    [
        (131072, 8192, 147, 1901),
        (120000, 7440, 134, 1726),
        (32768, 2048, 37, 475),
        (1024000, 64000, 1152, 14848),
    ],
)
def test_sizes_of_the_released_configuration(context, clusters, retrieved, estimated):
    found = sizes(RetroInferConfig(), context, None, 1)
    prompt, update = ((x.clusters, x.retrieved, x.estimated) for x in found)
    assert prompt == (clusters, retrieved, estimated) and update == (64, 1, 15)


def test_short_contexts_stay_dense():
    assert sizes(RetroInferConfig(), 68 + 1023, None, 1)[0].clusters == 0
    assert sizes(RetroInferConfig(), 68 + 1024, None, 1)[0].clusters > 0


@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(110, 400),
    per_cluster=st.integers(1, 40),
    segment=st.sampled_from([64, 100, 8192]),
    final=st.sampled_from(["global", "segment"]),
    pad=st.integers(0, 9),
    page=st.sampled_from([None, 1, 4, 8]),
)
def test_clusters_partition_the_indexed_tokens(length, per_cluster, segment, final, pad, page):
    cache = {} if page is None else {"cache": "host", "page_tokens": page}
    method, k, v = built(
        length,
        pads=(0, pad),
        tokens_per_cluster=per_cluster,
        segment_tokens=segment,
        final_assign=final,
        **cache,
    )
    pool_k, pool_v = method.store.k_pool[0], method.store.v_pool[0]
    for row, padding in enumerate((0, pad)):
        start, end = padding + 4, length - 64
        steady = method.store.steady(0)
        count = int(steady.count_B[row])
        assert count == method.store.count[0][row] == 68
        expected = torch.cat([k[row, :, padding:start], k[row, :, end:]], 1)
        assert torch.equal(steady.k_BGWD[row, :, :count], expected)
        for head in range(2):
            taken, index = [], method.index
            for c, span in clusters_of(method, row, head):
                taken += range(span.start, span.stop)
                mean = pool_k[row, head, span].mean(0)
                centroid = index.centroids.read(0)[row, head, c]
                torch.testing.assert_close(centroid, mean, atol=1e-5, rtol=1e-4)
                total = index.values.read(0)[row, head, c]
                expected = pool_v[row, head, span].sum(0)
                torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-4)
            assert taken == list(range(end - start))  # packed, in cluster order
            both = torch.cat([pool_k, pool_v], -1)[row, head, taken]
            assert rows_of(both) == rows_of(torch.cat([k, v], -1)[row, head, start:end])


@pytest.mark.parametrize("cache", ["device", "host"])
@pytest.mark.parametrize("tokens", [122_880, 1_048_576])
def test_the_pool_is_hardly_more_than_the_keys_and_values(tokens, cache):
    """Llama-3.1-8B: what must be page-locked beside a GPU."""
    shape = kv_shape(
        layers=tuple(range(32)), num_heads=32, num_kv_heads=8, head_dim=128, dtype="bfloat16",
        prompt_tokens=tokens, max_tokens=tokens + 1024, device="cuda",
    )  # fmt: skip
    planned = RetroInfer.plan(RetroInferConfig(cache=cache), shape)
    whole = shape.kv_bytes_per_token * shape.max_tokens
    assert whole * 0.99 < planned.pinned <= 1.05 * whole


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), sharpness=st.floats(0.1, 30))
def test_jensen_estimated_mass_never_exceeds_the_true_one(seed, sharpness):
    method, _, _ = built(200, seed=seed)
    query = sharpness * torch.randn(16)
    for c, span in clusters_of(method, 0, 0):
        logit = (method.store.k_pool[0][0, 0, span] @ query).double()
        estimate = (method.index.centroids.read(0)[0, 0, c] @ query).double()
        true = torch.logsumexp(logit, 0)
        size = torch.tensor(span.stop - span.start).double()
        assert estimate + size.log() <= true + 1e-4 * (1 + true.abs())


def test_the_best_clusters_are_retrieved():
    method, _, _ = built(400, tokens_per_cluster=8, retrieval_frac=0.2)
    query, index = torch.randn(1, 4, 16), method.index
    chosen = index.select(0, query[:, :, None], method.store, ARGS)
    for head in range(2):
        logit = query[0, 2 * head : 2 * head + 2] @ index.centroids.read(0)[0, head].T * 0.25
        logit = logit.masked_fill(index.size_LBGC[0, 0, head] == 0, -torch.inf)
        order = logit.softmax(-1).sum(0).argsort(descending=True).tolist()
        count = index.sizes[0][0].retrieved
        assert set(chosen.chosen_BGN[0, head].tolist()) == set(order[:count])
        rest = order[count : count + index.sizes[0][0].estimated]
        assert set(chosen.estimated_BGE[0, head].tolist()) - {-1} == set(rest)


def test_pages_of_clusters_are_distinct_and_cover_their_tokens():
    method, _, _ = built(400, pads=(0, 7), tokens_per_cluster=5, cache="host", page_tokens=4)
    index = method.index
    selection = index.select(0, torch.randn(2, 4, 1, 16), method.store, ARGS)
    pool = method.store.spans(0, selection).pool
    chosen = torch.rand(2, 2, index.sizes[0][0].clusters).argsort(-1)[..., :20].int()
    chosen[0, 1, 3:] = -1
    page_BGN, tokens_BGN, start_BGN = cluster_pages(pool, chosen, 4)
    for row in range(2):
        for head in range(2):
            found = {
                start + offset
                for start, tokens in zip(
                    start_BGN[row, head].tolist(), tokens_BGN[row, head].tolist(), strict=True
                )
                for offset in range(tokens)
            }
            spans = dict(clusters_of(method, row, head))
            named = [spans[c] for c in chosen[row, head].tolist() if c in spans]
            assert found == {t for span in named for t in range(span.start, span.stop)}
            pages = page_BGN[row, head][page_BGN[row, head] >= 0].tolist()
            assert len(pages) == len(set(pages))


@pytest.mark.parametrize("stagger", [True, False])
@pytest.mark.parametrize("options", [{}, {"cache": "device", "page_tokens": 4}])
def test_updates_index_generated_tokens_once(stagger, options):
    config = RetroInferConfig(
        update_tokens=32, tokens_per_cluster=8, stagger_updates=stagger, **options
    )
    shape = make_shape(200, new=110, pads=(0, 5), layers=(0, 1, 5))
    method = RetroInfer(config, shape)
    tokens = {layer: torch.randn(2, 2, 2, 310, 16) for layer in shape.layers}
    layers = {layer: (None, k[:, :, :200], v[:, :, :200]) for layer, (k, v) in tokens.items()}
    build(method, layers, ARGS)
    when = {layer: [] for layer in shape.layers}
    for step in range(200, 310):
        before = [row[0] for row in method.index.clusters]
        method.begin_step()
        for i, (layer, (k, v)) in enumerate(tokens.items()):
            method.decode(
                layer, torch.randn(2, 4, 1, 16), *(x[:, :, step, None] for x in (k, v)), ARGS
            )
            when[layer] += [step - i * stagger] * (method.index.clusters[i][0] > before[i])
    first = 231 if stagger else 232  # staggered, the coming token counts
    assert when[0] == when[1] == when[5] == [first, first + 32, first + 64]
    assert method.stats()["index_updates"] == 3 and method.allocated() == RetroInfer.plan(
        config, shape
    )
    for i, (k, v) in enumerate(tokens.values()):
        both = torch.cat([k, v], -1)
        for row, pad in enumerate(shape.pad_tokens):
            steady, count = method.store.steady(i), method.store.count[i][row]
            for head in range(2):
                spans = [span for _, span in clusters_of(method, row, head, i)]
                pool = [
                    torch.cat([x[i][row, head, s] for s in spans])
                    for x in (method.store.k_pool, method.store.v_pool)
                ]
                near = [x[row, head, :count] for x in steady[:2]]
                held = torch.cat([torch.cat(pool, -1), torch.cat(near, -1)])
                assert rows_of(held) == rows_of(both[row, head, pad:])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), clusters=st.integers(2, 30), segments=st.integers(1, 2))
def test_kmeans_final_assignment_is_the_nearest_direction(seed, clusters, segments):
    keys = torch.randn(2, 90, 8, generator=torch.Generator().manual_seed(seed))
    centroid, cluster = segmented_kmeans(keys, clusters, segments, iterations=4)
    assert cluster.shape == (2, 90) and int(cluster.max()) < clusters
    for head in range(2):
        for c in cluster[head].unique():
            mean = keys[head][cluster[head] == c].mean(0)
            torch.testing.assert_close(centroid[head, c], mean, atol=1e-5, rtol=1e-4)


def test_kmeans_in_chunks_equals_one_piece(monkeypatch):
    keys = torch.randn(2, 300, 8, generator=torch.Generator().manual_seed(0))
    whole = segmented_kmeans.reference(keys, 20, 2)
    monkeypatch.setattr("retrobench_kernels.segmented_kmeans.naive._CHUNK_BYTES", 4 * 2 * 20 * 7)
    pieces = segmented_kmeans.reference(keys, 20, 2)
    assert torch.equal(whole[1], pieces[1])


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_codes_side_by_side_are_those_of_rows(codec):
    """Clusters come in portions that end anywhere."""
    shape = make_shape(100, dim=64, pads=(0, 7), layers=(0, 1))
    made = [ClusterVectors(codec, (2, 2, 2), 48, shape, scored=scored) for scored in (True, False)]
    assert made[0].lanes and not made[1].lanes
    assert made[0].footprint() == made[1].footprint()
    for begin, end in ((0, 5), (5, 33), (33, 48)):
        at, centroid = (1, 0, slice(None), slice(begin, end)), torch.randn(2, end - begin, 64)
        for vectors in made:
            vectors.store(at, centroid, torch.ones(2, end - begin, dtype=torch.bool))
    got, expected = (decode(vectors.read_scored(1)) for vectors in made)
    assert torch.equal(got, expected) and expected[0].any()
