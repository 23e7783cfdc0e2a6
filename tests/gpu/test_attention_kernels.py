"""Triton kernels of the decode step equal the naive forms (CUDA device, or the interpreter)."""

from __future__ import annotations

import pytest
import torch
from kernel_parity import DEVICE, TOLERANCE, needs_triton, poisoned, random_index, random_tensor
from retrobench_kernels.cluster_select import cluster_select
from retrobench_kernels.codes import Codes, decode
from retrobench_kernels.dense_decode import dense_decode
from retrobench_kernels.page_select import page_select
from retrobench_kernels.wave_attention import Estimation, PageCache, Steady, wave_attention
from retrobench_kernels.wave_attention.zones import WaveArgs

from retrobench.memory.codec import Quantised

pytestmark = needs_triton


@pytest.mark.parametrize(
    ("dtype", "dim", "group", "softcap"),
    [
        (torch.float32, 64, 1, 0.0),
        (torch.float16, 96, 7, 0.0),
        (torch.bfloat16, 128, 4, 0.0),
        (torch.bfloat16, 256, 2, 20.0),
    ],
)
def test_dense_decode(dtype, dim, group, softcap):
    q = random_tensor(3, 2 * group, dim, dtype=dtype)
    k, v = (random_tensor(3, 2, 150, dim, dtype=dtype)[:, :, :131] for _ in range(2))
    # a whole row, left padding that ends inside a tile, and an empty row
    start = torch.tensor([0, 67, 5], dtype=torch.int32, device=DEVICE)
    end = torch.tensor([131, 130, 5], dtype=torch.int32, device=DEVICE)
    outside = torch.arange(131, device=DEVICE)
    outside = (outside < start[:, None]) | (outside >= end[:, None])
    k = k.masked_fill(outside[:, None, :, None], torch.nan)
    bounds = {"start_B": start, "end_B": end, "softcap": softcap}
    v_clean = v.masked_fill(outside[:, None, :, None], 0)
    expected = dense_decode.reference(q, k.nan_to_num(0), v_clean, dim**-0.5, **bounds)
    v = v.masked_fill(outside[:, None, :, None], torch.nan)
    with poisoned():
        got = dense_decode.form("triton")(q, k, v, dim**-0.5, splits=3, **bounds)
    torch.testing.assert_close(got[0], expected[0], **TOLERANCE[dtype])
    torch.testing.assert_close(got[1], expected[1], atol=1e-3, rtol=1e-3)
    assert (got[0][2] == 0).all() and (got[1][2] == -torch.inf).all()


def random_codes(batch, groups, clusters, dim, bits):
    vectors, mean = random_tensor(batch, groups, clusters, dim), random_tensor(batch, groups, dim)
    return Codes(*Quantised(dim, "float32", bits).encode(vectors), mean)


@pytest.mark.parametrize("bits", [0, 4, 8])
@pytest.mark.parametrize("limit", [None, [9, 30, 1]])
@pytest.mark.parametrize(
    ("dtype", "dim", "group", "in_registers"),
    [(torch.float32, 64, 4, 8192), (torch.bfloat16, 96, 3, 8192), (torch.float16, 64, 1, 128)],
)
def test_cluster_select(dtype, dim, group, in_registers, limit, bits):
    """``bits``: of codes of the centroids; 0: centroids as they are."""
    batch, groups, clusters = 3, 2, 200
    q = random_tensor(batch, groups * group, dim, dtype=dtype)
    centroid = random_tensor(batch, groups, clusters, dim, dtype=dtype)
    size = torch.randint(0, 4, (batch, groups, clusters), dtype=torch.int32, device=DEVICE)
    counts = [[200, 150, 9], [6, 11, 8], [40, 0, 30]]  # used, retrieved, estimated per row
    used, first, more = (torch.tensor(c, dtype=torch.int32, device=DEVICE) for c in counts)
    exists = (torch.arange(clusters, device=DEVICE) < used[:, None, None]) & (size > 0)
    centroid = centroid.masked_fill(~exists[..., None], torch.nan)
    limits = {"max_retrieved": 12, "max_estimated": 45}
    if limit is not None:  # clusters count for their tokens, and keys weigh more than centroids say
        limits["token_limit_B"] = torch.tensor(limit, dtype=torch.int32, device=DEVICE)
        limits["bias_BGC"] = torch.rand(size.shape, device=DEVICE).half()
    clean = centroid.nan_to_num(0)
    if bits:
        centroid = clean = random_codes(batch, groups, clusters, dim, bits)
    expected = cluster_select.reference(q, clean, size, used, first, more, 0.3, **limits)
    with poisoned():
        got = cluster_select.form("triton")(
            q, centroid, size, used, first, more, 0.3, in_registers=in_registers, **limits
        )
    for name, g, e in zip(("retrieved", "estimated"), got[:2], expected[:2], strict=True):
        assert g.dtype == torch.int32 and g.shape == e.shape
        assert torch.equal(g.sort(-1).values, e.sort(-1).values), name
    seen = exists.repeat_interleave(group, 1)
    assert (got[2][~seen] == -torch.inf).all()
    torch.testing.assert_close(got[2][seen], expected[2][seen], atol=1e-3, rtol=1e-3)


