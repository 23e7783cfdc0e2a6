"""A cached step of wave attention on a GPU: list pages, look up and admit, attend and copy.

The attention reads a missed page once, from the pool, and writes it to its slot on the way.
"""

from __future__ import annotations

from torch import Tensor

from retrobench_kernels.dispatch import takes
from retrobench_kernels.page_lru.triton import page_step
from retrobench_kernels.triton_common import unsupported
from retrobench_kernels.wave_attention.triton import attend_pages, page_list
from retrobench_kernels.wave_step.naive import StepArgs

__all__ = ["unsupported", "wave_step"]


@takes(StepArgs)
def wave_step(args: StepArgs, *, splits: int | None = None) -> tuple[Tensor, Tensor]:
    """See ``naive.py``."""
    pages = page_list(args.pool, args.retrieved_BGR, args.table.view)
    source = page_step(pages.page_BGN, pages.count_BG, args.table)
    return attend_pages(args.attention, pages._replace(source_BGN=source), splits)
