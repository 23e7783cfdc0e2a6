"""Attention of a prompt over chosen keys: gathered, block of queries by block, head by head."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.causal import causal
from retrobench.engine.sparse_prefill import minference, xattention
from retrobench.engine.sparse_prefill.config import PrefillConfig

_CHOOSE: dict[str, Callable[[Tensor, Tensor, float, PrefillConfig], Tensor]] = {
    "xattention": xattention.chosen_keys,
    "minference": minference.chosen_keys,
}


class SparsePrefill:
    """The attention of one sparse prefill; counts the keys that blocks of queries read.

    ``whole_prompt``: its choice needs all queries at once, so the prompt is not read in chunks.
    """

    def __init__(self, config: PrefillConfig) -> None:
        self.config = config
        self.whole_prompt = config.name == "minference"
        self.block_tokens = minference.BLOCK_TOKENS if self.whole_prompt else config.block_tokens
        self.read_keys = self.causal_keys = 0

    @classmethod
    def of(cls, config: PrefillConfig) -> Self | None:
        """The attention that options ask for; None for an exact prefill."""
        return cls(config) if config.identity else None

    @property
    def computed_frac(self) -> float:
        """Keys read over keys that exact attention reads, summed over blocks of queries."""
        return self.read_keys / max(self.causal_keys, 1)

    def attend(self, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, args: AttentionArgs) -> Tensor:
        """Attention of the last T of S tokens (batch 1), which begin with a block of queries."""
        heads, groups = q_BHTD.shape[1], k_BGSD.shape[1]
        out_BHTD = torch.empty_like(q_BHTD)
        for head in range(heads):
            group = head // (heads // groups)
            q_TD, k_SD, v_SD = q_BHTD[0, head], k_BGSD[0, group], v_BGSD[0, group]
            chosen_IS = _CHOOSE[self.config.name](q_TD, k_SD, args.scale, self.config)
            out_BHTD[0, head] = self._gathered(q_TD, k_SD, v_SD, chosen_IS, args)
        return out_BHTD

    def _gathered(
        self, q_TD: Tensor, k_SD: Tensor, v_SD: Tensor, chosen_IS: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Each block of queries over its own keys, of one head."""
        block, before = self.block_tokens, len(k_SD) - len(q_TD)
        parts = []
        for i, start in enumerate(range(0, len(q_TD), block)):
            q = q_TD[start : start + block]
            first, end = before + start, before + start + len(q)
            key = chosen_IS[i, :end].nonzero()[:, 0]
            self.read_keys += len(key)
            self.causal_keys += end
            row = torch.arange(first, end, device=q.device)
            seen = (key <= row[:, None])[None, None]
            k, v = k_SD[key][None, None], v_SD[key][None, None]
            parts.append(causal(q[None, None], k, v, args, mask_B1TS=seen)[0, 0])
        return torch.cat(parts)
