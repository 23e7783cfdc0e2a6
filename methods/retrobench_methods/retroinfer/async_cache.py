"""Work on the cache aside: asynchronous updates, overlapped misses, and prefetch by rank.

The first is the paper's (4.3), the others are ours; all are off by default. None changes what is
attended.
"""

import torch
from retrobench_kernels.wave_attention import Estimation, Pages, Pool, Steady, wave_attention
from retrobench_kernels.wave_step import cluster_pages
from torch import Tensor

from retrobench.engine.attention.parts import merge
from retrobench.memory.page_cache import PageCache
from retrobench.memory.prefetch import Prefetcher
from retrobench.memory.selection import listed
from retrobench_methods.retroinfer.selection import ClusterSelection
from retrobench_methods.retroinfer.weights import rank_scores


class CacheFiller:
    """Fills the cache on a thread of its own (on a GPU: a side stream too).

    One job per layer; ``finish`` must be called before a layer's cache is used again.
    """

    def __init__(self, cache: PageCache, device: str) -> None:
        self.cache = cache
        self.worker = Prefetcher(device, enabled=True)

    def attend(
        self,
        layer: int,
        exact: tuple[Tensor, Steady, Pool, Tensor, float],
        pages: Pages,
        *,
        estimation: Estimation | None,
        softcap: float,
    ) -> tuple[Tensor, Tensor]:
        """``wave_attention`` (``exact`` are its first arguments) over looked-up ``pages``.

        Those that were missed are admitted.

        They come in while steady zone, estimates and hits are attended; hits stay where they are.
        Three parts over disjoint sets, merged by log-sum-exp.
        """
        q_BHD, steady, pool, retrieved_BGR, scale = exact
        if estimation is not None:
            estimation = estimation._replace(apart_BGR=retrieved_BGR)
        cache, (page_BGN, tokens_BGN, start_BGN) = self.cache, pages
        size = cache.size.page_tokens
        view = cache.view(layer)
        slot_BGN = view.slot_BGP.gather(-1, page_BGN.clamp_min(0).long())  # before it changes
        hit = (page_BGN >= 0) & (slot_BGN >= 0)

        def admit() -> tuple[Tensor, ...]:
            cache.admit(layer, pool.k_BGSD, pool.v_BGSD, read=False)
            return pages

        self.worker.submit(layer, admit)
        nothing = page_BGN[..., :0]
        part = wave_attention(
            q_BHD, steady, pool, nothing, scale, estimation=estimation, softcap=softcap
        )
        no_steady = steady._replace(count_B=torch.zeros_like(steady.count_B))
        held = Pool(view.k_BGQD, view.v_BGQD, slot_BGN * size, tokens_BGN)
        hits = wave_attention(q_BHD, no_steady, held, _where(hit), scale, softcap=softcap)
        self.finish(layer)
        whole = Pool(pool.k_BGSD, pool.v_BGSD, start_BGN, tokens_BGN, page_BGN)
        missed = _where((page_BGN >= 0) & ~hit)
        view = cache.view(layer)  # a page that found no room is still read from the pool
        late = wave_attention(q_BHD, no_steady, whole, missed, scale, cache=view, softcap=softcap)
        out, lse = merge(merge(_float(part), _float(hits)), _float(late))
        return out.to(q_BHD.dtype), lse

    def update(self, layer: int, pages: Pages, pool: Pool) -> None:
        """Start to admit what the last lookup (of ``pages``) missed; attention has read it."""

        def job() -> tuple[Tensor, ...]:
            self.cache.admit(layer, pool.k_BGSD, pool.v_BGSD)
            return pages  # alive until the device is done

        self.worker.submit(layer, job)

    def prefetch(
        self, layer: int, selection: ClusterSelection, pool: Pool, count: int, weigh_sizes: bool
    ) -> None:
        """Start to copy the pages of the ``count`` clusters that rank next."""

        def job() -> tuple[Tensor, ...]:
            following = next_ranked(selection, pool.size_BGC, count, weigh_sizes)
            pages = cluster_pages(pool, following, self.cache.size.page_tokens)
            self.cache.prefetch(layer, pages, pool.k_BGSD, pool.v_BGSD)
            return selection.chosen_BGN, selection.logit_BHC  # alive until the device is done

        self.worker.submit(layer, job)

    def finish(self, layer: int) -> None:
        """Wait for a layer's job, if there is one."""
        self.worker.take(layer)

    def close(self) -> None:
        """End the thread."""
        self.worker.close()


def next_ranked(
    selection: ClusterSelection, size_BGC: Tensor, count: int, weigh_sizes: bool = False
) -> Tensor:
    """The ``count`` best clusters that are not retrieved, int32, -1 padded.

    By ``cluster_select``'s rank; where ``second_order`` is on, by the corrected logits.
    """
    clusters = size_BGC.shape[-1]
    score_BGC = rank_scores(selection.logit_BHC, size_BGC, weigh_sizes)
    out_BGC = (size_BGC == 0) | listed(selection.chosen_BGN, clusters)
    value, cluster = score_BGC.masked_fill(out_BGC, -1).topk(min(count, clusters), -1)
    return cluster.masked_fill(value < 0, -1).int()


def _where(keep_BGN: Tensor) -> Tensor:
    """Indexes of the kept entries, -1 for the others, int32."""
    index = torch.arange(keep_BGN.shape[-1], device=keep_BGN.device, dtype=torch.int32)
    return torch.where(keep_BGN, index, -1)


def _float(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return part[0].float(), part[1]
