"""What the roles are made of, measured on a text: do heads attend alike, and at all times?

The last tokens of the text are the decode steps; all before them is the prompt. In every step a
head has a set of best prompt tokens. *Stability* is how much of its set after the prompt is in its
sets of the steps (median), *similarity* how much of its set is in another head's.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from retrobench.core.method import Needs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.engine.attention.parts import logits
from retrobench_methods._calibration import FileCalibrator, read_calibration
from retrobench_methods.heterocache.config import HeteroCacheConfig
from retrobench_methods.heterocache.roles import Roles

PROMPT_TOKENS, STEPS = 5000, 100  # tools/get_weights.py of the released code
SET_FRAC = 1024 / PROMPT_TOKENS  # released: sets of 1024 tokens
POOL_TOKENS = 5


class RoleCalibration(FileCalibrator):
    """Measures stability and similarity; the thresholds are applied when a run reads the file."""

    method = "heterocache"
    needs = Needs(prompt_queries=STEPS + 1)
    tokens = PROMPT_TOKENS + STEPS

    @classmethod
    def measure(cls, layers: Iterable[PromptLayer]) -> dict[str, Tensor]:
        """``stability_LG``, and similarity ``LGG`` after the prompt and in the median step."""
        names = ("stability_LG", "prefill_LGG", "decode_median_LGG")
        found = zip(*map(measure, layers), strict=True)
        return {name: torch.stack(parts) for name, parts in zip(names, found, strict=True)}


def load(file: Path, config: HeteroCacheConfig, shape: KVShape) -> Roles:
    """The roles of a shape's heads."""
    found = read_calibration(file, shape, "cpu")
    stability = found["stability_LG"]
    if tuple(stability.shape) != (len(shape.layers), shape.num_kv_heads):
        raise ValueError(f"{file}: made for another model (shape {tuple(stability.shape)})")
    similarity = found[f"{config.similarity_at}_LGG"].tolist()
    return Roles.of(stability.tolist(), similarity, config.similar, config.stable)


def measure(prompt: PromptLayer) -> tuple[Tensor, Tensor, Tensor]:
    """Stability ``G``, and similarity ``GG`` after the prompt and in the median step."""
    assert prompt.q_BHWD is not None
    k_GSD, q_HWD = prompt.k_BGSD[0], prompt.q_BHWD[0, :, -STEPS - 1 :]
    groups, tokens = k_GSD.shape[:2]
    before = tokens - STEPS
    size = max(1, round(SET_FRAC * before))
    sets_WGS = torch.zeros(STEPS + 1, groups, before, device=k_GSD.device)
    for w in range(STEPS + 1):
        q_GND = q_HWD[:, w].unflatten(0, (groups, -1))
        logit_GNS = logits(q_GND, k_GSD[:, : before + w], prompt.args)
        mass_GS = logit_GNS.softmax(-1).mean(1)[:, :before]
        mass_GS = avg_pool1d(mass_GS, POOL_TOKENS, 1, POOL_TOKENS // 2)
        order_GS = mass_GS.sort(dim=-1, descending=True, stable=True).indices
        sets_WGS[w].scatter_(-1, order_GS[:, :size], 1.0)
    overlap_WGG = sets_WGS @ sets_WGS.mT / size
    kept_WG = (sets_WGS[1:] * sets_WGS[0]).sum(-1) / size
    return kept_WG.quantile(0.5, 0), overlap_WGG[0], overlap_WGG[1:].quantile(0.5, 0)
