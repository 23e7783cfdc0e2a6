"""IVF: keys in lists around centroids; a search scans the lists of the nearest centroids."""

import torch
from retrobench_kernels.graph_index import Found
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from retrobench_kernels.wave_attention import cluster_tokens
from torch import Tensor

from retrobench.engine.attention.key_search.base import KeySearch, products
from retrobench.engine.attention.key_search.config import SearchConfig

ITERATIONS = 10


class ListSearch(KeySearch):
    """Lists of spherical k-means, one set per KV head; centroids are the means of their keys."""

    def __init__(self, config: SearchConfig, k_GSD: Tensor, num_heads: int) -> None:
        super().__init__(config, k_GSD, num_heads)
        groups, room, dim = k_GSD.shape
        self.centroid_GCD = torch.empty(groups, 0, dim)
        self.label_GS = torch.zeros(groups, room, dtype=torch.int32)
        self.order_GS = torch.zeros(groups, room, dtype=torch.int32)  # keys, list after list
        self.end_GC = torch.zeros(groups, 0, dtype=torch.int32)

    def build(self, k_GSD: Tensor, q_HTD: Tensor | None, first: int) -> None:
        """Cluster the keys."""
        super().build(k_GSD, q_HTD, first)
        if not self.length:
            return
        centroid, label = segmented_kmeans(
            k_GSD, self.config.lists(self.length), num_segments=1, iterations=ITERATIONS
        )
        self.centroid_GCD, self.label_GS[:, : self.length] = centroid.cpu(), label.cpu().int()
        self._sort()

    def append(self) -> None:
        """The new key joins the list whose centroid has the largest product with it."""
        key_GD = self.memory[:, self.length].float()
        if self.centroid_GCD.shape[1]:
            near_G = (self.centroid_GCD @ key_GD[..., None])[..., 0].argmax(-1)
            self.label_GS[:, self.length] = near_G.int()
        else:
            self.centroid_GCD = key_GD[:, None].clone()
        super().append()
        self._sort()

    def _sort(self) -> None:
        label_GS, lists = self.label_GS[:, : self.length], self.centroid_GCD.shape[1]
        self.order_GS[:, : self.length] = label_GS.argsort(dim=-1, stable=True).int()
        sizes = [torch.bincount(label, minlength=lists) for label in label_GS]
        self.end_GC = torch.stack(sizes).cumsum(-1).int()

    def search(self, q_HD: Tensor, count: int, effort: int) -> Found:
        """Scan the ``effort`` lists whose centroids have the largest products with the query."""
        per_group = self.num_heads // len(self.memory)
        first_GC = torch.nn.functional.pad(self.end_GC, (1, 0))[:, :-1]
        first_HC, size_HC = (
            x.repeat_interleave(per_group, 0) for x in (first_GC, self.end_GC - first_GC)
        )
        lists = size_HC.shape[1]
        nearness_HC = products(q_HD, self.centroid_GCD).masked_fill(size_HC == 0, -torch.inf)
        near_HN = nearness_HC.topk(min(effort, lists), -1).indices.int()
        place_HR = cluster_tokens(first_HC[None], size_HC[None], near_HN[None], None)[0].long()
        there_HR = place_HR >= 0
        group_H1 = torch.arange(self.num_heads)[:, None] // per_group
        token_HR = self.order_GS[group_H1, place_HR.clamp_min(0)]
        k_HRD = self.memory[group_H1, token_HR]
        product_HR = (k_HRD.float() @ q_HD.float()[..., None])[..., 0]
        best, at = product_HR.masked_fill(~there_HR, -torch.inf).topk(
            min(count, token_HR.shape[1]), -1
        )
        token = token_HR.gather(1, at).masked_fill(best == -torch.inf, -1)
        read_H = there_HR.sum(-1)
        return Found(token, best, read_H + lists, read_H)

    @staticmethod
    def plan(config: SearchConfig, num_keys: int, room: int, heads: int, groups: int, dim: int):
        """Centroids, ends of lists, the list of every key, and the keys in list order."""
        return 4 * groups * (config.lists(num_keys) * (dim + 1) + 2 * room)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.centroid_GCD, self.end_GC, self.label_GS, self.order_GS
