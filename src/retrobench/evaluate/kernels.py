"""Each kernel of a decode step at a model's shape: inputs, parity with the naive form, bytes.

Inputs are random: normal queries, keys and values, and a ragged index of clusters of 8 to 24
tokens with RetroInfer's shares of retrieved and estimated clusters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from retrobench_kernels.cluster_select import cluster_select
from retrobench_kernels.dense_decode import dense_decode
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from retrobench_kernels.wave_attention import CacheTable, Estimation, Pool, Steady, wave_attention
from retrobench_kernels.wave_step import wave_step
from torch import Tensor

from retrobench.tasks.speed import SHAPES

RETRIEVED_FRAC, ESTIMATED_FRAC, CACHED_FRAC = 0.018, 0.232, 0.05
STEADY_TOKENS = 580  # 4 sinks, 64 local tokens, half of the 1024 that wait for a segment
PAGE_TOKENS, SEGMENT_TOKENS, ITERATIONS = 8, 8192, 10
TOLERANCE = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 1e-4}  # relative, of an output
SETS_TOLERANCE, SCATTER_TOLERANCE = 0.01, 0.01  # other clusters than the naive form's; looser ones


@dataclass(slots=True)
class Case:
    """What is timed: a function, the bytes that ``calls`` calls in it must move each, parity."""

    run: Callable[[], Any]
    num_bytes: int
    calls: int = 1
    flops: int = 0
    parity_error: float | None = None
    check: Callable[[], None] | None = None  # raises, after the timed calls


class KernelInputs:
    """Random inputs of one layer."""

    def __init__(self, shape: str, context: int, batch: int, dtype: str, device: str) -> None:
        self.heads, self.groups, self.dim = SHAPES[shape]
        self.context, self.batch, self.dtype, self.device = context, batch, dtype, device
        self.scale, self.head = self.dim**-0.5, (batch, self.groups)
        self.clusters = context // 16
        self.retrieved = max(1, round(RETRIEVED_FRAC * self.clusters))
        self.estimated = round(ESTIMATED_FRAC * self.clusters)
        self.q_BHD = self.normal(batch, self.heads, self.dim)
        self.vector_bytes = self.dim * self.q_BHD.element_size()

    def normal(self, *size: int) -> Tensor:
        """Normal values."""
        return torch.randn(*size, dtype=getattr(torch, self.dtype), device=self.device)

    def ints(self, *size: int, fill: int) -> Tensor:
        """A constant int32 tensor."""
        return torch.full(size, fill, dtype=torch.int32, device=self.device)

    @cached_property
    def pool(self) -> Pool:
        """Keys and values in packed clusters, and the pages of each in a cache."""
        size = torch.randint(8, 25, (*self.head, self.clusters), device=self.device).int()
        pages = (size + PAGE_TOKENS - 1) // PAGE_TOKENS
        first, page = ((x.cumsum(-1) - x).int() for x in (size, pages))
        tokens = int(size.sum(-1).max()) + PAGE_TOKENS - 1
        k, v = (self.normal(*self.head, tokens, self.dim) for _ in "kv")
        return Pool(k, v, first, size, page)

    @cached_property
    def steady(self) -> Steady:
        """Tokens that are always attended."""
        k, v = (self.normal(*self.head, STEADY_TOKENS, self.dim) for _ in "kv")
        return Steady(k, v, self.ints(self.batch, fill=STEADY_TOKENS))

    @cached_property
    def select(self) -> tuple[tuple[Any, ...], dict[str, int]]:
        """Arguments of ``cluster_select``."""
        counts = (self.clusters, self.retrieved, self.estimated)
        centroid_BGCD = self.normal(*self.head, self.clusters, self.dim)
        counts_B = [self.ints(self.batch, fill=count) for count in counts]
        limits = {"max_retrieved": self.retrieved, "max_estimated": self.estimated}
        return (self.q_BHD, centroid_BGCD, self.pool.size_BGC, *counts_B, self.scale), limits

    @cached_property
    def zones(self) -> tuple[tuple[Any, ...], Estimation]:
        """Arguments of ``wave_attention``."""
        arguments, limits = self.select
        retrieved, estimated, logit = cluster_select.reference(*arguments, **limits)
        value_sum_BGCD = self.normal(*self.head, self.clusters, self.dim)
        exact = (self.q_BHD, self.steady, self.pool, retrieved, self.scale)
        return exact, Estimation(estimated, logit, value_sum_BGCD)

    def attention_bytes(self) -> int:
        """Bytes of the vectors that ``wave_attention`` must read."""
        retrieved = self.zones[0][3].clamp_min(0).long()
        heads = self.batch * self.groups
        exact = int(self.pool.size_BGC.gather(-1, retrieved).sum()) + heads * STEADY_TOKENS
        return (2 * exact + heads * self.estimated) * self.vector_bytes

    def table(self) -> CacheTable:
        """An empty block cache of the pool."""
        pages = -(-self.pool.k_BGSD.shape[2] // PAGE_TOKENS) + self.clusters
        slots = max(1, round(CACHED_FRAC * self.context / PAGE_TOKENS))
        k, v = (self.normal(*self.head, slots * PAGE_TOKENS, self.dim) for _ in "kv")
        tally = torch.zeros(*self.head, 4, dtype=torch.int64, device=self.device)
        slot, page, stamp = (self.ints(*self.head, n, fill=-1) for n in (pages, slots, slots))
        return CacheTable(slot, page, stamp, self.ints(1, fill=0), tally, k, v, PAGE_TOKENS)


def _case(
    error: float, tolerance: float, run: Callable[[], Any], num_bytes: int, **more: Any
) -> Case:
    """A case whose parity holds; RuntimeError otherwise."""
    if not error <= tolerance:  # also NaN
        raise RuntimeError(f"differs from its naive form by {error:.2g}: no time is taken")
    return Case(run, num_bytes, parity_error=error, **more)


def _relative(got: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def _cluster_select(inputs: KernelInputs) -> Case:
    arguments, limits = inputs.select
    got = cluster_select(*arguments, **limits)[0]
    expected = cluster_select.reference(*arguments, **limits)[0]
    other = 1 - float((got[..., :, None] == expected[..., None, :]).any(-1).float().mean())
    num_bytes = inputs.batch * inputs.groups * inputs.clusters * (inputs.vector_bytes + 4)
    return _case(other, SETS_TOLERANCE, partial(cluster_select, *arguments, **limits), num_bytes)


def _wave_attention(inputs: KernelInputs) -> Case:
    exact, estimation = inputs.zones
    got = wave_attention(*exact, estimation=estimation)[0]
    error = _relative(got, wave_attention.reference(*exact, estimation=estimation)[0])
    run = partial(wave_attention, *exact, estimation=estimation)
    return _case(error, TOLERANCE[inputs.dtype], run, inputs.attention_bytes())


def _wave_step(inputs: KernelInputs) -> Case:
    """Every page is cached once the first call is over."""
    (exact, estimation), ours, naive = inputs.zones, inputs.table(), inputs.table()

    def step(run: Callable[..., tuple[Tensor, Tensor]], table: CacheTable) -> Tensor:
        table.step_1.add_(1)
        return run(*exact, cache=table, estimation=estimation)[0]

    errors = []
    for _ in range(2):  # misses, then hits
        errors.append(_relative(step(wave_step, ours), step(wave_step.reference, naive)))
        cached = (ours.slot_BGP >= 0).ne(naive.slot_BGP >= 0)
        errors.append(float(cached.float().mean()))
    worst, run = float(torch.tensor(errors).max()), partial(step, wave_step, ours)
    return _case(worst, TOLERANCE[inputs.dtype], run, inputs.attention_bytes())


def _dense_decode(inputs: KernelInputs) -> Case:
    k, v = (inputs.normal(*inputs.head, inputs.context, inputs.dim) for _ in "kv")
    got = dense_decode(inputs.q_BHD, k, v, inputs.scale)[0]
    # the naive form holds float32 copies: one row of it
    expected = dense_decode.reference(inputs.q_BHD[:1], k[:1], v[:1], inputs.scale)[0]
    run = partial(dense_decode, inputs.q_BHD, k, v, inputs.scale)
    return _case(_relative(got[:1], expected), TOLERANCE[inputs.dtype], run, 2 * k.nbytes)


def _segmented_kmeans(inputs: KernelInputs) -> Case:
    """One segment; bytes are its keys, once per iteration."""
    tokens = min(inputs.context, SEGMENT_TOKENS)
    k = inputs.normal(inputs.batch * inputs.groups, tokens, inputs.dim)
    arguments = k, tokens // 16, 1, ITERATIONS
    scatter = []
    for form in (segmented_kmeans, segmented_kmeans.reference):
        centroid, label = form(*arguments)
        own = centroid.gather(1, label.long()[..., None].expand_as(k))
        scatter.append(float((k.float() - own).norm()))
    looser = scatter[0] / scatter[1] - 1
    run = partial(segmented_kmeans, *arguments)
    flops = 2 * ITERATIONS * k.numel() * (tokens // 16)
    return _case(looser, SCATTER_TOLERANCE, run, ITERATIONS * k.nbytes, flops=flops)


KERNELS: dict[str, Callable[[KernelInputs], Case]] = {
    "cluster_select": _cluster_select,
    "wave_attention": _wave_attention,
    "wave_step": _wave_step,
    "dense_decode": _dense_decode,
    "segmented_kmeans": _segmented_kmeans,
}
