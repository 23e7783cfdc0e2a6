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
- ``tokens_50``, ``tokens_90``, ``tokens_99``: how many of the heaviest tokens hold so many percent
  of the mass.
- ``places``: of 64 equal parts of the context, the share of tokens in S and the true mass.
- ``top_step``, ``own_step``: overlap of the 100 heaviest tokens, and of S, with the step before.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrobench.core.method import ComparedCall, Probe
from retrobench.measure.exact_call import CDF_FRACS, MASSES, ExactCall, share

TOP = 100
PAIRS = 256  # cluster masses kept per row for the figure
HIGH_IS_BAD = frozenset({"regret", "error", "error_exact", "error_estimated", "error_ignored"})


class FidelityProbe(Probe):
    """Compares each decode call with the exact one; arrays are indexed (step, layer, row, head)."""

    counting = detail = True

    def __init__(self) -> None:
        self._calls: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        self._cdf: list[Tensor] = []
        self._pairs: dict[int, list[tuple[float, float]]] = defaultdict(list)
        self._selection: tuple[Tensor, Any, Tensor | None] | None = None
        self._attended = 0.0
        self._places: dict[int, list[Tensor]] = defaultdict(list)  # BP2: attended, mass
        self._before: dict[int, tuple[Tensor, Tensor | None]] = {}

    def count(self, layer: int, **amounts: float | Tensor) -> None:
        """Keep the tokens attended: a method that attends everything need not list it."""
        if "attended" in amounts:
            self._attended = float(amounts["attended"])

    def selected(
        self, layer: int, token_BGR: Tensor, estimate: Any = None, member_BGE: Tensor | None = None
    ) -> None:
        """Keep the sets until ``compare``."""
        self._selection = (token_BGR, estimate, member_BGE)

    def compare(self, call: ComparedCall) -> None:
        """Measure one decode call of one layer."""
        view, exact_BHTD = ExactCall(call), call.exact_BHTD
        norm_BH = exact_BHTD[:, :, 0].float().norm(dim=-1).clamp_min(1e-12)
        gap_BHD = (exact_BHTD - call.ours_BHTD)[:, :, 0].float()
        found = {"error": gap_BHD.norm(dim=-1) / norm_BH, **view.concentration()}
        chosen_BHS = self._chosen(view)
        top_BHS = view.heaviest(torch.full_like(norm_BH, TOP).long())
        if chosen_BHS is not None:
            found |= view.sets(chosen_BHS, top_BHS)
            found |= self._zones(view, chosen_BHS, norm_BH)
            tokens_BP = view.by_place(view.exists_BS[:, None]).clamp_min(1)
            attended_BP = view.by_place(chosen_BHS) / tokens_BP
            places = torch.stack([attended_BP, view.by_place(view.p_BHS)], -1)
            self._places[call.layer].append(places.cpu())
        before = self._before.get(call.layer)
        if before is not None:
            found["top_step"] = share(top_BHS, before[0])
            if chosen_BHS is not None and before[1] is not None:
                found["own_step"] = share(chosen_BHS, before[1])
        self._before[call.layer] = (top_BHS, chosen_BHS)
        self._cdf.append(view.cdf())
        for name, value_BH in found.items():
            self._calls[name][call.layer].append(value_BH.cpu())
        self._selection = None

    def _chosen(self, view: ExactCall) -> Tensor | None:
        """Mask of exactly attended positions, ``BHS``; None if the method did not say."""
        if self._selection is not None:
            return view.mask(self._selection[0])
        everything = float(view.exists_BS.sum(-1).float().mean())
        if abs(self._attended - everything) < 0.5:
            return view.exists_BS[:, None].expand(-1, view.p_BHS.shape[1], -1)
        return None

    def _zones(self, view: ExactCall, chosen_BHS: Tensor, norm_BH: Tensor) -> dict[str, Tensor]:
        """Errors by zone, and true against estimated mass where there are estimates."""
        estimate, member = self._selection[1:] if self._selection else (None, None)
        total = (view.p_BHS * chosen_BHS).sum(-1)  # both in units of the true softmax
        zones: dict[str, Tensor] = {}
        if estimate is None or member is None:
            exact_BHD, ignored_BHD = view.parts(chosen_BHS, ~chosen_BHS)
        else:
            mass_BHC, part_BHD = view.estimated(estimate)
            member_BHS = view.mask(member)
            ignored_BHS = ~(chosen_BHS | member_BHS)
            exact_BHD, true_BHD, ignored_BHD = view.parts(chosen_BHS, member_BHS, ignored_BHS)
            total = total + mass_BHC.sum(-1)
            true_BHC = view.cluster_mass(member, estimate.size_BGC)
            zones["mass_true"], zones["mass_estimated"] = true_BHC.sum(-1), mass_BHC.sum(-1)
            self._keep_pairs(true_BHC, mass_BHC)
            gap = part_BHD / total[..., None] - true_BHD
            zones["error_estimated"] = gap.norm(dim=-1) / norm_BH
        scale_BH = (1 / total.clamp_min(1e-12) - 1).abs()
        zones["error_exact"] = scale_BH * exact_BHD.norm(dim=-1) / norm_BH
        zones["error_ignored"] = ignored_BHD.norm(dim=-1) / norm_BH
        return zones

    def _keep_pairs(self, true_BHC: Tensor, estimated_BHC: Tensor) -> None:
        for row in range(true_BHC.shape[0]):
            kept = self._pairs[row]
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

        ``mean`` and ``tail`` are over the layers that the method leaves sparse (``sparse_layers``),
        ``layer_mean`` and ``layer_tail`` hold a number for each layer, ``by_layer_head`` for each
        layer and head.
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
            "layer_mean": {},
            "layer_tail": {},
            "by_layer_head": {},
        }
        for name, values in arrays.items():
            picked = values[:, sparse] if sparse else values
            result["mean"][name] = float(picked.mean())
            share = 95 if name in HIGH_IS_BAD else 5
            result["tail"][name] = float(np.percentile(picked, share))
            tails = np.percentile(values, share, axis=(0, 2))
            result["layer_mean"][name] = values.mean((0, 2)).round(6).tolist()
            result["layer_tail"][name] = tails.round(6).tolist()
        for name in ("recall", "oracle", "error", *(f"tokens_{mass}" for mass in MASSES)):
            if name in arrays:
                result["by_layer_head"][name] = arrays[name].mean(0).round(6).tolist()
        cdf = torch.stack([call[row] for call in self._cdf]).mean(0)
        result["cdf"] = {"frac": list(CDF_FRACS), "mass": [round(float(x), 6) for x in cdf]}
        if places := [x[row] for i in result["sparse_layers"] or layers for x in self._places[i]]:
            attended, mass = torch.stack(places).mean(0).T.double().numpy().round(5).tolist()
            result["places"] = {"attended": attended, "mass": mass}
        result["pairs"] = [(float(f"{a:.4g}"), float(f"{b:.4g}")) for a, b in self._pairs[row]]
        return result


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
