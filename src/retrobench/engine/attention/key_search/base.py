"""Exact search: what every structure over keys can do, and all that ``index=flat`` does."""

import numpy as np
import torch
from retrobench_kernels.graph_index import Found
from torch import Tensor

from retrobench.engine.attention.key_search.config import SearchConfig

_BLOCK_BYTES = 64 * 1024**2  # of one matrix of products


class KeySearch:
    """The keys with the largest inner products, for query heads that share KV heads evenly.

    ``k_GSD`` is memory for all keys that may come, in host memory; ``length`` of them are there.
    Products are float32. This base looks at every key.
    """

    def __init__(self, config: SearchConfig, k_GSD: Tensor, num_heads: int) -> None:
        self.config, self.memory, self.num_heads, self.length = config, k_GSD, num_heads, 0

    @property
    def k_GSD(self) -> Tensor:
        """The keys that are there."""
        return self.memory[:, : self.length]

    def build(self, k_GSD: Tensor, q_HTD: Tensor | None, first: int) -> None:
        """The prompt's keys are in memory. Here they are also where the model is.

        ``q_HTD`` are all of the prompt's queries, for structures that learn from them; the first
        key's position is query ``first``.
        """
        self.length = k_GSD.shape[1]

    def append(self) -> None:
        """One more key is in memory."""
        self.length += 1

    def restart(self) -> None:
        """Forget earlier searches, where they help later ones."""

    def search(self, q_HD: Tensor, count: int, effort: int) -> Found:
        """The best ``count`` keys of each query head; more ``effort`` looks at more keys."""
        return self.everything(q_HD, count)

    def everything(self, q_HD: Tensor, count: int) -> Found:
        """The exact best ``count`` keys, in no order."""
        product_HS = products(q_HD, self.k_GSD)
        # numpy's vectorised selection takes a sixth of the time of torch's
        order_HS = np.argpartition(product_HS.numpy(), -min(count, self.length), -1)
        token = torch.from_numpy(order_HS)[:, -min(count, self.length) :]
        product = product_HS.gather(-1, token)
        scanned = torch.full((len(q_HD),), self.length)
        return Found(token.int(), product, scanned, torch.zeros_like(scanned))

    def index_bytes(self, found: Found) -> int:
        """Bytes that a search has read: keys, and numbers of lists."""
        vector = self.memory.shape[-1] * self.memory.element_size()
        return int(found.scanned_H.sum()) * vector + int(found.entries_H.sum()) * 4

    @staticmethod
    def plan(config: SearchConfig, num_keys: int, room: int, heads: int, groups: int, dim: int):
        """Bytes of the structure over ``num_keys`` keys with room for ``room``; keys not counted"""
        return 0

    def num_bytes(self) -> int:
        """Bytes of the structure that are held."""
        return sum(x.nbytes for x in self.tensors())

    def tensors(self) -> tuple[Tensor, ...]:
        """The structure."""
        return ()


def products(q_HD: Tensor, k_GSD: Tensor) -> Tensor:
    """Float32 inner products of every query head with its KV head's keys."""
    q_GND = q_HD.float().unflatten(0, (len(k_GSD), -1))
    return (q_GND @ k_GSD.float().mT).flatten(0, 1)


def nearest(q_TD: Tensor, k_SD: Tensor, count: int, seen_T: Tensor | None = None) -> Tensor:
    """Exact top ``count`` keys of every query, ``TN``, the best first; -1 where there are fewer.

    ``seen_T``: how many of the first keys a query may see. Blocks of queries keep memory bounded.
    """
    keys, found = k_SD.float().mT, []
    rows = max(1, _BLOCK_BYTES // (4 * max(1, len(k_SD))))
    for start in range(0, len(q_TD), rows):
        product_TS = q_TD[start : start + rows].float() @ keys
        if seen_T is not None:
            place = torch.arange(len(k_SD), device=k_SD.device)
            product_TS[place >= seen_T[start : start + rows, None]] = -torch.inf
        best, key = product_TS.topk(min(count, len(k_SD)), -1)
        found.append(key.masked_fill(best == -torch.inf, -1))
    return torch.cat(found)
