"""What the Triton kernels share: rows, dot, running softmax, the merge of splits, launch helpers.

Conventions: one program serves one (row, KV head) pair ``h = row * G + head``; the GQA group is
padded to at least 16 query rows because ``tl.dot`` needs them; sizes that change during decoding
are read from device memory, so that a captured CUDA graph stays valid.
"""

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrobench_kernels.codes import Codes

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")
NEVER = tl.constexpr(-1e30)  # running maximum before anything was seen; finite: no inf - inf


def kernel(function: Callable[..., Any]) -> Any:
    """``triton.jit`` for a kernel that is launched, compiled once for its constants and dtypes.

    Counts and capacities differ from call to call. Triton would compile anew for each that is 1 or
    a multiple of 16, in the middle of a timed step; strides (``*_stride``) keep that, for wide
    loads.
    """
    counts = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.annotation is inspect.Parameter.empty
        and not name.endswith(("_ptr", "_stride"))
    ]
    return triton.jit(function, do_not_specialize=counts)


@triton.jit
def dot(a, b):
    """Matrix product in float32; float32 operands are not rounded to tf32.

    The interpreter's bfloat16 product is wrong without any error, hence the cast there.
    """
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def load_rows(base_ptr, row, keep, DIM: tl.constexpr, DIM_PAD: tl.constexpr):
    """Rows of DIM values, ``[rows, DIM_PAD]``; 0 in the padding and where not kept."""
    dim = tl.arange(0, DIM_PAD)
    mask = keep[:, None] & (dim < DIM)[None, :]
    return tl.load(base_ptr + row[:, None] * DIM + dim[None, :], mask=mask, other=0.0)


