"""Arguments of wave attention: the parts of the context that one call reads."""

from typing import NamedTuple

from torch import Tensor

from retrobench_kernels.codes import Codes


class Steady(NamedTuple):
    """Tokens that are always attended exactly: the first ``count_B`` (int32) of each row."""

    k_BGWD: Tensor
    v_BGWD: Tensor
    count_B: Tensor


class Pool(NamedTuple):
    """All indexed tokens in cluster order: cluster c holds ``first <= s < first + size`` (int32).

    The pages of a cache are those of its clusters: page ``page[c] + j`` has the tokens of cluster c
    from the j-th ``page_tokens`` on. So tokens are packed, and no page has those of two clusters.
    Without ``page_BGC``, clusters begin at multiples of the page size.
    """

    k_BGSD: Tensor
    v_BGSD: Tensor
    first_BGC: Tensor
    size_BGC: Tensor
    page_BGC: Tensor | None = None

    def first_page(self, page_tokens: int) -> Tensor:
        """Number of each cluster's first page, int32 ``BGC``."""
        return self.first_BGC // page_tokens if self.page_BGC is None else self.page_BGC


class Pages(NamedTuple):
    """Distinct pages that a step asks for, all int32: ``page_BGN`` (-1 padded), how many tokens of
    each, and where in the pool each begins."""

    page_BGN: Tensor
    tokens_BGN: Tensor
    start_BGN: Tensor


class Estimation(NamedTuple):
    """Clusters attended through their centroid: ``cluster_BGE`` (int32, -1: none).

    A cluster adds ``size * exp(logit)`` to the denominator and ``exp(logit) * value_sum`` to the
    numerator of every query head. ``logit_BHC`` is float32 (of the centroids, plus any correction),
    ``value_sum_BGCD`` in the model's dtype or float32; as ``Codes`` it holds mean values.

    With ``total_BGD``, the sum of the values of all clusters (float32), those that are neither
    retrieved nor estimated enter, too, all with one mean value: what the named ones leave of it.
    ``apart_BGR`` names more of them, which another call attends.
    """

    cluster_BGE: Tensor
    logit_BHC: Tensor
    value_sum_BGCD: Tensor | Codes
    total_BGD: Tensor | None = None
    apart_BGR: Tensor | None = None


class PageCache(NamedTuple):
    """Block cache: copies of some pages. Page p is in slot ``slot_BGP[p]`` (int32), or -1: in none.

    Slot s covers tokens ``s * page_tokens`` and on of the cache tensors.
    """

    slot_BGP: Tensor
    k_BGQD: Tensor
    v_BGQD: Tensor
    page_tokens: int


class CacheTable(NamedTuple):
    """A page cache with its bookkeeping, all of it on the device of the queries.

    ``slot_BGP``: page to slot or -1; ``page_BGQ``: slot to page or -1; ``stamp_BGQ``: step of last
    use, -1: free; ``step_1``: this step, counted up by the caller (all int32). ``tally_BG4``
    (int64) gathers page hits, misses and evictions, and the tokens of missed pages.
    """

    slot_BGP: Tensor
    page_BGQ: Tensor
    stamp_BGQ: Tensor
    step_1: Tensor
    tally_BG4: Tensor
    k_BGQD: Tensor
    v_BGQD: Tensor
    page_tokens: int

    @property
    def view(self) -> PageCache:
        """What attention reads."""
        return PageCache(self.slot_BGP, self.k_BGQD, self.v_BGQD, self.page_tokens)


class WaveArgs(NamedTuple):
    """Arguments of ``wave_attention``; ``retrieved_BGR`` lists clusters (int32, -1: none).

    ``wave_step`` takes the same, with a ``CacheTable`` that it keeps up.
    """

    q_BHD: Tensor
    steady: Steady
    pool: Pool
    retrieved_BGR: Tensor
    scale: float
    estimation: Estimation | None = None
    cache: PageCache | CacheTable | None = None
    softcap: float = 0.0
