"""Wave index: clusters partition the tokens; estimation obeys its bounds; sizes as published."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig
from retrobench_methods.retroinfer.config import sizes
from retrobench_methods.retroinfer.wave_index import WaveIndex

from retrobench.core.method import AttentionArgs
from retrobench.core.shapes import KVShape
from retrobench.engine.attend import dense_decode
from retrobench.engine.placement import DeviceStore

ARGS = AttentionArgs(scale=0.25)


def make_shape(length, new=0, pads=(0,)):
    return KVShape(
        pad_tokens=pads,
        layers=(0,),
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        prompt_tokens=length,
        max_tokens=length + new,
        dtype="float32",
    )


def fill(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (shape.batch, shape.num_kv_heads, shape.prompt_tokens, shape.head_dim)
    store = DeviceStore(shape)
    store.append(0, torch.randn(size, generator=generator), torch.randn(size, generator=generator))
    return store


def make_index(length, seed=0, pads=(0,), **options):
    config = RetroInferConfig(update_tokens=32, **options)
    shape = make_shape(length, pads=pads)
    index, store = WaveIndex(config, shape, None), fill(shape, seed)
    index.build(0, store)
    return index, store, shape


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
    got = sizes(RetroInferConfig(), context, None, 1)
    assert (got.clusters, got.retrieved, got.estimated) == (clusters, retrieved, estimated)
    update = (got.update_clusters, got.retrieved_per_update, got.estimated_per_update)
    assert update == (64, 1, 15)


def test_short_contexts_stay_dense():
    assert sizes(RetroInferConfig(), 68 + 1023, None, 1).clusters == 0
    assert sizes(RetroInferConfig(), 68 + 1024, None, 1).clusters > 0


@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(110, 400),
    per_cluster=st.integers(1, 40),
    segment=st.sampled_from([64, 100, 8192]),
    final=st.sampled_from(["global", "segment"]),
    pad=st.integers(0, 9),
)
def test_clusters_partition_the_indexed_tokens(length, per_cluster, segment, final, pad):
    index, store, shape = make_index(
        length,
        pads=(0, pad),
        tokens_per_cluster=per_cluster,
        segment_tokens=segment,
        final_assign=final,
    )
    for row, padding in enumerate(shape.pad_tokens):
        start, end = padding + 4, length - 64
        for head in range(2):
            size = index.size_LBGC[0, row, head]
            assert int(size.sum()) == end - start
            order = index.order_LBGS[0, row, head, start:end]
            assert sorted(order.tolist()) == list(range(start, end))
            for cluster in torch.nonzero(size)[:5, 0]:
                first = int(index.first_LBGC[0, row, head, cluster])
                tokens = index.order_LBGS[0, row, head, first : first + int(size[cluster])].long()
                keys = store.keys(0)[row, head, tokens]
                values = store.values(0)[row, head, tokens]
                centroid = index.centroid_LBGCD[0, row, head, cluster]
                torch.testing.assert_close(centroid, keys.mean(0), atol=1e-5, rtol=1e-4)
                total = index.value_sum_LBGCD[0, row, head, cluster]
                torch.testing.assert_close(total, values.sum(0), atol=1e-4, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), sharpness=st.floats(0.1, 30))
def test_jensen_estimated_mass_never_exceeds_the_true_one(seed, sharpness):
    index, store, _ = make_index(200, seed)
    query = sharpness * torch.randn(16, generator=torch.Generator().manual_seed(seed + 1))
    logit = (store.keys(0)[0, 0] @ query).double()
    size = index.size_LBGC[0, 0, 0]
    for cluster in torch.nonzero(size)[:, 0]:
        first = int(index.first_LBGC[0, 0, 0, cluster])
        tokens = index.order_LBGS[0, 0, 0, first : first + int(size[cluster])].long()
        estimate = (index.centroid_LBGCD[0, 0, 0, cluster] @ query).double()
        true = torch.logsumexp(logit[tokens], 0)
        assert estimate + size[cluster].double().log() <= true + 1e-4 * (1 + true.abs())


def test_estimation_is_exact_when_the_keys_of_a_cluster_are_equal():
    shape = make_shape(68 + 64)
    generator = torch.Generator().manual_seed(0)
    kinds = torch.nn.functional.normalize(torch.randn(8, 16, generator=generator), dim=-1)
    keys = kinds[torch.arange(132) % 8].expand(1, 2, -1, -1).clone()
    store = DeviceStore(shape)
    values = torch.randn(1, 2, 132, 16, generator=generator)
    store.append(0, keys, values)
    config = RetroInferConfig(
        update_tokens=32, num_clusters=8, retrieval_frac=0.1, estimation_frac=1.0
    )
    index = WaveIndex(config, shape, None)
    index.build(0, store)
    from retrobench.engine.attend import attend

    query = torch.randn(1, 4, 1, 16, generator=generator)
    chosen = index.select(0, query, store, ARGS)
    assert chosen.estimated_tokens > 30
    k_BGRD, v_BGRD = store.gather(0, chosen.token_BGR)
    got = attend(query, k_BGRD, v_BGRD, chosen.token_BGR >= 0, ARGS, chosen.estimate)
    expected = dense_decode(query, store.keys(0), store.values(0), ARGS)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_selected_tokens_are_distinct_and_the_best_clusters():
    index, store, _ = make_index(400, tokens_per_cluster=8, retrieval_frac=0.2)
    query = torch.randn(1, 4, 1, 16, generator=torch.Generator().manual_seed(9))
    tokens = index.select(0, query, store, ARGS).token_BGR
    for head in range(2):
        valid = tokens[0, head][tokens[0, head] >= 0].tolist()
        assert len(valid) == len(set(valid))
        assert {0, 1, 2, 3, *range(336, 400)} <= set(valid)
        logit = query[0, 2 * head : 2 * head + 2, 0] @ index.centroid_LBGCD[0, 0, head].T * 0.25
        best = logit.softmax(-1).sum(0).topk(index.sizes[0].retrieved).indices
        wanted = int(index.size_LBGC[0, 0, head, best].sum()) + 68
        assert len(valid) == wanted


def test_updates_index_generated_tokens_once():
    config = RetroInferConfig(update_tokens=32, tokens_per_cluster=8)
    shape = make_shape(200, new=100)
    method = RetroInfer(config, shape)
    generator = torch.Generator().manual_seed(0)

    def random(heads, tokens):
        return torch.randn(1, heads, tokens, 16, generator=generator)

    method.prefill(0, random(4, 200), random(2, 200), random(2, 200), ARGS)
    method.seal()
    for _ in range(100):
        method.decode(0, random(4, 1), random(2, 1), random(2, 1), ARGS)
    index = method.index
    assert index.updates[0][0] == 3 and index.indexed_end[0][0] == 200 - 64 + 96
    assert int(index.size_LBGC.sum()) == 2 * (index.indexed_end[0][0] - 4)
    assert method.allocated() == RetroInfer.plan(config, shape)


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
    from retrobench_kernels.segmented_kmeans import naive

    keys = torch.randn(2, 300, 8, generator=torch.Generator().manual_seed(0))
    whole = naive.segmented_kmeans(keys, 20, 2)
    monkeypatch.setattr(naive, "_CHUNK_BYTES", 4 * 2 * 20 * 7)
    pieces = naive.segmented_kmeans(keys, 20, 2)
    assert torch.equal(whole[1], pieces[1])
