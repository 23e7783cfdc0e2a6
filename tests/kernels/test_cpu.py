"""The C++ kernels against the naive ops: dtypes, head dims, group sizes, awkward shapes."""

from __future__ import annotations

import itertools

import pytest
import torch
from retrobench_kernels import native
from retrobench_kernels.cluster_select import cluster_select
from retrobench_kernels.dense_decode import dense_decode
from retrobench_kernels.page_select import page_select
from retrobench_kernels.segmented_kmeans import cpu as kmeans_cpu
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from retrobench_kernels.segmented_kmeans.lloyd import Segment
from retrobench_kernels.wave_attention import Estimation, PageCache, wave_attention

from .inputs import clustered

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = list(itertools.product(DTYPES, [64, 96, 128, 256], [(4, 2), (2, 2), (7, 1), (8, 1)]))
NAMES = [f"{str(t)[6:]}-d{d}-{h}q{g}kv" for t, d, (h, g) in SHAPES]


def close(got, expected, dtype):
    """Both ops accumulate in float32: they differ by one rounding of the output."""
    rtol = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(got.float(), expected.float(), atol=rtol, rtol=rtol)


@pytest.mark.parametrize(("dtype", "dim", "heads"), SHAPES, ids=NAMES)
def test_dense_decode(dtype, dim, heads, poisoned_empty):
    batch, tokens = 3, 150
    q = torch.randn(batch, heads[0], dim).to(dtype)
    k, v = (torch.randn(batch, heads[1], tokens + 9, dim).to(dtype) for _ in range(2))
    start, end = torch.tensor([0, 7, 70]), torch.tensor([tokens, 9, 70])
    for row in range(batch):
        for x in (k, v):
            x[row, :, : start[row]] = torch.nan
            x[row, :, end[row] :] = torch.nan
    for x in ((k[:, :, :tokens], v[:, :, :tokens]), (k, v)):  # views of larger buffers too
        for softcap in (0.0, 5.0):
            kwargs = {"start_B": start, "end_B": end, "softcap": softcap}
            got, lse = dense_decode.form("cpu")(q, *x, dim**-0.5, **kwargs)
            expected, expected_lse = dense_decode.reference(q, *x, dim**-0.5, **kwargs)
            close(got, expected, dtype)
            torch.testing.assert_close(lse, expected_lse, atol=1e-4, rtol=1e-4)


def test_a_long_context_is_split_and_merged():
    torch.set_num_threads(2)
    try:
        q, k, v = torch.randn(1, 2, 64), torch.randn(1, 1, 9001, 64), torch.randn(1, 1, 9001, 64)
        k[:, :, 5000] = 3 * q[0, 0]  # one dominant token
        got, lse = dense_decode.form("cpu")(q, k, v, 1.0)
    finally:
        torch.set_num_threads(1)
    expected, expected_lse = dense_decode.reference(q, k, v, 1.0)
    close(got, expected, torch.float32)
    torch.testing.assert_close(lse, expected_lse)