@triton.jit
def load_coded_rows(
    code_ptr, scale_ptr, mean_ptr, row, keep,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """``load_rows`` of ``Codes``, float32. A byte of two 4-bit numbers is asked for twice, and the
    second time is in the cache: the dims of a block are 16 in the low bits, then 16 in the high."""
    dim = tl.arange(0, DIM_PAD)
    mask = keep[:, None] & (dim < DIM)[None, :]
    if BITS == 4:
        place = dim // 32 * 16 + dim % 16
        byte = tl.load(code_ptr + row[:, None] * (DIM // 2) + place[None, :], mask=mask, other=0)
        byte = byte.to(tl.int32)
        number = tl.where((dim % 32 < 16)[None, :], (byte << 28) >> 28, byte >> 4)
        block = tl.arange(0, DIM_PAD // 32)  # of dims that share a scale
        there = keep[:, None] & (block < DIM // 32)[None, :]
        at = row[:, None] * (DIM // 32) + block[None, :]
        scale = tl.load(scale_ptr + at, mask=there, other=0.0)
        scale = tl.broadcast_to(scale[:, :, None], [row.shape[0], DIM_PAD // 32, 32])
        scale = tl.reshape(scale, [row.shape[0], DIM_PAD])
    else:
        number = tl.load(code_ptr + row[:, None] * DIM + dim[None, :], mask=mask, other=0)
        scale = tl.load(scale_ptr + row, mask=keep, other=0.0)[:, None]
    mean = tl.load(mean_ptr + dim, mask=dim < DIM, other=0.0)
    value = number.to(tl.float32) * scale.to(tl.float32) + mean[None, :]
    return tl.where(mask, value, 0.0)


@triton.jit
def store_rows(base_ptr, row, keep, value, DIM: tl.constexpr):
    """The kept rows of ``value[rows, padded dim]``."""
    dim = tl.arange(0, value.shape[1])
    mask = keep[:, None] & (dim < DIM)[None, :]
    tl.store(base_ptr + row[:, None] * DIM + dim[None, :], value, mask=mask)


@triton.jit
def soft_cap(logit, cap, CAPPED: tl.constexpr):
    """``cap * tanh(logit / cap)`` where asked for (Gemma-2)."""
    if CAPPED:
        logit = cap * (1.0 - 2.0 / (tl.exp(2.0 * logit / cap) + 1.0))
    return logit


@triton.jit
def fresh_softmax(ROWS: tl.constexpr, DIM_PAD: tl.constexpr):
    """Running softmax before anything was seen: maximum, denominator, weighted values."""
    top = tl.full([ROWS], NEVER, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM_PAD], tl.float32)
    return top, total, acc


@triton.jit
def absorb(top, total, acc, logit, count, value):
    """One more tile of the running softmax.

    ``logit[rows, keys]`` (-inf: absent) and ``value[keys, dim]``; a key stands for ``count[keys]``
    tokens in the denominator (1 for an exact token, the size for an estimated cluster).
    """
    new = tl.maximum(top, tl.max(logit, 1))
    decay = tl.exp(top - new)
    weight = tl.exp(logit - new[:, None])
    total = total * decay + tl.sum(weight * count[None, :], 1)
    acc = acc * decay[:, None] + dot(weight.to(value.dtype), value)
    return new, total, acc


@triton.jit
def load_group(
    q_ptr, h, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr
):  # fmt: skip
    """Query rows of one KV head, zero-padded."""
    row = tl.arange(0, ROWS)
    return load_rows(q_ptr, h * GROUP + row, row < GROUP, DIM, DIM_PAD)


@triton.jit
def absorb_tokens(q, top, total, acc, k, v, keep, scale, cap, CAPPED: tl.constexpr):
    """Absorb one tile of tokens, those that are kept."""
    one = tl.full([k.shape[0]], 1.0, tl.float32)
    logit = soft_cap(dot(q, tl.trans(k)) * scale, cap, CAPPED)
    logit = tl.where(keep[None, :], logit, float("-inf"))
    return absorb(top, total, acc, logit, one, v)


@triton.jit
def exact_tiles(
    q, top, total, acc, k_ptr, v_ptr, start, end, first, last, step, scale, cap,
    DIM: tl.constexpr, TILE: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Absorb tiles ``range(first, last, step)`` of contiguous tokens ``start <= s < end``."""
    for i in range(first, last, step):
        token = i * TILE + tl.arange(0, TILE)
        keep = (token >= start) & (token < end)
        k = load_rows(k_ptr, token, keep, DIM, q.shape[1])
        v = load_rows(v_ptr, token, keep, DIM, q.shape[1])
        top, total, acc = absorb_tokens(q, top, total, acc, k, v, keep, scale, cap, CAPPED)
    return top, total, acc


@triton.jit
def store_split(
    o_ptr, top_ptr, total_ptr, top, total, acc, place, GROUP: tl.constexpr, DIM: tl.constexpr
):  # fmt: skip
    """Keep a split's running softmax for the merge."""
    row = tl.arange(0, acc.shape[0])
    out = place * GROUP + row
    tl.store(top_ptr + out, top, mask=row < GROUP)
    tl.store(total_ptr + out, total, mask=row < GROUP)
    store_rows(o_ptr, out.to(tl.int64), row < GROUP, acc, DIM)


@kernel
def merge_kernel(
    o_ptr, top_ptr, total_ptr, out_ptr, lse_ptr, splits,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, SPLIT_PAD: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp merge of the splits of one query head; nothing attended gives 0 and -inf."""
    head = tl.program_id(0)
    split = tl.arange(0, SPLIT_PAD)
    keep = split < splits
    row = ((head // GROUP) * splits + split) * GROUP + head % GROUP
    top = tl.load(top_ptr + row, mask=keep, other=NEVER)
    total = tl.load(total_ptr + row, mask=keep, other=0.0)
    best = tl.max(top, 0)
    weight = tl.where(total > 0, tl.exp(top - best), 0.0)
    part = load_rows(o_ptr, row.to(tl.int64), keep, DIM, DIM_PAD)
    whole = tl.sum(total * weight, 0)
    out = tl.sum(part * weight[:, None], 0) / tl.where(whole > 0, whole, 1.0)
    dim = tl.arange(0, DIM_PAD)
    tl.store(out_ptr + head * DIM + dim, out.to(out_ptr.dtype.element_ty), mask=dim < DIM)
    lse = tl.where(whole > 0, best + tl.log(tl.where(whole > 0, whole, 1.0)), float("-inf"))
    tl.store(lse_ptr + head, lse)


class Splits:
    """Partial results of a split-KV launch and their merge."""

    def __init__(self, q_BHD: Tensor, num_kv_heads: int, splits: int) -> None:
        batch, heads, dim = q_BHD.shape
        rows = batch * num_kv_heads * splits * (heads // num_kv_heads)
        self.splits, self.group = splits, heads // num_kv_heads
        self.o = torch.empty(rows, dim, dtype=torch.float32, device=q_BHD.device)
        self.top = torch.empty(rows, dtype=torch.float32, device=q_BHD.device)
        self.total = torch.empty_like(self.top)

    def merge(self, q_BHD: Tensor) -> tuple[Tensor, Tensor]:
        """``o_BHD`` in the query's dtype and float32 ``lse_BH``."""
        batch, heads, dim = q_BHD.shape
        out = torch.empty_like(q_BHD)
        lse = torch.empty(batch, heads, dtype=torch.float32, device=q_BHD.device)
        merge_kernel[(batch * heads,)](
            self.o, self.top, self.total, out, lse, self.splits,
            GROUP=self.group, SPLIT_PAD=triton.next_power_of_2(self.splits), **row_constants(dim),
            num_warps=4,
        )  # fmt: skip
        return out, lse


def unsupported(tensor: Tensor) -> str | None:
    """Why the kernels cannot take this tensor (None: they can)."""
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"dtype {tensor.dtype}"
    if tensor.shape[-1] > 256:
        return f"head dim {tensor.shape[-1]} > 256"
    if tensor.shape[-1] * tensor.element_size() % 16:
        return f"rows of {tensor.shape[-1]} values: kernels assume rows aligned to 16 bytes"
    if tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return "compute capability below 8.0"
    return None


def num_splits(programs: int, device: torch.device, most: int = 64) -> int:
    """Splits of the context that fill the device about twice (16 per head where unknown)."""
    if device.type != "cuda":
        return min(most, 3)
    target = 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(most, target // programs))


def row_constants(dim: int) -> dict[str, int]:
    """Constants of a kernel that reads rows of ``dim`` values."""
    return {"DIM": dim, "DIM_PAD": triton.next_power_of_2(dim)}


def group_constants(q_BHD: Tensor, num_kv_heads: int, least: int = 16) -> dict[str, int]:
    """Constants of a kernel that reads the query rows of one KV head, padded for ``tl.dot``."""
    assert q_BHD.is_contiguous()
    group = q_BHD.shape[1] // num_kv_heads
    padded = max(least, triton.next_power_of_2(group))
    return {"GROUP": group, "ROWS": padded, **row_constants(q_BHD.shape[2])}


def addressable(tensor: Tensor, device: torch.device) -> bool:
    """Whether kernels on ``device`` can address the tensor: it is there, or pinned host memory."""
    return tensor.device == device or tensor.is_pinned()


def vector_arguments(vectors: Tensor | Codes) -> tuple[Tensor, Tensor, Tensor, int]:
    """Numbers, scales, means and bits of a kernel's vectors; bits 0: stored as they are."""
    if isinstance(vectors, Tensor):
        return vectors, vectors, vectors, 0
    return *vectors, vectors.bits


def head_stride(tensor: Tensor) -> int:
    """Elements from one (row, KV head) to the next; rows must be dense behind it."""
    groups, stride = tensor.shape[1], tensor.stride(1)
    inner = 1
    for size, step in reversed(list(zip(tensor.shape[2:], tensor.stride()[2:], strict=True))):
        assert size == 1 or step == inner, "tokens of one head must be contiguous"
        inner *= size
    assert tensor.shape[0] == 1 or groups == 1 or tensor.stride(0) == groups * stride
    return tensor.stride(0) if groups == 1 else stride


def tile_tokens(dim: int, dtype: torch.dtype) -> tuple[int, int]:
    """(tokens per tile, pipeline stages) that stay without spills and within shared memory."""
    if dtype.itemsize == 4:  # no tensor cores: products are unrolled into registers
        return 16, 2
    return (64, 3) if triton.next_power_of_2(dim) <= 128 else (32, 2)
