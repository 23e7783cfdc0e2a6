"""Small parity checks that a freshly built library must pass before it is used."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from retrobench_kernels.cluster_select import cpu as select_cpu
from retrobench_kernels.cluster_select import naive as select_naive
from retrobench_kernels.dense_decode import cpu as dense_cpu
from retrobench_kernels.dense_decode import naive as dense_naive
from retrobench_kernels.gap_scores import cpu as gaps_cpu
from retrobench_kernels.gap_scores import naive as gaps_naive
from retrobench_kernels.native import DTYPES
from retrobench_kernels.page_select import cpu as pages_cpu
from retrobench_kernels.page_select import naive as pages_naive
from retrobench_kernels.wave_attention import cpu as wave_cpu
from retrobench_kernels.wave_attention import naive as wave_naive
from retrobench_kernels.wave_attention.zones import Estimation, Pool, Steady

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def disagreements(library: ctypes.CDLL) -> list[str]:
    """Names of ops that differ from plain torch by more than rounding."""
    generator = torch.Generator().manual_seed(0)
    wrong = []
    for dtype in DTYPES:
        for group in (1, 2, 4):
            for op in (_dense, _wave, _pages):
                if not _close(*op(library, group, dtype, generator), TOLERANCE[dtype]):
                    wrong.append(f"{op.__name__[1:]} {dtype} group {group}")
            if dtype != torch.float16 and not _close(
                *_gaps(library, group, dtype, generator), 1e-4
            ):
                wrong.append(f"gaps {dtype} group {group}")
    return wrong


def _close(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool(torch.allclose(got.float(), expected.float(), atol=tolerance, rtol=tolerance))


def _dense(
    library: ctypes.CDLL, group: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    q, k, v = _random(generator, dtype, (1, 2 * group), (1, 2, 100), (1, 2, 100))
    got, _ = dense_cpu.dense_decode(q, k, v, 0.1, library=library)
    return got, dense_naive.dense_decode(q, k, v, 0.1)[0]


def _wave(
    library: ctypes.CDLL, group: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    shapes = (1, 2 * group), (1, 2, 9), (1, 2, 9), (1, 2, 80), (1, 2, 80), (1, 2, 20), (1, 2, 20)
    q, ks, vs, k, v, centroid, value_sum = _random(generator, dtype, *shapes)
    size = torch.full((1, 2, 20), 4, dtype=torch.int32)
    pool = Pool(k, v, size.cumsum(-1).int() - size, size)
    steady = Steady(ks, vs, torch.tensor([9], dtype=torch.int32))
    clusters, exact, guessed = (torch.tensor([n], dtype=torch.int32) for n in (20, 5, 9))
    counts = {"max_retrieved": 5, "max_estimated": 9}
    outputs = []
    both: tuple[tuple[Any, Any, dict[str, Any]], ...] = (
        (select_cpu.cluster_select, wave_cpu.wave_attention, {"library": library}),
        (select_naive.cluster_select, wave_naive.wave_attention, {}),
    )
    for select, wave, more in both:
        best, rest, logit = select(
            q, centroid, size, clusters, exact, guessed, 0.1, **counts, **more
        )
        estimation = Estimation(rest, logit, value_sum)
        outputs.append(wave(q, steady, pool, best, 0.1, estimation=estimation, **more)[0])
    return outputs[0], outputs[1]


def _pages(
    library: ctypes.CDLL, group: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    low, q = (  # whole numbers: equal in any order of summation
        torch.randint(-3, 4, (1, n, d, 96), generator=generator).to(dtype)
        for n, d in ((2, 40), (2 * group, 1))
    )
    counts = torch.tensor([40]), torch.tensor([9])
    args = (q[:, :, 0], low, low + 1, *counts)
    got = pages_cpu.page_select(*args, max_selected=9, newest=True, library=library)
    expected = pages_naive.page_select(*args, max_selected=9, newest=True)
    return got.sort(-1).values, expected.sort(-1).values


def _gaps(
    library: ctypes.CDLL, group: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    q, key = (  # whole numbers: equal in any order of summation
        torch.randint(-3, 4, (1, 2, n, 11), generator=generator).to(dtype) for n in (group, 1500)
    )
    exists = torch.arange(1500).expand(1, 2, -1) > 2
    got = gaps_cpu.gap_scores(q, key, exists, 0.5, per_head=False, library=library)
    return got, gaps_naive.gap_scores(q, key, exists, 0.5, per_head=False)


def _random(
    generator: torch.Generator, dtype: torch.dtype, *shapes: tuple[int, ...]
) -> list[Tensor]:
    return [torch.randn(*shape, 96, generator=generator).to(dtype) for shape in shapes]
