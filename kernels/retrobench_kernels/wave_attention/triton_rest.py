"""The part of ``estimate_rest`` that reads vectors, on a GPU: the sum of the named clusters."""

import triton.language as tl
from torch import Tensor

from retrobench_kernels import triton_common as common
from retrobench_kernels.codes import Codes
from retrobench_kernels.triton_common import head_stride
from retrobench_kernels.wave_attention import naive
from retrobench_kernels.wave_attention.zones import Estimation


@common.kernel
def named_sum_kernel(
    vector_ptr, code_scale_ptr, mean_ptr, size_ptr, named_ptr, sum_ptr,
    clusters, vector_stride, code_scale_stride, size_stride,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Sum over every ``parts``-th tile of one KV head's clusters; only named ones are read."""
    head = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    dim = tl.arange(0, DIM_PAD)
    total = tl.zeros([DIM_PAD], tl.float32)
    vector_ptr += head * vector_stride
    for start in range(part * TILE, clusters, parts * TILE):
        cluster = start + tl.arange(0, TILE)
        inside = cluster < clusters
        keep = tl.load(named_ptr + head * clusters + cluster, mask=inside, other=0) != 0
        if BITS:
            codes = vector_ptr, code_scale_ptr + head * code_scale_stride, mean_ptr + head * DIM
            value = common.load_coded_rows(*codes, cluster, keep, DIM, DIM_PAD, BITS)
            size = tl.load(size_ptr + head * size_stride + cluster, mask=keep, other=0)
            value *= size.to(tl.float32)[:, None]
        else:
            value = common.load_rows(vector_ptr, cluster, keep, DIM, DIM_PAD).to(tl.float32)
        total += tl.sum(value, 0)
    tl.store(sum_ptr + (head * parts + part) * DIM + dim, total, mask=dim < DIM)


def named_sum(estimation: Estimation, size_BGC: Tensor, named_BGC: Tensor) -> Tensor:
    """As the naive form."""
    vectors = estimation.value_sum_BGCD
    if isinstance(vectors, Codes) and not vectors.whole_blocks:
        return naive.named_sum(estimation, size_BGC, named_BGC)
    assert estimation.total_BGD is not None
    numbers, code_scale, mean, bits = common.vector_arguments(vectors)
    batch, groups, dim = estimation.total_BGD.shape
    parts = common.num_splits(batch * groups, named_BGC.device)
    sums = estimation.total_BGD.new_empty(batch, groups, parts, dim)
    named_sum_kernel[(batch * groups, parts)](
        numbers, code_scale, mean, size_BGC, named_BGC.byte(), sums,
        size_BGC.shape[-1], head_stride(numbers), head_stride(code_scale), head_stride(size_BGC),
        TILE=32, BITS=bits, **common.row_constants(dim), num_warps=4,
    )  # fmt: skip
    return sums.sum(2)
