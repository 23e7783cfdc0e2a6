"""How far a method's decode calls are from exact attention on the same queries, keys and values.

With ``p = softmax(q.K)`` over all tokens and ``S`` the tokens attended exactly, per query head:

- ``recall``: attention mass in S; ``oracle``: the largest mass that |S| tokens can hold;
  ``regret``: oracle - recall; ``overlap``: share of S among the |S| heaviest tokens;
  ``recall_100``: share of the 100 heaviest tokens in S.
- ``error``: ||o - ours|| / ||o||. Its parts: ``error_exact`` (S is right but its weights are
  normalised by another sum), ``error_estimated`` (clusters against their members) and
  ``error_ignored`` (tokens that are in neither).
- ``mass_true``, ``mass_estimated``: mass of the estimated clusters' members, and what their
  centroids stand for, in units of the true softmax.
- ``top_step``, ``own_step``: overlap of the 100 heaviest tokens, and of S, with the step before.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrobench.core.method import AttentionArgs, Bytes

TOP = 100
CDF_FRACS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.018, 0.05, 0.1, 0.2, 0.5, 1.0)
PAIRS = 256  # cluster masses kept per row for the figure
HIGH_IS_BAD = frozenset({"regret", "error", "error_exact", "error_estimated", "error_ignored"})


class FidelityProbe:
    """Compares each decode call with the exact one; arrays are indexed (step, layer, row, head)."""

    detail = True

    def __init__(self, pad_tokens: tuple[int, ...]) -> None:
        self.pad_tokens = pad_tokens
        self._calls: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        self._cdf: list[Tensor] = []
        self._pairs: list[list[tuple[float, float]]] = [[] for _ in pad_tokens]
        self._selection: tuple[Tensor, Any, Tensor | None] | None = None
        self._attended = 0.0
        self._before: dict[int, tuple[Tensor, Tensor | None]] = {}

    def span(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Nothing is timed here."""
        return contextlib.nullcontext()

    def moved(self, kind: Bytes, num_bytes: int) -> None:
        """Bytes belong to the ledger of an undisturbed session."""

    def access(self, layer: int, hits: int, misses: int, evictions: int = 0) -> None:
        """Likewise."""

    def live(self, layer: int, *, attended: float, estimated: float = 0.0) -> None:
        """Keep the count: a method that attends everything need not list it."""
        self._attended = attended

    def selected(
        self,
        layer: int,
        token_BGR: Tensor,
        estimate: Any = None,
        member_BGE: Tensor | None = None,
    ) -> None:
        """Keep the sets until ``compare``."""
        self._selection = (token_BGR, estimate, member_BGE)

    def compare(
        self,
        layer: int,
        q_BHTD: Tensor,
        k_BGSD: Tensor,
        v_BGSD: Tensor,
        exact_BHTD: Tensor,
        ours_BHTD: Tensor,
        args: AttentionArgs,
    ) -> None:
        """Measure one decode call of one layer."""
        view = _Call(q_BHTD, k_BGSD, v_BGSD, exact_BHTD, args, self.pad_tokens)
        norm_BH = exact_BHTD[:, :, 0].float().norm(dim=-1).clamp_min(1e-12)
        gap_BHD = (exact_BHTD - ours_BHTD)[:, :, 0].float()
        found = {"error": gap_BHD.norm(dim=-1) / norm_BH}
        chosen_BHS = self._chosen(view)
        top_BHS = view.heaviest(torch.full_like(norm_BH, TOP).long())
        if chosen_BHS is not None:
            found |= view.sets(chosen_BHS, top_BHS)
            found |= self._zones(view, chosen_BHS, norm_BH)
        before = self._before.get(layer)
        if before is not None:
            found["top_step"] = _share(top_BHS, before[0])
            if chosen_BHS is not None and before[1] is not None:
                found["own_step"] = _share(chosen_BHS, before[1])
        self._before[layer] = (top_BHS, chosen_BHS)
        self._cdf.append(view.cdf())
        for name, value_BH in found.items():
            self._calls[name][layer].append(value_BH.cpu())
        self._selection = None

    def _chosen(self, view: _Call) -> Tensor | None:
        """Mask of exactly attended positions, ``BHS``; None if the method did not say."""
        if self._selection is not None:
            return view.mask(self._selection[0])
        everything = float(view.exists_BS.sum(-1).float().mean())
        if abs(self._attended - everything) < 0.5:
            return view.exists_BS[:, None].expand(-1, view.p_BHS.shape[1], -1)
        return None

    def _zones(self, view: _Call, chosen_BHS: Tensor, norm_BH: Tensor) -> dict[str, Tensor]:
        """Errors by zone, and true against estimated mass where there are estimates."""
        estimate, member = self._selection[1:] if self._selection else (None, None)
        total = (view.p_BHS * chosen_BHS).sum(-1)  # both in units of the true softmax
        rest_BHS = ~chosen_BHS
        zones: dict[str, Tensor] = {}
        if estimate is not None and member is not None:
            mass_BHC, part_BHD = view.estimated(estimate)
            member_BHS = view.mask(member)
            rest_BHS = rest_BHS & ~member_BHS
            total = total + mass_BHC.sum(-1)
            true_BHC = view.cluster_mass(member, estimate.size_BGC)
            zones["mass_true"], zones["mass_estimated"] = true_BHC.sum(-1), mass_BHC.sum(-1)
            self._keep_pairs(true_BHC, mass_BHC)
            gap = part_BHD / total[..., None] - view.part(member_BHS)
            zones["error_estimated"] = gap.norm(dim=-1) / norm_BH
        exact_BHD = view.part(chosen_BHS)
        scale_BH = (1 / total.clamp_min(1e-12) - 1).abs()
        zones["error_exact"] = scale_BH * exact_BHD.norm(dim=-1) / norm_BH
        zones["error_ignored"] = view.part(rest_BHS).norm(dim=-1) / norm_BH
        return zones

    def _keep_pairs(self, true_BHC: Tensor, estimated_BHC: Tensor) -> None:
        for row, kept in enumerate(self._pairs):
            pairs = torch.stack([true_BHC[row].flatten(), estimated_BHC[row].flatten()], -1)
            pairs = pairs[pairs[:, 0] > 0]
            step = max(1, len(pairs) // 16)
            if len(kept) < PAIRS:
                kept += [(float(a), float(b)) for a, b in pairs[::step][:16].cpu()]

    def arrays(self) -> dict[str, np.ndarray]:
        """Every measure as (step, layer, row, head)."""
        found = {}
        for name, layers in self._calls.items():
            stacked = [torch.stack(calls) for _, calls in sorted(layers.items())]
            found[name] = torch.stack(stacked, 1).float().numpy()
        return found

    def row(self, row: int) -> dict[str, Any]:
        """Aggregates of one row of the batch, ready for JSON.

        Means and tails are over the layers that the method leaves sparse (``sparse_layers``);
        ``by_layer_head`` covers all.
        """
        layers = sorted(self._calls["error"])
        arrays = {name: values[:, :, row] for name, values in self.arrays().items()}
        if not arrays:
            return {"steps": 0}
        sparse = list(range(len(layers)))
        if "attended_frac" in arrays:
            sparse = [i for i in sparse if float(arrays["attended_frac"][:, i].min()) < 1]
        result: dict[str, Any] = {
            "steps": int(arrays["error"].shape[0]),
            "layers": layers,
            "sparse_layers": [layers[i] for i in sparse],
            "mean": {},
            "tail": {},
            "by_layer_head": {},
        }
        for name, values in arrays.items():
            picked = values[:, sparse] if sparse else values
            result["mean"][name] = float(picked.mean())
            share = 95 if name in HIGH_IS_BAD else 5
            result["tail"][name] = float(np.percentile(picked, share))
        for name in ("recall", "oracle", "error"):
            if name in arrays:
                result["by_layer_head"][name] = arrays[name].mean(0).round(6).tolist()
        cdf = torch.stack([call[row] for call in self._cdf]).mean(0)
        result["cdf"] = {"frac": list(CDF_FRACS), "mass": [round(float(x), 6) for x in cdf]}
        result["pairs"] = [(float(f"{a:.4g}"), float(f"{b:.4g}")) for a, b in self._pairs[row]]
        return result


class _Call:
    """One decode call with its true attention weights."""

    def __init__(
        self,
        q_BHTD: Tensor,
        k_BGSD: Tensor,
        v_BGSD: Tensor,
        exact_BHTD: Tensor,
        args: AttentionArgs,
        pad_tokens: tuple[int, ...],
    ) -> None:
        self.args, self.groups = args, k_BGSD.shape[1]
        self.heads, self.v_BGSD = q_BHTD.shape[1], v_BGSD
        position = torch.arange(k_BGSD.shape[2], device=k_BGSD.device)
        self.exists_BS = position >= torch.tensor(pad_tokens, device=position.device)[:, None]
        self.q_BGND = q_BHTD[:, :, 0].float().unflatten(1, (self.groups, -1))
        logit = self.logits(k_BGSD).masked_fill(~self.exists_BS[:, None], -torch.inf)
        self.lse_BH = torch.logsumexp(logit, -1)
        self.p_BHS = torch.exp(logit - self.lse_BH[..., None])
        self.order_BHS = self.p_BHS.argsort(-1, descending=True)
        ranked = self.p_BHS.gather(-1, self.order_BHS)
        self.cumulative_BHS = ranked.cumsum(-1)

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
        """Mask of each head's ``count`` heaviest tokens."""
        rank = torch.arange(self.p_BHS.shape[-1], device=self.p_BHS.device)
        top = rank < count_BH[..., None]
        return torch.zeros_like(top).scatter_(2, self.order_BHS, top)

    def sets(self, chosen_BHS: Tensor, top_BHS: Tensor) -> dict[str, Tensor]:
        """Recall, oracle, regret, overlap, recall@100 and the share of tokens attended."""
        count_BH = chosen_BHS.sum(-1).clamp_min(1)
        recall = (self.p_BHS * chosen_BHS).sum(-1)
        oracle = self.cumulative_BHS.gather(-1, count_BH[..., None] - 1)[..., 0]
        return {
            "recall": recall,
            "oracle": oracle,
            "regret": (oracle - recall).clamp_min(0),
            "overlap": _share(chosen_BHS, self.heaviest(count_BH)),
            "recall_100": _share(top_BHS, chosen_BHS),
            "attended_frac": count_BH / self.exists_BS.sum(-1)[:, None],
        }

    def part(self, mask_BHS: Tensor) -> Tensor:
        """The masked tokens' share of the exact output, ``BHD``."""
        weight = (self.p_BHS * mask_BHS).unflatten(1, (self.groups, -1))
        return (weight @ self.v_BGSD.float()).flatten(1, 2)

    def estimated(self, estimate: Any) -> tuple[Tensor, Tensor]:
        """Mass ``BHC`` of each estimated cluster and their joint output ``BHD``, both over the
        true softmax sum."""
        logit_BHC = self.logits(estimate.centroid_BGCD)
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

    def cdf(self) -> Tensor:
        """Mean over heads of the mass in the heaviest shares of the context, ``BF``."""
        count_B = self.exists_BS.sum(-1)
        frac = torch.tensor(CDF_FRACS, device=count_B.device)
        rank_BF = (frac * count_B[:, None]).ceil().long().clamp_min(1) - 1
        index = rank_BF[:, None].expand(-1, self.heads, -1)
        return self.cumulative_BHS.gather(-1, index).mean(1).cpu()


def _share(of_BHS: Tensor, among_BHS: Tensor) -> Tensor:
    """Share of the first set that is in the second (which may know fewer positions), ``BH``."""
    known = among_BHS.shape[-1]
    both = (of_BHS[..., :known] & among_BHS).sum(-1)
    return both / of_BHS.sum(-1).clamp_min(1)


def logit_gap(full_TBV: list[Tensor], ours_TBV: list[Tensor], row: int) -> dict[str, float]:
    """KL(full || ours) in nats and next-token agreement over the decode steps of one row."""
    full = torch.stack([step[row] for step in full_TBV]).double().log_softmax(-1)
    ours = torch.stack([step[row] for step in ours_TBV]).double().log_softmax(-1)
    kl = (full.exp() * (full - ours)).nan_to_num(0.0).sum(-1).clamp_min(0)
    agree = (full.argmax(-1) == ours.argmax(-1)).double()
    return {
        "kl": float(kl.mean()),
        "kl_max": float(kl.max()),
        "agreement": float(agree.mean()),
    }


def write_arrays(
    folder: Path, samples: list[str], arrays: dict[str, np.ndarray], layers: list[int]
) -> None:
    """One parquet per sample: a line per step, layer and head, a column per measure.

    Measures that compare with the step before are empty in the first step.
    """
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    steps, _, _, heads = arrays["error"].shape
    index = pd.MultiIndex.from_product(
        [range(steps), layers, range(heads)], names=["step", "layer", "head"]
    )
    for row, sample in enumerate(samples):
        columns = {}
        for name, values in arrays.items():
            padded = np.full((steps, *values.shape[1:]), np.nan, dtype=np.float32)
            padded[steps - len(values) :] = values
            columns[name] = padded[:, :, row].ravel()
        name = sample.replace("/", "-")
        pd.DataFrame(columns, index=index).reset_index().to_parquet(folder / f"{name}.parquet")
