"""``retroinfer_faithful`` against the released code's clustering, written down once more."""

from __future__ import annotations

import math

import pytest
import torch
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from retrobench_methods.retroinfer import RetroInferConfig
from retrobench_methods.retroinfer.config import num_clusters
from retrobench_methods.retroinfer_faithful import RetroInferFaithful

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.index import StaticZone
from tests.support import build, kv_shape


def released_count(length):
    """Clusters and segments of a context, as ``generate_config`` of the released code."""
    segments = max(round(length / 8192), 1)
    factor = math.lcm(8, segments)
    clusters = max(round(length / 16), factor)
    lower = clusters // factor * factor
    upper = lower + factor
    return lower if clusters - lower <= upper - clusters else upper, segments


def released_kmeans(k_SD, clusters, segments, iterations=10):
    """Centroids, cluster of each key, and sizes of one head; a loop over clusters."""
    mean = k_SD.mean(0)
    x, tokens = k_SD - mean, len(k_SD)
    stretch = tokens / clusters
    first = (torch.arange(clusters, dtype=torch.float32) * stretch + stretch / 2).long()
    centroid = x[first].clone()
    part, own = tokens // segments, clusters // segments
    for iteration in range(iterations):
        last = iteration == iterations - 1
        label = (x @ centroid.T).argmax(1)
        if not last:
            label = torch.cat(
                [
                    (x[i * part : (i + 1) * part] @ centroid[i * own : (i + 1) * own].T).argmax(1)
                    + i * own
                    for i in range(segments)
                ]
            )
        for c in range(clusters):
            members = x[: len(label)][label == c]
            if len(members):
                average = members.mean(0)
                centroid[c] = average if last else average / average.norm()
    return centroid + mean, label, label.bincount(minlength=clusters)


@pytest.mark.parametrize("length", [1092, 4096, 12289, 20000, 23984, 24000, 100001, 131072])
def test_cluster_counts_are_the_released_ones(length):
    assert num_clusters(RetroInferConfig(), length) == released_count(length)


@pytest.mark.parametrize(("tokens", "clusters", "segments"), [(300, 24, 1), (403, 24, 3)])
def test_clustering_is_the_released_one(tokens, clusters, segments):
    generator = torch.Generator().manual_seed(tokens)
    topic = 3 * torch.randn(2, 9, 64, generator=generator)
    k_GSD = topic[:, torch.randint(0, 9, (tokens,), generator=generator)]
    k_GSD = k_GSD + torch.randn(2, tokens, 64, generator=generator)
    options = {"iterations": 4, "init": "raw", "edges": "floor"}
    for form in (segmented_kmeans, segmented_kmeans.reference):
        centroid, label = form(k_GSD, clusters, segments, **options)
        for g in range(2):
            expected = released_kmeans(k_GSD[g], clusters, segments, iterations=4)
            assert torch.equal(label[g], expected[1])
            filled = expected[2] > 0
            torch.testing.assert_close(
                centroid[g][filled], expected[0][filled], atol=1e-4, rtol=1e-4
            )
            assert not centroid[g][~filled].any()


def test_a_step_equals_the_released_one():
    """Steady zone, best clusters exactly, next ones by centroid: a loop over one layer's heads."""
    torch.manual_seed(1)
    length, args = 1500, AttentionArgs(scale=0.2)
    shape = kv_shape(head_dim=64, prompt_tokens=length, max_tokens=length + 1)
    k, v = torch.randn(2, 1, 2, length + 1, 64)
    method = RetroInferFaithful(RetroInferFaithful.Config(), shape)
    build(method, {0: (None, k[:, :, :length], v[:, :, :length])}, args)
    q = 2 * torch.randn(1, 4, 1, 64)
    got = method.decode(0, q, k[:, :, length:], v[:, :, length:], args)
    clusters, segments = released_count(length)
    zone = StaticZone((0,), 4, 64)
    indexed = zone.outside(length, "cpu")[0]
    for g in range(2):
        keys, values = k[0, g, :length][indexed], v[0, g, :length][indexed]
        centroid, label, size = released_kmeans(keys, clusters, segments)
        heads = q[0, 2 * g : 2 * g + 2, 0]
        logit = (heads @ centroid.T * args.scale).masked_fill(size == 0, -torch.inf)
        order = logit.softmax(-1).sum(0).argsort(descending=True)
        best = max(1, round(0.018 * clusters))
        retrieved, estimated = order[:best], order[best : best + round(0.232 * clusters)]
        estimated = estimated[size[estimated] > 0]
        exact = torch.cat([(label == c).nonzero()[:, 0] for c in retrieved])
        steady = torch.cat([~indexed, torch.tensor([True])])
        attended_k = torch.cat([k[0, g][steady], keys[exact]])
        attended_v = torch.cat([v[0, g][steady], values[exact]])
        mean_v = torch.stack([values[label == c].mean(0) for c in estimated])
        weight = torch.cat(
            [heads @ attended_k.T * args.scale, logit[:, estimated] + size[estimated].log()], -1
        )
        expected = weight.softmax(-1) @ torch.cat([attended_v, mean_v])
        torch.testing.assert_close(got[0, 2 * g : 2 * g + 2, 0], expected, atol=1e-5, rtol=1e-4)
