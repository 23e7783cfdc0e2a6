"""Graphs over keys: neighbours from the prompt's queries (``roar``) or from the keys (``keys``)."""

import torch
from retrobench_kernels.graph_index import Found, build_graph, insert_key, search_graph
from torch import Tensor

from retrobench.engine.attention.key_search.base import KeySearch, nearest
from retrobench.engine.attention.key_search.config import SearchConfig

_RIDGE = 1e-3  # of the queries' mean square: directions in which no query of the prompt varied


class GraphSearch(KeySearch):
    """One graph per query head or KV head, searched from a few keys outwards.

    Both kinds are built alike and differ in where a key's candidate neighbours come from.
    """

    def __init__(self, config: SearchConfig, k_GSD: Tensor, num_heads: int) -> None:
        super().__init__(config, k_GSD, num_heads)
        graphs = _num_graphs(config, num_heads, len(k_GSD))
        size = (graphs, k_GSD.shape[1], 2 * config.degree)
        self.link_HSN = torch.full(size, -1, dtype=torch.int32)
        self.entry_H = torch.zeros(graphs, dtype=torch.int32)
        # keys that the prompt's last query and the last search found, -1 padded
        found = torch.full((num_heads, _num_remembered(config)), -1, dtype=torch.int32)
        self.first_HN, self.last_HN = found, found.clone()

    def build(self, k_GSD: Tensor, q_HTD: Tensor | None, first: int) -> None:
        """Neighbours of all training queries on the model's device, the graphs on the host."""
        super().build(k_GSD, q_HTD, first)
        if not self.length:
            return
        graphs = len(self.entry_H)
        together = torch.get_num_threads()  # graphs: that many are built at once
        for start in range(0, graphs, together):
            part, keys, near = slice(start, start + together), [], []
            for graph in range(graphs)[part]:
                k_SD = k_GSD[graph * len(k_GSD) // graphs]
                self.entry_H[graph] = central(k_SD)
                if self.config.index == "keys":
                    near.append(_near_keys(k_SD, self.config.knn).cpu())
                else:
                    assert q_HTD is not None
                    k_SD, near_TN = self._asked(q_HTD, k_SD, graph, first)
                    near.append(near_TN.cpu())
                keys.append(k_SD.cpu())
            self.link_HSN[part, : self.length] = build_graph(
                torch.stack(keys), torch.stack(near), self.entry_H[part],
                self.config.degree, self.config.build_beam,
            )  # fmt: skip
        self.restart()

    def _asked(self, q_HTD: Tensor, k_SD: Tensor, graph: int, first: int) -> tuple[Tensor, Tensor]:
        """A graph's keys as they are compared, and the nearest ones of its training queries."""
        per_graph, every = self.num_heads // len(self.entry_H), self.config.query_every
        heads = slice(graph * per_graph, (graph + 1) * per_graph)
        position_T = torch.arange(q_HTD.shape[1], device=q_HTD.device)[::every]
        own = q_HTD[heads, ::every].flatten(0, 1)
        seen_T = (position_T - first + 1).repeat(per_graph) if self.config.causal_knn else None
        near_TN = nearest(own, k_SD, self.config.knn, seen_T)
        newest_HN = nearest(q_HTD[heads, -1], k_SD, self.first_HN.shape[1]).cpu()
        self.first_HN[heads, : newest_HN.shape[1]] = newest_HN.int()
        raw = self.config.key_space == "raw"
        return (k_SD if raw else as_queries_see(k_SD, q_HTD[heads].flatten(0, 1))), near_TN

    def append(self) -> None:
        """Search for the new key, and link it with what was found."""
        super().append()
        insert_key(self.k_GSD, self.link_HSN, self.entry_H, self.config.build_beam)

    def restart(self) -> None:
        """The next search starts at what the prompt's last query found."""
        self.last_HN = self.first_HN.clone()

    def search(self, q_HD: Tensor, count: int, effort: int) -> Found:
        """The best keys that a search with a beam of ``effort`` nodes looks at."""
        central_H1 = self.entry_H.repeat_interleave(self.num_heads // len(self.entry_H))[:, None]
        entry_HE = torch.cat([central_H1, self.last_HN], 1)
        found = search_graph(q_HD, self.k_GSD, self.link_HSN, entry_HE, effort, count)
        known_HN = found.token_HR[:, : self.last_HN.shape[1]]
        self.last_HN[:, : known_HN.shape[1]] = known_HN
        return found

    @staticmethod
    def plan(config: SearchConfig, num_keys: int, room: int, heads: int, groups: int, dim: int):
        """Lists of neighbours, entries, and keys that were found last."""
        lists = _num_graphs(config, heads, groups) * (room * 2 * config.degree + 1)
        return 4 * (lists + 2 * heads * _num_remembered(config))

    def tensors(self) -> tuple[Tensor, ...]:
        return self.link_HSN, self.entry_H, self.first_HN, self.last_HN


def _num_graphs(config: SearchConfig, heads: int, groups: int) -> int:
    return heads if config.scope == "query_head" else groups


def _num_remembered(config: SearchConfig) -> int:
    """Keys at which a head's next search starts, beside the central one."""
    return config.knn if config.start == "last" else 0


def central(k_SD: Tensor) -> int:
    """The key that is nearest to the mean of all keys, where a search begins."""
    keys = k_SD.float()
    return int((keys - keys.mean(0)).square().sum(-1).argmin())


def as_queries_see(k_SD: Tensor, q_TD: Tensor) -> Tensor:
    """Keys, so that close ones have close products with queries like these; float32, unit length.

    A product of a query and the mean key says nothing about order, so the mean goes. What is left
    is weighted by the queries' covariance: the distance of two keys is then the expected difference
    of their products.
    """
    keys, queries = k_SD.float(), q_TD.float()
    mean_D = queries.mean(0)
    covariance = (queries - mean_D).mT @ (queries - mean_D) / len(queries)
    ridge = _RIDGE * queries.square().mean() + torch.finfo(torch.float32).tiny
    root = torch.linalg.cholesky(covariance + ridge * torch.eye(len(mean_D), device=keys.device))
    return torch.nn.functional.normalize((keys - keys.mean(0)) @ root, dim=-1)


def _near_keys(k_SD: Tensor, count: int) -> Tensor:
    """Every key, and its nearest others."""
    near_SN = nearest(k_SD, k_SD, count)
    own_S1 = torch.arange(len(k_SD), device=k_SD.device)[:, None]
    at_its_place = (near_SN == own_S1).int()
    at_its_place[:, -1:] += (at_its_place.sum(-1, keepdim=True) == 0).int()  # else the last goes
    others_SN = near_SN[at_its_place == 0].unflatten(0, (len(k_SD), -1))
    return torch.cat([own_S1, others_SN], 1)
