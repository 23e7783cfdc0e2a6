"""Wave attention of one decode step with its cache: look up, attend, admit what was missed."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from retrobench_kernels.dispatch import implementation
from retrobench_kernels.wave_attention.zones import Estimation, PageCache, Pool, Steady


class CacheTable(NamedTuple):
    """A page cache with its bookkeeping, all of it on the device of the queries.

    ``slot_BGP``: page to slot or -1; ``page_BGQ``: slot to page or -1; ``stamp_BGQ``: step of last
    use, -1: free; ``step_1``: this step, counted up by the caller (all int32). ``tally_BG2``
    (int64) gathers page hits and misses.
    """

    slot_BGP: Tensor
    page_BGQ: Tensor
    stamp_BGQ: Tensor
    step_1: Tensor
    tally_BG2: Tensor
    k_BGQD: Tensor
    v_BGQD: Tensor
    page_tokens: int

    @property
    def view(self) -> PageCache:
        """What attention reads."""
        return PageCache(self.slot_BGP, self.k_BGQD, self.v_BGQD, self.page_tokens)


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
) -> tuple[Tensor, Tensor]:
    """``(o_BHD, lse_BH)`` of ``wave_attention``; the table and the cached pages change in place."""
    run = implementation("wave_step", q_BHD).wave_step
    return run(
        q_BHD, steady, pool, retrieved_BGR, scale,
        table=table, estimation=estimation, softcap=softcap,
    )  # fmt: skip
