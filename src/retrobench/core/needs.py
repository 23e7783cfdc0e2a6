"""What a method asks of the engine beyond keys, values and decode queries."""

from __future__ import annotations

from dataclasses import dataclass

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
        """What both ask for."""
        return Needs(
            layer_inputs=self.layer_inputs or other.layer_inputs,
            modules=self.modules or other.modules,
            calibration=self.calibration or other.calibration,
            prompt_queries=_more(self.prompt_queries, other.prompt_queries),
            prompt_mass=max(self.prompt_mass, other.prompt_mass),
            prompt_inputs=_more(self.prompt_inputs, other.prompt_inputs),
            prompt_rotary=self.prompt_rotary or other.prompt_rotary,
        )


def _more(one: int, other: int) -> int:
    """The larger number of tokens, where -1 means all."""
    return -1 if -1 in (one, other) else max(one, other)
