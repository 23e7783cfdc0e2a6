"""Graphs over keys: neighbours from the prompt's queries (``roar``) or from the keys (``keys``)."""

import torch
from retrobench_kernels.graph_index import Found, build_graph, insert_key, search_graph
from torch import Tensor

from retrobench.engine.attention.key_search.base import KeySearch, nearest
from retrobench.engine.attention.key_search.config import SearchConfig


class GraphSearch(KeySearch):
    """One graph per query head or KV head, searched from its central key outwards.

    Both kinds are built alike and differ in where a key's candidate neighbours come from.
    """

    def __init__(self, config: SearchConfig, k_GSD: Tensor, num_heads: int) -> None:
        super().__init__(config, k_GSD, num_heads)
        graphs = _num_graphs(config, num_heads, len(k_GSD))
        size = (graphs, k_GSD.shape[1], 2 * config.degree)
        self.link_HSN = torch.full(size, -1, dtype=torch.int32)
        self.entry_H = torch.zeros(graphs, dtype=torch.int32)

    def build(self, k_GSD: Tensor, q_HTD: Tensor | None, first: int) -> None:
        """Neighbours of all training queries on the model's device, the graphs on the host."""
        super().build(k_GSD, q_HTD, first)
        if not self.length:
            return
        near = []
        for graph in range(len(self.entry_H)):
            keys = k_GSD[graph * len(k_GSD) // len(self.entry_H)]
            self.entry_H[graph] = central(keys)
            if self.config.index == "keys":
                near.append(_near_keys(keys, self.config.knn).cpu())
            else:
                assert q_HTD is not None
                near.append(self._asked(q_HTD, keys, graph, first).cpu())
        self.link_HSN[:, : self.length] = build_graph(
            self.k_GSD, torch.stack(near), self.entry_H, self.config.degree, self.config.build_beam
        )

    def _asked(self, q_HTD: Tensor, k_SD: Tensor, graph: int, first: int) -> Tensor:
        """Nearest keys of the training queries of a graph."""
        per_graph, every = self.num_heads // len(self.entry_H), self.config.query_every
        position_T = torch.arange(q_HTD.shape[1], device=q_HTD.device)[::every]
        own = q_HTD[graph * per_graph : (graph + 1) * per_graph, ::every].flatten(0, 1)
        seen_T = (position_T - first + 1).repeat(per_graph) if self.config.causal_knn else None
        return nearest(own, k_SD, self.config.knn, seen_T)

    def append(self) -> None:
        """Search for the new key, and link it with what was found."""
        super().append()
        insert_key(self.k_GSD, self.link_HSN, self.entry_H, self.config.build_beam)

    def search(self, q_HD: Tensor, count: int, effort: int) -> Found:
        """The best keys of a beam of ``effort`` nodes."""
        return search_graph(q_HD, self.k_GSD, self.link_HSN, self.entry_H, effort, count)

    @staticmethod
    def plan(config: SearchConfig, num_keys: int, room: int, heads: int, groups: int, dim: int):
        """Lists of neighbours and entries."""
        return 4 * _num_graphs(config, heads, groups) * (room * 2 * config.degree + 1)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.link_HSN, self.entry_H


def _num_graphs(config: SearchConfig, heads: int, groups: int) -> int:
    return heads if config.scope == "query_head" else groups


def central(k_SD: Tensor) -> int:
    """The key that is nearest to the mean of all keys, where a search begins."""
    keys = k_SD.float()
    return int((keys - keys.mean(0)).square().sum(-1).argmin())


def _near_keys(k_SD: Tensor, count: int) -> Tensor:
    """Every key, and its nearest others."""
    near_SN = nearest(k_SD, k_SD, count)
    own_S1 = torch.arange(len(k_SD), device=k_SD.device)[:, None]
    at_its_place = (near_SN == own_S1).int()
    at_its_place[:, -1:] += (at_its_place.sum(-1, keepdim=True) == 0).int()  # else the last goes
    others_SN = near_SN[at_its_place == 0].unflatten(0, (len(k_SD), -1))
    return torch.cat([own_S1, others_SN], 1)
