"""What a method gets of a prefilled prompt."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrobench.core.needs import Needs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionArgs:
    """Scalars of one attention call: logit scale and optional tanh soft cap."""

    scale: float
    softcap: float | None = None


@dataclass(slots=True, kw_only=True)
class PromptLayer:
    """One managed layer of a prefilled prompt: what a method builds its state from.

    ``k_BGSD`` and ``v_BGSD`` are post-RoPE keys and values in position order, left padding
    included. The optional parts are there if ``Needs`` asks for them: queries of the last W tokens
    ``q_BHWD``, attention mass per key and query head ``mass_BHS``, inputs of the last tokens
    ``input_BWM``, rotary factors ``cos_BSD`` and ``sin_BSD``.
    ``memory`` is the storage behind keys and values where the method may keep it instead of copying
    (it has room for the whole session); None where other methods read the same prompt.
    """

    k_BGSD: Tensor
    v_BGSD: Tensor
    args: AttentionArgs
    q_BHWD: Tensor | None = None
    mass_BHS: Tensor | None = None
    input_BWM: Tensor | None = None
    cos_BSD: Tensor | None = None
    sin_BSD: Tensor | None = None
    memory: tuple[Tensor, Tensor] | None = None

    def asked(self, needs: Needs) -> PromptLayer:
        """The queries and inputs that a method asked for: a shared prefill may have kept more."""
        queries = _last(self.q_BHWD, needs.prompt_queries, 2)
        inputs = _last(self.input_BWM, needs.prompt_inputs, 1)
        return dataclasses.replace(self, q_BHWD=queries, input_BWM=inputs)


def _last(part: Tensor | None, tokens: int, axis: int) -> Tensor | None:
    """The last so many tokens of what was kept; -1: all."""
    if part is None or tokens <= 0:
        return part if tokens else None
    tokens = min(tokens, part.shape[axis])
    return part.narrow(axis, part.shape[axis] - tokens, tokens)
