"""What a method asks of the engine beyond keys, values and decode queries."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

ALL_QUERIES = ALL_INPUTS = -1  # of ``Needs.prompt_queries`` and ``Needs.prompt_inputs``


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a method asks of the engine beyond the prompt's keys and values and decode queries.

    The engine reads this; nobody tests a method's type.

    - ``layer_inputs``: in a decode step, call ``layer_input`` before each layer's attention, and
      ``bind`` once before the first.
    - ``modules``: call ``bind`` once before ``build``, for the model's own modules.
    - ``calibration``: a file made beforehand (``scripts/calibrate.py``); ``bind`` says for which
      weights.
    - ``prompt_queries``: keep the queries of the last so many prompt tokens (``ALL_QUERIES``: all).
    - ``prompt_mass``: keep the attention mass that the last so many prompt tokens give each key.
    - ``prompt_inputs``: keep the inputs of each layer's attention of the last so many prompt tokens
      (``ALL_INPUTS``: all).
    - ``prompt_rotary``: keep RoPE's cosines and sines of the prompt, to undo it on the keys.
    """

    layer_inputs: bool = False
    modules: bool = False
    calibration: bool = False
    prompt_queries: int = 0
    prompt_mass: int = 0
    prompt_inputs: int = 0
    prompt_rotary: bool = False

    def __or__(self, other: Needs) -> Needs:
        """What both ask for: of each field the larger value, where -1 tokens are all."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        both: dict[str, Any] = {name: -1 if -1 in p else max(p) for name, p in pairs.items()}
        return Needs(**both)
