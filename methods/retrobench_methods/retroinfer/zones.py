"""The zones of one step, and what a probe hears of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from retrobench_kernels.wave_attention import Pool
from retrobench_kernels.wave_attention.naive import cluster_tokens
from torch import Tensor

from retrobench.core.method import Probe
from retrobench.engine.attention.math import Estimate
from retrobench.memory.placement import vector_bytes

if TYPE_CHECKING:
    from retrobench_methods.retroinfer.wave_buffer import WaveBuffer
    from retrobench_methods.retroinfer.wave_index import WaveIndex


@dataclass(frozen=True, slots=True)
class Zones:
    """Clusters of layer number ``i`` that a step retrieves and estimates (-1 padded, int32).

    ``logit_BHC`` are the logits of the first ``clusters`` centroids, corrected if asked for.
    """

    i: int
    retrieved_BGR: Tensor
    estimated_BGE: Tensor
    logit_BHC: Tensor
    clusters: int

    @property
    def has_clusters(self) -> bool:
        """Whether there is an index at all."""
        return self.clusters > 0


class Positions:
    """Which token of the prompt or answer each pool position holds, for probes that want to know.

    Nothing else needs it, so it exists only while such a probe listens.
    """

    def __init__(self, buffer: WaveBuffer) -> None:
        self.buffer = buffer
        size = buffer.k_LBGSD.shape[:-1]
        self.position_LBGS = torch.full(size, -1, device=buffer.k_LBGWD.device)

    def place(self, i: int, row: int, start: int, target_GS: Tensor) -> None:
        """Tokens ``start`` and on went to these pool positions."""
        position = torch.arange(start, start + target_GS.shape[1], device=target_GS.device)
        self.position_LBGS[i, row].scatter_(1, target_GS, position.expand_as(target_GS))

    def report(self, probe: Probe, layer: int, index: WaveIndex, pool: Pool, zones: Zones) -> None:
        """Tell the probe which tokens are attended exactly and which through which estimate."""
        i = zones.i
        steady = self._steady(i)
        if not zones.has_clusters:
            return probe.selected(layer, steady)
        exact = torch.cat([steady, self._tokens(i, pool, zones.retrieved_BGR)], -1)
        if not zones.estimated_BGE.shape[-1] or index.config.second_order:
            return probe.selected(layer, exact)
        chosen = zones.estimated_BGE.clamp_min(0).long()
        spread = chosen[..., None].expand(-1, -1, -1, index.shape.head_dim)
        assert index.value_sum_LBGCD is not None
        estimate = Estimate(
            index.centroid_LBGCD[i].gather(2, spread),
            index.value_sum_LBGCD[i].gather(2, spread),
            pool.size_BGC.gather(-1, chosen) * (zones.estimated_BGE >= 0),
        )
        members = self._tokens(i, pool, zones.estimated_BGE)
        # the probe reads members cluster after cluster, with padding at the end only
        order = (members < 0).int().sort(dim=-1, stable=True).indices
        probe.selected(layer, exact, estimate, members.gather(-1, order))

    def _tokens(self, i: int, pool: Pool, cluster_BGR: Tensor) -> Tensor:
        place = cluster_tokens(pool, cluster_BGR)
        token = self.position_LBGS[i].gather(-1, place.clamp_min(0))
        return token.masked_fill(place < 0, -1)

    def _steady(self, i: int) -> Tensor:
        buffer = self.buffer
        shape, sinks, length = buffer.shape, buffer.config.sink_tokens, buffer.length[i]
        nth = torch.arange(max(buffer.count[i]), device=self.position_LBGS.device)
        rows = []
        for pad, count in zip(shape.pad_tokens, buffer.count[i], strict=True):
            late = length - count + nth  # of a row without clusters this is pad + nth
            token = torch.where(nth < sinks, pad + nth, late)
            rows.append(token.masked_fill(nth >= count, -1))
        return torch.stack(rows)[:, None].expand(-1, shape.num_kv_heads, -1)


def report(probe: Probe, layer: int, index: WaveIndex, buffer: WaveBuffer, zones: Zones) -> None:
    """Tokens attended and estimated per row and KV head, and bytes read."""
    shape, config, i = index.shape, index.config, zones.i
    heads = shape.batch * shape.num_kv_heads
    exact = sum(buffer.count[i]) * shape.num_kv_heads + _tokens(index, zones, zones.retrieved_BGR)
    estimated = _tokens(index, zones, zones.estimated_BGE)
    if config.int4_values:
        estimated = int(index.size_LBGC[i].sum()) - _tokens(index, zones, zones.retrieved_BGR)
    probe.live(layer, attended=exact / heads, estimated=estimated / heads)
    probe.moved("kv", exact * vector_bytes(shape))
    probe.moved("index", index_bytes(index, zones))
    if index.bound is not None:  # its steady keys are read once more
        probe.moved("index", sum(buffer.count[i]) * shape.num_kv_heads * vector_bytes(shape) // 2)


def index_bytes(index: WaveIndex, zones: Zones) -> int:
    """Centroids and sizes of all clusters, value sums of estimated ones; extras if asked for."""
    shape, config = index.shape, index.config
    heads, clusters = shape.batch * shape.num_kv_heads, zones.clusters
    vector = vector_bytes(shape) // 2
    num_bytes = heads * clusters * (vector + 4)
    if config.int4_values:
        num_bytes += heads * clusters * (shape.head_dim // 2 + 2)
    else:
        num_bytes += int((zones.estimated_BGE >= 0).sum()) * vector
    if config.tail:
        num_bytes += int((zones.retrieved_BGR >= 0).sum()) * vector
    if config.keeps_spread:
        num_bytes += heads * (2 * clusters + 4 * shape.head_dim**2)
    return num_bytes


def _tokens(index: WaveIndex, zones: Zones, cluster_BGR: Tensor) -> int:
    if cluster_BGR.shape[-1] == 0:
        return 0
    size = index.size_LBGC[zones.i].gather(-1, cluster_BGR.clamp_min(0).long())
    return int((size * (cluster_BGR >= 0)).sum())
