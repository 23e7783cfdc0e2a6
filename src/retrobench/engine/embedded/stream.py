"""The residual stream of the constructed model: what each slot holds, and binding of codes."""

from __future__ import annotations

from itertools import product

from retrobench.engine.embedded.alphabet import CODE, FLAGS, OUTPUT
from retrobench.engine.embedded.circuit import Layer, Residual

BACK = 4
"""Layer 0 brings every token the codes and flags of this many tokens before it."""

WIDE_SLOTS = {
    "me": CODE,  # identity of the token itself
    "here": CODE,  # key of a needle, at the colon after it
    "asked": CODE,  # key of a question, after it; name of an assignment, at its "="
    "word": CODE,  # the word so far: up to three tokens from the last space, bound together
    "number_end": CODE,  # value of a "VAR X = number" statement, at the number's last token
    "needle": CODE,  # "here" of the last anchor
    "name": CODE,  # "asked" of the last anchor
    "query": CODE,  # mean of "asked" over the nearby questions
    "queries": CODE,  # the same, as a sum if there are several
    "word_before": CODE,  # "word" of the token before
    "answered": CODE,  # first chunks of the numbers already answered
    "find": CODE,  # correction of "word" in the query of the lookup
    "match": CODE,  # correction of "word_before" in the key of the lookup
    "go_on": CODE,  # "word" while a name or coded word is being answered
    "value_of": CODE,  # variable tracking: the value asked for
    "name_of": CODE,  # variable tracking: the name just answered
    "assigned": CODE,  # name on the right of "VAR X = VAR name", at its last token
    "next_name": CODE,  # result of variable tracking
    "output": OUTPUT,  # output code of the token
    "result": OUTPUT,  # output code of the next token
}
FLAG_SLOTS = (
    "bos",
    "start",  # an answer number begins next
    "again",  # ... and the question asks for several
    "first",  # first chunk of a needle's value
    "given",  # first chunk of an answered number
    "anchor",  # colon of a needle
    "question",  # end of a question's key
    "several",  # ... one of several keys
    "tracking",  # "they" of variable tracking's answer prefix
    "chain_start",  # the first name is due
    "name_end",  # a name ended
    "near_tracking",
    "near_several",
    "num_given",
    "done",
)


def make_residual() -> Residual:
    """All slots; the same for every layer."""
    residual = Residual()
    residual.add("flags", len(FLAGS))
    for back in range(1, BACK + 1):
        residual.add(f"code-{back}", CODE)
        residual.add(f"flags-{back}", len(FLAGS))
    for name, width in WIDE_SLOTS.items():
        residual.add(name, width)
    for name in FLAG_SLOTS:
        residual.add(name, 1)
    return residual


def flag_dim(residual: Residual, name: str, back: int = 0) -> int:
    """Dimension of a class flag of the token ``back`` positions before."""
    slot = f"flags-{back}" if back else "flags"
    return residual.dim(slot) + list(FLAGS).index(name)


_SHIFTS = (0, 7, 19)


def bind(
    layer: Layer, slots: tuple[str, ...], to: str, yes: list[int], no: tuple[int, ...] = ()
) -> None:
    """``to += a * shift(b) * shift(c)`` elementwise where the flags hold; codes are +-1."""
    residual = layer.residual
    for i in range(CODE):
        *rest, last = [
            residual.dim(slot) + (i + shift) % CODE
            for slot, shift in zip(slots, _SHIFTS, strict=False)
        ]
        for signs in product((1, -1), repeat=len(rest)):
            parity = 1.0
            for sign in signs:
                parity *= sign
            layer.when(
                yes,
                {last: parity},
                {residual.dim(to) + i: 1.0},
                no,
                signs=zip(rest, signs, strict=True),
            )


def move(layer: Layer, sources: dict[str, float], to: str, yes: list[int]) -> None:
    """``to += sum of factor * slot`` where the flags hold."""
    residual = layer.residual
    for i in range(CODE):
        up = {residual.dim(slot) + i: factor for slot, factor in sources.items()}
        layer.when(yes, up, {residual.dim(to) + i: 1.0})
