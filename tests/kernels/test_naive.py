"""The naive ops against formulas that loop over tokens, on fresh random inputs."""

from __future__ import annotations

import math

import pytest
import torch
from retrobench_kernels.cluster_layout import cluster_layout, place_tokens
from retrobench_kernels.cluster_select import cluster_select
from retrobench_kernels.dense_decode import dense_decode
from retrobench_kernels.wave_attention import Estimation, PageCache, wave_attention

from .inputs import clustered


def softmax_of(terms):
    """(output, log denominator) of terms ``(log weight, count, value)``."""
    if not terms:
        return None, -math.inf
    top = max(weight for weight, _, _ in terms)
    total = sum(count * math.exp(weight - top) for weight, count, _ in terms)
    out = sum(math.exp(weight - top) * value for weight, _, value in terms) / total
    return out, top + math.log(total)


def capped(logit, softcap):
    return softcap * math.tanh(logit / softcap) if softcap else logit


@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_dense_decode(softcap):
    torch.manual_seed(torch.seed() % 2**31)
    q, k, v = torch.randn(3, 6, 8), torch.randn(3, 2, 11, 8), torch.randn(3, 2, 11, 8)
    start, end = torch.tensor([0, 4, 5]), torch.tensor([11, 9, 5])
    for row in range(3):  # memory outside of a row's range must not be read
        for tensor in (k, v):
            tensor[row, :, : start[row]] = torch.nan
            tensor[row, :, end[row] :] = torch.nan
    out, lse = dense_decode.reference(q, k, v, 0.3, start_B=start, end_B=end, softcap=softcap)
    for row in range(3):
        for head in range(6):
            g = head // 3
            terms = [
                (capped(float(q[row, head] @ k[row, g, s]) * 0.3, softcap), 1, v[row, g, s])
                for s in range(int(start[row]), int(end[row]))
            ]
            expected, expected_lse = softmax_of(terms)
            assert lse[row, head].item() == pytest.approx(expected_lse, abs=1e-4)
            if expected is None:
                expected = torch.zeros(8)
            torch.testing.assert_close(out[row, head], expected, atol=1e-5, rtol=1e-4)


def test_cluster_select():
    data = clustered(heads=4, groups=2, dim=8)
    retrieved_B, estimated_B = torch.tensor([3, 0], dtype=torch.int32), torch.tensor([4, 200])
    retrieved, estimated, logit = cluster_select.reference(
        data.q, data.centroid, data.pool.size_BGC, data.num_clusters, retrieved_B, estimated_B,
        0.4, max_retrieved=5, max_estimated=20,
    )  # fmt: skip
    assert retrieved.shape == (2, 2, 5) and estimated.shape == (2, 2, 20)
    assert retrieved.dtype == estimated.dtype == torch.int32
    for row in range(2):
        for g in range(2):
            alive = [
                c for c in range(int(data.num_clusters[row])) if data.pool.size_BGC[row, g, c] > 0
            ]
            score = torch.zeros(len(alive))
            for head in (2 * g, 2 * g + 1):
                exact = torch.stack(
                    [data.q[row, head] @ data.centroid[row, g, c] * 0.4 for c in alive]
                )
                torch.testing.assert_close(logit[row, head, alive], exact, atol=1e-5, rtol=1e-5)
                score += exact.softmax(0)
            order = [alive[i] for i in score.argsort(descending=True)]
            want = int(retrieved_B[row])
            got = retrieved[row, g].tolist()
            assert set(got) - {-1} == set(order[:want]) and got.count(-1) == 5 - len(order[:want])
            rest = order[want : want + int(estimated_B[row])]
            got = estimated[row, g].tolist()
            assert set(got) - {-1} == set(rest) and got.count(-1) == 20 - len(rest)


@pytest.mark.parametrize("page_tokens", [0, 4])
@pytest.mark.parametrize("with_estimate", [False, True])
def test_wave_attention(page_tokens, with_estimate):
    data = clustered(heads=4, groups=2, dim=8, page_tokens=max(1, page_tokens))
    estimation = Estimation(data.estimated, data.logit, data.value_sum) if with_estimate else None
    cache = None
    pool = data.pool
    if page_tokens:
        slot = data.slots(fraction=0.5)
        cache = PageCache(slot, *data.fill_cache(slot), page_tokens)
        pool = data.only_uncached(slot)  # a hit must not come from the pool
    out, lse = wave_attention.reference(
        data.q, data.steady, pool, data.retrieved, 0.4, estimation=estimation, cache=cache
    )
    for row in range(2):
        for head in range(4):
            g = head // 2
            terms = []

            def exact(k, v, row=row, head=head, terms=terms):
                terms.append((float(data.q[row, head] @ k) * 0.4, 1, v))

            for w in range(int(data.steady.count_B[row])):
                exact(data.steady.k_BGWD[row, g, w], data.steady.v_BGWD[row, g, w])
            for c in data.retrieved[row, g].tolist():
                if c >= 0:
                    first = int(data.pool.first_BGC[row, g, c])
                    for s in range(first, first + int(data.pool.size_BGC[row, g, c])):
                        exact(data.pool.k_BGSD[row, g, s], data.pool.v_BGSD[row, g, s])
            for c in data.estimated[row, g].tolist() if with_estimate else []:
                size = int(data.pool.size_BGC[row, g, c])
                if c >= 0 and size:
                    weight = float(data.logit[row, head, c])
                    terms.append((weight, size, data.value_sum[row, g, c]))
            expected, expected_lse = softmax_of(terms)
            torch.testing.assert_close(out[row, head], expected, atol=1e-5, rtol=1e-4)
            assert lse[row, head].item() == pytest.approx(expected_lse, abs=1e-4)


@pytest.mark.parametrize("page_tokens", [1, 4])
def test_cluster_layout(page_tokens):
    cluster = torch.randint(0, 9, (3, 50))
    layout = cluster_layout(cluster, 12, page_tokens, start=5)
    kv = torch.randn(3, 50, 4)
    pool = torch.full((3, 5 + 50, 4), torch.nan)
    place_tokens.reference(kv, layout, pool)
    for g in range(3):
        end, pages = 5, 0
        for c in range(12):
            first, size = int(layout.first_GC[g, c]), int(layout.size_GC[g, c])
            assert first == end and int(layout.page_GC[g, c]) == pages
            assert torch.equal(pool[g, first : first + size], kv[g, cluster[g] == c])
            end, pages = first + size, pages + -(-size // page_tokens)
        assert end == pool.shape[1] and pages == int(layout.pages_G[g])
    assert pool[:, :5].isnan().all() and not pool[:, 5:].isnan().any()
