"""AdaKV: SnapKV's votes, and the KV heads of a layer compete for its budget (arXiv 2407.11550)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retrobench.core.budget import shares_of
from retrobench.core.spec import option
from retrobench_methods._votes import VotingConfig, VotingIndex, VotingMethod


@dataclass(frozen=True, kw_only=True)
class AdaKVConfig(VotingConfig):
    """Defaults of FFY0/AdaKV efe4e2e: window and pool as SnapKV, ``floor_alpha``, ``budget``."""

    capacity_tokens: int = option(
        1024, "prompt tokens that a KV head keeps on average where no budget is given", low=1
    )
    floor: float = option(
        0.2, "share of the budget that all heads get alike, before they compete", low=0, high=1
    )


class CompetingIndex(VotingIndex):
    """A head's part of a layer's budget is the part of the layer's best votes that it owns."""

    def counts(self, score_BGS: Tensor, kept: Sequence[int]) -> Tensor:
        """Tokens of every KV head, whose sum is the layer's budget."""
        groups, tokens = score_BGS.shape[1:]
        window, found = self.config.window_tokens, []
        for row, count in enumerate(kept):
            vote_GS = score_BGS[row, :, : tokens - window]
            free = max(0, count - window)  # of a head, on average
            order = vote_GS.flatten().sort(dim=0, descending=True, stable=True).indices
            owned = order[: free * groups] // max(1, tokens - window)
            won = torch.bincount(owned, minlength=groups).tolist()
            wanted = [(1 - self.config.floor) * n + self.config.floor * free for n in won]
            most = tokens - window - self.shape.pad_tokens[row]
            shares = shares_of(free * groups, wanted, max(0, most))
            found.append([share + count - free for share in shares])
        return torch.tensor(found, device=score_BGS.device)


class AdaKV(VotingMethod):
    """As many tokens in every layer, divided among its KV heads by their votes."""

    name = "adakv"
    Config = AdaKVConfig
    index_class = CompetingIndex
