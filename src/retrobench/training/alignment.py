"""A term of the loss that turns queries towards the keys they find.

Softmax only asks that the right key's logit be the largest; a tiny model reaches that with keys
most of whose variance no query reads, and then any index over keys (clusters, pages, partial
dims) groups them by what does not matter. Large models have the redundancy to live with that, a
model with two KV heads has not. The term is the same for every index, and its weight is an option.
"""

from __future__ import annotations

import torch
from torch import Tensor

SURE = 0.5  # attention mass on one key from which a head counts as having found it
MAX_ROWS = 256  # positions looked at per sample


class Alignment:
    """Collects, over layers, 1 - cos(query, key found - mean key) at answer positions."""

    def __init__(self, asked_BS: Tensor) -> None:
        self.asked_BS = asked_BS
        self._terms: list[Tensor] = []

    def add(self, q_BHTD: Tensor, k_BHTD: Tensor, scale: float) -> None:
        """One layer's queries and (repeated) keys after RoPE."""
        for q_HTD, k_HTD, asked_T in zip(q_BHTD, k_BHTD, self.asked_BS, strict=True):
            at_N = asked_T.nonzero().flatten()
            at_N = at_N[:: 1 + len(at_N) // MAX_ROWS].to(q_HTD.device)
            if not len(at_N):
                continue
            q_HND, k_HTD = q_HTD[:, at_N], k_HTD[:, : int(at_N[-1]) + 1]
            with torch.no_grad():
                logit_HNT = q_HND @ k_HTD.transpose(1, 2) * scale
                future_NT = torch.arange(k_HTD.shape[1], device=at_N.device) > at_N[:, None]
                logit_HNT.masked_fill_(future_NT, float("-inf"))
                top_HN, where_HN = logit_HNT.max(-1)
                mass_HN = (top_HN - logit_HNT.logsumexp(-1)).exp()
                sure_HN = (mass_HN > SURE) & (where_HN > 0)  # the first token is a sink
            found_HND = k_HTD.gather(1, where_HN[..., None].expand(-1, -1, k_HTD.shape[2]))
            found_HND = found_HND - k_HTD.mean(1, keepdim=True)
            cos_HN = torch.cosine_similarity(q_HND.float(), found_HND.float(), dim=-1)
            self._terms.append((1 - cos_HN)[sure_HN])

    def loss(self) -> Tensor:
        """The mean over everything collected; 0 where no head was sure."""
        if not any(map(len, self._terms)):
            return torch.zeros(())
        return torch.cat(self._terms).mean()
