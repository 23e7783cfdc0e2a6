"""Indexes in 8 and 4 bits, ranks that weigh sizes, and the rest as one mean: naive and C++."""

from __future__ import annotations

import math

import pytest
import torch
from retrobench_kernels import native
from retrobench_kernels.cluster_select import cluster_select
from retrobench_kernels.codes import Codes, decode, numbers, pack, to_lanes, unpack, words
from retrobench_kernels.wave_attention import Estimation, wave_attention

from retrobench.memory.codec import Quantised

from .inputs import clustered

needs_native = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
CASES = [(bits, dim, dtype) for bits in (4, 8) for dim in (64, 96, 256)
         for dtype in (torch.float32, torch.bfloat16, torch.float16)]  # fmt: skip


def coded(vectors: torch.Tensor, bits: int) -> Codes:
    """Vectors ``BGCD`` (NaN: none) around their mean, in codes."""
    mean = vectors.float().nanmean(2)
    codec = Quantised(vectors.shape[-1], "float32", bits)
    return Codes(*codec.encode((vectors.float() - mean[:, :, None]).nan_to_num(0)), mean)


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_of_whole_numbers_are_exact(bits):
    number = torch.randint(-7, 8, (5, 3, 32)).to(torch.int8)
    code = pack(number, bits)
    assert code.shape == (5, 96 * bits // 8)
    assert torch.equal(unpack(code, 3, bits), number)
    assert torch.equal(numbers(words(number, bits), bits), number.int())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("clusters", [1, 16, 37])
def test_codes_side_by_side_are_the_same(bits, clusters):
    codes = coded(torch.randn(2, 3, clusters, 64), bits)
    lanes = to_lanes(codes)
    assert lanes.bits == bits and lanes.word_BGKEW.shape[-1] == 16
    assert torch.equal(decode(lanes)[:, :, :clusters], decode(codes))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dim", [16, 24, 64])
def test_decoded_vectors_are_within_half_a_step(bits, dim):
    vectors = torch.randn(2, 3, 40, dim) + 5
    codes = coded(vectors, bits)
    assert codes.bits == bits
    step = codes.scale_BGCN.float().repeat_interleave(dim // codes.scale_BGCN.shape[-1], -1)
    assert ((decode(codes) - vectors).abs() <= 0.51 * step + 1e-5).all()


@needs_native
@pytest.mark.parametrize(("bits", "dim", "dtype"), CASES)
def test_cluster_select_on_codes(bits, dim, dtype, poisoned_empty):
    for heads, groups, sized in ((4, 2, False), (7, 1, True), (9, 3, True)):
        data = clustered(heads, groups, dim, dtype=dtype, clusters=150)
        codes = to_lanes(coded(data.centroid, bits))
        codes.scale_BGKNW[:, :, -1, :, 150 % 16 :] = torch.nan  # no cluster
        counts = torch.tensor([9, 3]), torch.tensor([40, 500])
        args = (data.q, codes, data.pool.size_BGC, data.num_clusters, *counts, dim**-0.5)
        limit = torch.tensor([25, 4]) if sized else None
        more = {"max_retrieved": 12, "max_estimated": 250, "token_limit_B": limit}
        more["bias_BGC"] = torch.rand(data.pool.size_BGC.shape).half() if sized else None
        got = cluster_select.form("cpu")(*args, **more)
        expected = cluster_select.reference(*args, **more)
        alive = (data.pool.size_BGC > 0)[:, :, None].expand(-1, -1, heads // groups, -1)
        alive = alive.flatten(1, 2)
        torch.testing.assert_close(got[2][alive], expected[2][alive], atol=1e-3, rtol=1e-3)
        weight = data.pool.size_BGC.clamp_min(1).log()[:, :, None] if sized else 0
        logit = expected[2].unflatten(1, (groups, -1)) + weight
        logit = logit.masked_fill(~alive.unflatten(1, (groups, -1)), -torch.inf)
        score = logit.softmax(-1).sum(2)
        for mine, theirs in zip(got[:2], expected[:2], strict=True):
            for row in range(2):
                for g in range(groups):
                    a, b = (x[row, g][x[row, g] >= 0].long() for x in (mine, theirs))
                    assert len(a) == len(set(a.tolist())) == len(b)
                    a, b = (score[row, g, x].sort().values for x in (a, b))
                    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


@needs_native
@pytest.mark.parametrize("bits", [4, 8])
def test_an_outlier_in_a_query_costs_no_more_than_rounding_it_to_16_bits(bits):
    data = clustered(4, 2, 64, clusters=50)
    data.q[..., 7] *= 1000
    codes = coded(data.centroid, bits)
    counts = data.num_clusters, *(torch.tensor([5, 5]) for _ in "12")
    args = (data.q, codes, data.pool.size_BGC, *counts, 1.0, 5, 5)
    exists = (data.pool.size_BGC > 0).repeat_interleave(2, 1)  # logits of others are undefined
    error = (cluster_select.form("cpu")(*args)[2] - cluster_select.reference(*args)[2]).abs()
    step = data.q.abs().amax(-1) / 32767  # of a query's numbers; half of it for each dim at most
    norm = (decode(codes) - codes.mean_BGD[:, :, None]).abs().sum(-1).amax(-1)
    limit = step * norm.repeat_interleave(2, 1)
    assert exists.any() and (error <= limit[..., None])[exists].all()


@needs_native
@pytest.mark.parametrize(("bits", "dim", "dtype"), [(0, 64, torch.bfloat16), *CASES])
def test_wave_attention_on_codes(bits, dim, dtype, poisoned_empty):
    """``bits`` 0: value sums as they are."""
    for heads, groups in ((4, 2), (7, 1), (9, 3)):
        data = clustered(heads, groups, dim, dtype=dtype, clusters=60, retrieved=9, estimated=30)
        size = data.pool.size_BGC
        total = data.value_sum.float().nan_to_num(0).sum(2)
        values = data.value_sum
        if bits:
            values = coded(data.value_sum.float() / size.clamp_min(1)[..., None], bits)
        args = (data.q, data.steady, data.pool, data.retrieved, dim**-0.5)
        apart = torch.randint(-1, 50, (2, groups, 5)).int()
        for rest in ((), (total,), (total, apart)):
            estimation = Estimation(data.estimated, data.logit, values, *rest)
            got = wave_attention.form("cpu")(*args, estimation=estimation)
            expected = wave_attention.reference(*args, estimation=estimation)
            rtol = {torch.float32: 2e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
            torch.testing.assert_close(got[0], expected[0], atol=rtol, rtol=rtol)
            torch.testing.assert_close(got[1], expected[1], atol=1e-4, rtol=1e-4)


def test_the_rest_enters_through_one_mean_value():
    """The reference against a loop over clusters."""
    data = clustered(4, 2, 16, clusters=20, steady=3)
    size, total = data.pool.size_BGC, data.value_sum.float().nan_to_num(0).sum(2)
    estimation = Estimation(data.estimated, data.logit, data.value_sum, total)
    args = (data.q, data.steady, data.pool, data.retrieved, 0.4)
    out, lse = wave_attention.reference(*args, estimation=estimation)
    part, part_lse = wave_attention.reference(*args, estimation=estimation._replace(total_BGD=None))
    for row in range(2):
        for head in range(4):
            g = head // 2
            named = {*data.retrieved[row, g].tolist(), *data.estimated[row, g].tolist()}
            rest = [c for c in range(size.shape[-1]) if c not in named and size[row, g, c] > 0]
            tokens = sum(int(size[row, g, c]) for c in rest)
            mean = sum(data.value_sum[row, g, c].float() for c in rest) / tokens
            mass = sum(int(size[row, g, c]) * math.exp(data.logit[row, head, c]) for c in rest)
            known = math.exp(part_lse[row, head])
            expected = (known * part[row, head] + mass * mean) / (known + mass)
            torch.testing.assert_close(out[row, head], expected, atol=1e-5, rtol=1e-4)
            assert lse[row, head].item() == pytest.approx(math.log(known + mass), abs=1e-4)


@pytest.mark.parametrize(
    ("limit", "retrieved", "estimated"),
    [(None, [0, 2], [3]), (1, [1], [2]), (51, [1], [2]), (52, [1, 2], [0]), (99, [1, 2], [0])],
)
def test_with_a_limit_clusters_count_for_their_tokens(limit, retrieved, estimated):
    """A large cluster of middling logit goes before one token of a good one, whatever it takes."""
    q, centroid = torch.ones(1, 1, 32), torch.zeros(1, 1, 4, 32)
    centroid[0, 0, :, 0] = torch.tensor([1.0, 0.0, 0.9, 0.5])
    size = torch.tensor([[[1, 50, 2, 1]]], dtype=torch.int32)
    one = [torch.tensor([n]) for n in (4, 2, 1)]
    limits = {"max_retrieved": 2, "max_estimated": 1}
    limits["token_limit_B"] = None if limit is None else torch.tensor([limit])
    for form in (cluster_select, cluster_select.reference):
        got = form(q, centroid, size, *one, 1.0, **limits)
        assert sorted(set(got[0][0, 0].tolist()) - {-1}) == retrieved
        assert got[1][0, 0].tolist() == estimated