@pytest.mark.parametrize(("dtype", "dim", "heads"), SHAPES, ids=NAMES)
def test_cluster_select(dtype, dim, heads, poisoned_empty):
    data = clustered(*heads, dim, dtype=dtype, clusters=200)
    counts = torch.tensor([9, 0]), torch.tensor([40, 500])
    args = (data.q, data.centroid, data.pool.size_BGC, data.num_clusters, *counts, dim**-0.5)
    limits = {"max_retrieved": 12, "max_estimated": 250}
    got = cluster_select.form("cpu")(*args, **limits)
    expected = cluster_select.reference(*args, **limits)
    alive = (data.pool.size_BGC > 0)[:, :, None].expand(-1, -1, heads[0] // heads[1], -1)
    alive = alive.flatten(1, 2)
    torch.testing.assert_close(got[2][alive], expected[2][alive], atol=1e-4, rtol=1e-4)
    score = select_score(expected[2], alive, heads[1])
    for mine, theirs in zip(got[:2], expected[:2], strict=True):
        assert mine.dtype == torch.int32 and mine.shape == theirs.shape
        for row in range(2):
            for g in range(heads[1]):
                ours, reference = chosen(mine[row, g]), chosen(theirs[row, g])
                assert len(ours) == len(set(ours)) == len(reference)
                # where scores are equal up to rounding either cluster may be taken
                a, b = score[row, g, ours].sort().values, score[row, g, reference].sort().values
                torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def select_score(logit, alive, groups):
    masked = logit.masked_fill(~alive, -torch.inf)
    return masked.softmax(-1).unflatten(1, (groups, -1)).sum(2)


def chosen(index):
    return index[index >= 0].tolist()


def test_equal_scores_are_chosen_once_each():
    q, centroid = torch.randn(1, 2, 64), torch.randn(1, 1, 1, 64).expand(1, 1, 50, 64)
    size = torch.ones(1, 1, 50, dtype=torch.int32)
    one = [torch.tensor([n]) for n in (50, 7, 11)]
    best, rest, _ = cluster_select.form("cpu")(
        q, centroid, size, *one, 1.0, max_retrieved=7, max_estimated=11
    )
    both = chosen(best[0, 0]) + chosen(rest[0, 0])
    assert len(best[0, 0]) == 7 and len(set(both)) == 18


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize(("dtype", "dim", "heads"), SHAPES, ids=NAMES)
def test_page_select(dtype, dim, heads, newest, poisoned_empty):
    """Whole numbers: bounds are exact in any order of summation, and many are equal."""
    pages, counts = 90, torch.tensor([90, 41, 3])
    q = torch.randint(-3, 4, (3, heads[0], dim)).to(dtype)
    keys = torch.randint(-4, 5, (2, 3, heads[1], pages, dim)).to(dtype)
    low, high = keys.amin(0), keys.amax(0)
    for row, count in enumerate(counts):  # pages that do not exist yet
        low[row, :, count:], high[row, :, count:] = torch.inf, -torch.inf
    wide = torch.cat([low, low], 2)[:, :, :pages]  # a view of a larger buffer
    for bounds in ((low, high), (wide, high), (low, low)):
        args = (q, *bounds, counts, torch.tensor([9, 50, 2]))
        options = {"max_selected": 50, "newest": newest}
        got = page_select.form("cpu")(*args, **options)
        expected = page_select.reference(*args, **options)
        assert got.dtype == torch.int32 and torch.equal(
            got.sort(-1).values, expected.sort(-1).values
        )


@pytest.mark.parametrize("cached", [False, True], ids=["pool", "cache"])
@pytest.mark.parametrize(("dtype", "dim", "heads"), SHAPES, ids=NAMES)
def test_wave_attention(dtype, dim, heads, cached, poisoned_empty):
    page = 4 if cached else 1
    data = clustered(*heads, dim, dtype=dtype, clusters=60, page_tokens=page, retrieved=9,
                     estimated=30, largest=40)  # fmt: skip
    estimation = Estimation(data.estimated, data.logit, data.value_sum)
    pool, cache = data.pool, None
    if cached:
        slot = data.slots(fraction=0.5)
        cache, pool = PageCache(slot, *data.fill_cache(slot), page), data.only_uncached(slot)
    for more in (None, estimation, estimation._replace(value_sum_BGCD=data.value_sum.float())):
        args = (data.q, data.steady, pool, data.retrieved, dim**-0.5)
        got = wave_attention.form("cpu")(*args, estimation=more, cache=cache)
        expected = wave_attention.reference(*args, estimation=more, cache=cache)
        close(got[0], expected[0], dtype)
        torch.testing.assert_close(got[1], expected[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("zones", [(0, 5, 3), (4, 0, 3), (4, 5, 0), (0, 0, 0)])
def test_any_zone_may_be_empty(zones):
    retrieved, estimated, steady = zones
    data = clustered(4, 2, 64, retrieved=retrieved, estimated=estimated, steady=steady, clusters=20)
    data.retrieved.fill_(-1)
    args = (data.q, data.steady, data.pool, data.retrieved, 0.1)
    estimation = Estimation(data.estimated, data.logit, data.value_sum)
    got = wave_attention.form("cpu")(*args, estimation=estimation)
    expected = wave_attention.reference(*args, estimation=estimation)
    close(got[0], expected[0], torch.float32)
    torch.testing.assert_close(got[1], expected[1], atol=1e-4, rtol=1e-4)


def test_all_clusters_equal_full_attention():
    data = clustered(4, 2, 64, clusters=30, batch=1, steady=9)
    everything = torch.arange(30, dtype=torch.int32).expand(1, 2, -1)
    got, _ = wave_attention.form("cpu")(data.q, data.steady, data.pool, everything, 0.125)
    for g in range(2):
        inside = data.pool.k_BGSD[0, g].isfinite().all(-1)
        count = int(data.steady.count_B[0])
        k = torch.cat([data.steady.k_BGWD[0, g, :count], data.pool.k_BGSD[0, g][inside]])
        v = torch.cat([data.steady.v_BGWD[0, g, :count], data.pool.v_BGSD[0, g][inside]])
        q = data.q[:, 2 * g : 2 * g + 2]
        expected, _ = dense_decode.reference(q, k[None, None], v[None, None], 0.125)
        close(got[:, 2 * g : 2 * g + 2], expected, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [64, 96, 128])
def test_kmeans_assign_and_sums(dtype, dim):
    k, mean = torch.randn(2, 101, dim).to(dtype), torch.randn(2, dim)
    centroid = torch.randn(2, 37, dim)
    x = k.float() - mean[:, None]
    bias = torch.randn(2, 37)
    label = kmeans_cpu.assign(k, mean, centroid, bias, (Segment(0, 101, 0, 37),))
    score = x @ centroid.transpose(-1, -2) - bias[:, None]
    chosen_score = score.gather(-1, label[..., None].long())[..., 0]
    torch.testing.assert_close(chosen_score, score.amax(-1), atol=1e-3, rtol=1e-4)
    total, size = kmeans_cpu.cluster_sums(k, mean, label, 37)
    expected = torch.zeros(2, 37, dim).scatter_add_(1, label[..., None].long().expand_as(x), x)
    torch.testing.assert_close(total, expected, atol=1e-3, rtol=1e-4)
    assert all(torch.equal(size[g], label[g].bincount(minlength=37).int()) for g in range(2))


@pytest.mark.parametrize("start", [("unit", "even"), ("raw", "floor")])
@pytest.mark.parametrize("final_assign", ["global", "segment"])
def test_segmented_kmeans_finds_what_naive_finds(final_assign, start):
    """Well separated topics, so that rounding cannot flip an assignment."""
    topic = torch.nn.functional.normalize(torch.randn(2, 32, 64), dim=-1) * 20
    k = topic[:, torch.arange(401) * 32 // 401] + torch.randn(2, 401, 64) * 0.1
    args = (k, 32, 2, 6, final_assign, *start)
    centroid, label = segmented_kmeans.form("cpu")(*args)
    expected_centroid, expected_label = segmented_kmeans.reference(*args)
    torch.testing.assert_close(centroid, expected_centroid, atol=1e-3, rtol=1e-3)
    assert torch.equal(label, expected_label)