def test_cluster_select_with_equal_masses():
    q = random_tensor(1, 2, 64)
    centroid = random_tensor(1, 1, 1, 64).expand(1, 1, 70, 64).contiguous()
    size = torch.ones(1, 1, 70, dtype=torch.int32, device=DEVICE)
    count = [torch.tensor([n], dtype=torch.int32, device=DEVICE) for n in (70, 5, 11)]
    for in_registers in (8192, 32):
        retrieved, estimated, _ = cluster_select.form("triton")(
            q, centroid, size, *count, 1.0,
            max_retrieved=5, max_estimated=11, in_registers=in_registers,
        )  # fmt: skip
        both = torch.cat([retrieved, estimated], -1).flatten().tolist()
        assert len(set(both)) == 16 and min(both) >= 0 and max(both) < 70


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("dtype", "dim", "group", "sums", "softcap"),
    [
        (torch.float32, 64, 4, torch.float32, 0.0),
        (torch.float16, 128, 1, torch.float32, 30.0),
        (torch.bfloat16, 96, 5, torch.bfloat16, 0.0),
        (torch.bfloat16, 64, 3, 4, 0.0),
        (torch.float16, 96, 2, 8, 0.0),
        (torch.bfloat16, 24, 1, 4, 0.0),
    ],
)
def test_wave_attention(dtype, dim, group, sums, softcap, cached):
    """``sums`` 4 or 8: codes of mean values, and the clusters that no list names."""
    batch, groups, page_tokens = 2, 2, 4 if cached else 1
    index = random_index(batch, groups, dim, dtype, page_tokens=page_tokens)
    q = random_tensor(batch, groups * group, dim, dtype=dtype)
    k_steady, v_steady = (random_tensor(batch, groups, 90, dim, dtype=dtype) for _ in range(2))
    steady_count = torch.tensor([81, 0], dtype=torch.int32, device=DEVICE)
    inside = torch.arange(90, device=DEVICE) < steady_count[:, None]
    k_steady, v_steady = (
        t.masked_fill(~inside[:, None, :, None], torch.nan) for t in (k_steady, v_steady)
    )
    order = torch.rand(batch, groups, index.clusters, device=DEVICE).argsort(-1).int()
    retrieved, estimated = order[..., :7].clone(), order[..., 7:20].clone()
    retrieved[0, 1, 3:] = -1
    estimated[1, 0, ::2] = -1
    total = None
    if sums in (4, 8):
        value_sum = random_codes(batch, groups, index.clusters, dim, sums)
        total = (decode(value_sum) * index.pool.size_BGC[..., None]).sum(2) + 1
    else:
        value_sum = random_tensor(batch, groups, index.clusters, dim, dtype=sums)
    logit = random_tensor(batch, groups * group, index.clusters)
    cache = None
    if cached:
        cache = index.cache(slots=9)
    arguments = (retrieved.contiguous(), dim**-0.5)
    zones = {"estimation": Estimation(estimated.contiguous(), logit, value_sum, total)}
    zones["cache"] = cache
    zones["softcap"] = softcap
    clean = Steady(k_steady.nan_to_num(0), v_steady.nan_to_num(0), steady_count)
    expected = wave_attention.reference(q, clean, index.pool, *arguments, **zones)
    with poisoned():
        got = wave_attention.form("triton")(
            q, Steady(k_steady, v_steady, steady_count), index.poisoned_pool(), *arguments,
            splits=3, **zones,
        )  # fmt: skip
    torch.testing.assert_close(got[0], expected[0], **TOLERANCE[dtype])
    torch.testing.assert_close(got[1], expected[1], atol=2e-3, rtol=2e-3)


