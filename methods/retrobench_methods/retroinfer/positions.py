"""Which token of the prompt or answer each pool slot holds, for probes that want to know."""

import torch
from retrobench_kernels.codes import decode
from retrobench_kernels.wave_attention import Pool, cluster_tokens, value_sums
from torch import Tensor

from retrobench.core.method import Probe
from retrobench.memory.selection import Estimate, SpanView
from retrobench_methods.retroinfer.selection import ClusterSelection
from retrobench_methods.retroinfer.wave_buffer import WaveBuffer
from retrobench_methods.retroinfer.wave_index import WaveIndex


class Positions:
    """Nothing else needs it, so it exists only while such a probe listens."""

    def __init__(self, buffer: WaveBuffer) -> None:
        self.buffer = buffer
        shape = buffer.shape
        size = (len(shape.layers), shape.batch, shape.num_kv_heads, buffer.pool_tokens)
        self.position_LBGS = torch.full(size, -1, device=shape.device)

    def place(self, i: int, row: int, start: int, target_GS: Tensor) -> None:
        """Tokens ``start`` and on went to these pool slots."""
        position = torch.arange(start, start + target_GS.shape[1], device=target_GS.device)
        self.position_LBGS[i, row].scatter_(1, target_GS, position.expand_as(target_GS))

    def report(
        self,
        probe: Probe,
        layer: int,
        index: WaveIndex,
        selection: ClusterSelection,
        view: SpanView,
    ) -> None:
        """Tell the probe which tokens are attended exactly and which through which estimate."""
        i, pool = index.slot[layer], view.pool
        steady = self._steady(i)
        if not selection.chosen_BGN.shape[-1]:
            return probe.selected(layer, steady)
        exact = torch.cat([steady, self._tokens(i, pool, selection.chosen_BGN)], -1)
        estimation = selection.estimation
        if estimation is None or not selection.estimated_BGE.shape[-1] or index.config.second_order:
            return probe.selected(layer, exact)
        chosen = selection.estimated_BGE.clamp_min(0).long()
        vectors = chosen[..., None].expand(-1, -1, -1, index.shape.head_dim)
        gain = index.gain(i)
        estimate = Estimate(
            decode(index.centroids.read_scored(i)).gather(2, vectors),
            value_sums(estimation, pool.size_BGC).gather(2, vectors),
            pool.size_BGC.gather(-1, chosen) * (selection.estimated_BGE >= 0),
            None if gain is None else gain.gather(-1, chosen).float(),
        )
        members = self._tokens(i, pool, selection.estimated_BGE)
        # the probe reads members cluster after cluster, with padding at the end only
        order = (members < 0).int().sort(dim=-1, stable=True).indices
        probe.selected(layer, exact, estimate, members.gather(-1, order))

    def _tokens(self, i: int, pool: Pool, cluster_BGR: Tensor) -> Tensor:
        slot = cluster_tokens(pool.first_BGC, pool.size_BGC, cluster_BGR)
        token = self.position_LBGS[i].gather(-1, slot.clamp_min(0))
        return token.masked_fill(slot < 0, -1)

    def _steady(self, i: int) -> Tensor:
        buffer = self.buffer
        shape, sinks, length = buffer.shape, buffer.config.sink_tokens, buffer.lengths[i]
        nth = torch.arange(max(buffer.count[i]), device=self.position_LBGS.device)
        rows = []
        for pad, count in zip(shape.pad_tokens, buffer.count[i], strict=True):
            late = length - count + nth  # of a row without clusters this is pad + nth
            token = torch.where(nth < sinks, pad + nth, late)
            rows.append(token.masked_fill(nth >= count, -1))
        return torch.stack(rows)[:, None].expand(-1, shape.num_kv_heads, -1)
