"""The exact attention of one decode call, and what any choice of tokens makes of it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrobench.core.method import ComparedCall

MASSES = (50, 90, 99)  # percent
CDF_FRACS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.018, 0.05, 0.1, 0.2, 0.5, 1.0)
PLACES = 64  # equal parts of a context, for maps of what is attended where


class ExactCall:
    """One decode call with its true attention weights."""

    def __init__(self, call: ComparedCall) -> None:
        q_BHTD, k_BGSD, pads = call.q_BHTD, call.k_BGSD, call.pad_tokens
        self.args, self.groups = call.args, k_BGSD.shape[1]
        self.heads, self.v_BGSD = q_BHTD.shape[1], call.v_BGSD
        position = torch.arange(k_BGSD.shape[2], device=k_BGSD.device)
        self.exists_BS = position >= torch.tensor(pads, device=position.device)[:, None]
        self.q_BGND = q_BHTD[:, :, 0].float().unflatten(1, (self.groups, -1))
        logit = self.logits(k_BGSD).masked_fill(~self.exists_BS[:, None], -torch.inf)
        self.lse_BH = torch.logsumexp(logit, -1)
        self.p_BHS = torch.exp(logit - self.lse_BH[..., None])
        self.ranked_BHS = _descending(self.p_BHS)
        self.cumulative_BHS = self.ranked_BHS.cumsum(-1)

    def logits(self, k_BGSD: Tensor) -> Tensor:
        """Attention logits ``BHS`` of any keys."""
        logit = self.q_BGND @ k_BGSD.float().transpose(-1, -2) * self.args.scale
        if self.args.softcap is not None:
            logit = torch.tanh(logit / self.args.softcap) * self.args.softcap
        return logit.flatten(1, 2)

    def mask(self, token_BGR: Tensor) -> Tensor:
        """Positions as a mask per query head, ``BHS``."""
        size = (*token_BGR.shape[:2], self.exists_BS.shape[1] + 1)
        hit = torch.zeros(size, dtype=torch.bool, device=token_BGR.device)
        spot = token_BGR.masked_fill(token_BGR < 0, size[-1] - 1).long()
        hit.scatter_(2, spot, True)
        return hit[..., :-1].repeat_interleave(self.heads // token_BGR.shape[1], 1)

    def heaviest(self, count_BH: Tensor) -> Tensor:
        """Mask of each head's ``count`` heaviest tokens, padding never; of equal ones the first."""
        exists_B1S = self.exists_BS[:, None]
        count_BH1 = count_BH[..., None].clamp_min(1).minimum(exists_B1S.sum(-1, keepdim=True))
        least_BH1 = self.ranked_BHS.gather(-1, count_BH1 - 1)
        above, equal = self.p_BHS > least_BH1, (self.p_BHS == least_BH1) & exists_B1S
        left_BH1 = count_BH1 - above.sum(-1, keepdim=True)
        return above | (equal & (equal.cumsum(-1) <= left_BH1))

    def sets(self, chosen_BHS: Tensor, top_BHS: Tensor) -> dict[str, Tensor]:
        """Recall, oracle, regret, overlap, recall@100 and the share of tokens attended."""
        count_BH = chosen_BHS.sum(-1).clamp_min(1)
        recall = (self.p_BHS * chosen_BHS).sum(-1)
        oracle = self.cumulative_BHS.gather(-1, count_BH[..., None] - 1)[..., 0]
        return {
            "recall": recall,
            "oracle": oracle,
            "regret": (oracle - recall).clamp_min(0),
            "overlap": share(chosen_BHS, self.heaviest(count_BH)),
            "recall_100": share(top_BHS, chosen_BHS),
            "attended_frac": count_BH / self.exists_BS.sum(-1)[:, None],
        }

    def parts(self, *masks_BHS: Tensor) -> tuple[Tensor, ...]:
        """The share of the exact output of each mask's tokens, ``BHD``; values are read once."""
        weights = [(self.p_BHS * mask).unflatten(1, (self.groups, -1)) for mask in masks_BHS]
        part = torch.cat(weights, 2) @ self.v_BGSD.float()
        return tuple(x.flatten(1, 2) for x in part.chunk(len(masks_BHS), 2))

    def estimated(self, estimate: Any) -> tuple[Tensor, Tensor]:
        """Mass ``BHC`` of each estimated cluster and their joint output ``BHD``, both over the
        true softmax sum."""
        logit_BHC = self.logits(estimate.centroid_BGCD)
        if estimate.gain_BGC is not None:
            logit_BHC = logit_BHC + estimate.gain_BGC.repeat_interleave(
                self.heads // self.groups, 1
            )
        size_BHC = estimate.size_BGC.repeat_interleave(self.heads // self.groups, 1)
        weight = torch.exp(logit_BHC - self.lse_BH[..., None]).masked_fill(size_BHC == 0, 0)
        grouped = weight.unflatten(1, (self.groups, -1))
        part = (grouped @ estimate.value_sum_BGCD.float()).flatten(1, 2)
        return weight * size_BHC, part

    def cluster_mass(self, member_BGE: Tensor, size_BGC: Tensor) -> Tensor:
        """True mass of each estimated cluster, ``BHC``."""
        repeat = self.heads // self.groups
        end = size_BGC.cumsum(-1).contiguous()
        slot = torch.arange(member_BGE.shape[-1], device=member_BGE.device)
        slot = slot.expand(*member_BGE.shape).contiguous()
        which = torch.searchsorted(end, slot, right=True).clamp_max(size_BGC.shape[-1] - 1)
        member = member_BGE.repeat_interleave(repeat, 1)
        mass = self.p_BHS.gather(-1, member.clamp_min(0)).masked_fill(member < 0, 0)
        total = torch.zeros(*mass.shape[:2], size_BGC.shape[-1], device=mass.device)
        return total.scatter_add_(2, which.repeat_interleave(repeat, 1), mass)

    def concentration(self) -> dict[str, Tensor]:
        """How many of the heaviest tokens hold 50, 90 and 99 % of the mass, ``BH`` each."""
        return {f"tokens_{mass}": (self.cumulative_BHS < mass / 100).sum(-1) + 1 for mass in MASSES}

    def by_place(self, value_BHS: Tensor) -> Tensor:
        """Mean over heads, summed over each of ``PLACES`` equal parts of a row's tokens, ``BP``."""
        count_BS = self.exists_BS.cumsum(-1)
        place_BS = (count_BS - 1).clamp_min(0) * PLACES // count_BS[:, -1:]
        value_BS = value_BHS.float().mean(1).masked_fill(~self.exists_BS, 0)
        return value_BS.new_zeros(len(value_BS), PLACES).scatter_add_(1, place_BS, value_BS)

    def cdf(self) -> Tensor:
        """Mean over heads of the mass in the heaviest shares of the context, ``BF``."""
        count_B = self.exists_BS.sum(-1)
        frac = torch.tensor(CDF_FRACS, device=count_B.device)
        rank_BF = (frac * count_B[:, None]).ceil().long().clamp_min(1) - 1
        index = rank_BF[:, None].expand(-1, self.heads, -1)
        return self.cumulative_BHS.gather(-1, index).mean(1).cpu()


def _descending(x: Tensor) -> Tensor:
    """Sorted along the last axis, the largest first."""
    if x.device.type != "cpu":
        return x.sort(-1, descending=True).values
    return torch.from_numpy(np.sort(x.numpy(), -1)).flip(-1)  # thirty times faster than torch's


def share(of_BHS: Tensor, among_BHS: Tensor) -> Tensor:
    """Share of the first set that is in the second (which may know fewer positions), ``BH``."""
    known = among_BHS.shape[-1]
    both = (of_BHS[..., :known] & among_BHS).sum(-1)
    return both / of_BHS.sum(-1).clamp_min(1)