def test_wave_attention_of_nothing_is_zero():
    index = random_index(1, 1, 64, torch.float32)
    none = torch.full((1, 1, 3), -1, dtype=torch.int32, device=DEVICE)
    empty = torch.full((1, 1, 4, 64), torch.nan, device=DEVICE)
    steady = Steady(empty, empty, torch.zeros(1, dtype=torch.int32, device=DEVICE))
    out, lse = wave_attention.form("triton")(random_tensor(1, 2, 64), steady, index.pool, none, 1.0)
    assert (out == 0).all() and (lse == -torch.inf).all()


def test_admitted_pages_are_copied_to_their_slot():
    from retrobench_kernels.wave_attention.triton import attend_pages, page_list

    index = random_index(1, 2, 64, torch.float32, page_tokens=4)
    k, v = (torch.full((1, 2, 5 * 4, 64), torch.nan, device=DEVICE) for _ in range(2))
    slot = torch.full((1, 2, index.pages), -1, dtype=torch.int32, device=DEVICE)
    cache = PageCache(slot, k, v, 4)
    retrieved = torch.tensor([[[2], [5]]], dtype=torch.int32, device=DEVICE)
    steady = Steady(
        torch.zeros(1, 2, 1, 64, device=DEVICE),
        torch.zeros(1, 2, 1, 64, device=DEVICE),
        torch.zeros(1, dtype=torch.int32, device=DEVICE),
    )
    q = random_tensor(1, 4, 64)
    args = WaveArgs(q, steady, index.pool, retrieved, 1.0, cache=cache)
    pages = page_list(args)
    assert pages.source_BGN is not None
    pages.source_BGN[:, :, 0] = -2 - 3  # first page of the cluster goes to slot 3
    got = attend_pages(args, pages, splits=2)
    expected = wave_attention.reference(q, steady, index.pool, retrieved, 1.0)
    torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=1e-5)
    for g in range(2):
        first = int(index.pool.first_BGC[0, g, retrieved[0, g, 0]])
        tokens = min(4, int(index.pool.size_BGC[0, g, retrieved[0, g, 0]]))
        for fast, slow in ((k, index.pool.k_BGSD), (v, index.pool.v_BGSD)):
            assert torch.equal(fast[0, g, 12 : 12 + tokens], slow[0, g, first : first + tokens])
            rest = torch.cat([fast[0, g, :12], fast[0, g, 12 + tokens :]])
            assert rest.isnan().all()


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize(
    ("dtype", "dim", "group"),
    [(torch.float32, 64, 1), (torch.bfloat16, 128, 4), (torch.float16, 96, 7)],
)
def test_page_select(dtype, dim, group, newest):
    """Whole numbers: bounds are exact in any order of summation, and many are equal."""

    def whole(*shape):
        return torch.randint(-4, 5, shape, device=DEVICE).to(dtype)

    q, keys = whole(3, 2 * group, dim), whole(2, 3, 2, 90, dim)
    low, high = keys.amin(0), keys.amax(0)
    used, most = (
        torch.tensor(c, dtype=torch.int32, device=DEVICE) for c in ([90, 41, 3], [9, 50, 2])
    )
    later = (torch.arange(90, device=DEVICE) >= used[:, None])[:, None, :, None]
    limits = {"max_selected": 50, "newest": newest}
    expected = page_select.reference(q, low, high, used, most, **limits)
    low, high = (x.masked_fill(later, torch.nan) for x in (low, high))
    with poisoned():
        got = page_select.form("triton")(q, low, high, used, most, **limits)
    assert got.dtype == torch.int32 and torch.equal(got, expected)
