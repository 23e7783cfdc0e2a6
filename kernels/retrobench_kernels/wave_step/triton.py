"""A cached step of wave attention on a GPU: list pages, look up and admit, attend and copy.

The attention reads a missed page once, from the pool, and writes it to its slot on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from retrobench_kernels.page_lru.triton import page_step
from retrobench_kernels.triton_common import unsupported
from retrobench_kernels.wave_attention.triton import attend_pages, page_list
from retrobench_kernels.wave_attention.zones import Estimation, Pool, Steady

if TYPE_CHECKING:
    from retrobench_kernels.wave_step import CacheTable

__all__ = ["unsupported", "wave_step"]


def wave_step(
    q_BHD: Tensor,
    steady: Steady,
    pool: Pool,
    retrieved_BGR: Tensor,
    scale: float,
    *,
    table: CacheTable,
    estimation: Estimation | None = None,
    softcap: float = 0.0,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``__init__.py``."""
    pages = page_list(pool, retrieved_BGR, table.view)
    source = page_step(
        pages.page_BGN, pages.count_BG, table.slot_BGP, table.page_BGQ, table.stamp_BGQ,
        table.step_1, table.tally_BG2,
    )  # fmt: skip
    return attend_pages(
        q_BHD, steady, pool, pages._replace(source_BGN=source), scale,
        estimation=estimation, cache=table.view, softcap=softcap, splits=splits,
    )  # fmt: skip
