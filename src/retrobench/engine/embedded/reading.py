"""Layer 0 (the tokens just before, words, keys) and layer 1 (what the last anchors say)."""

from __future__ import annotations

import math

from retrobench.engine.embedded import rope
from retrobench.engine.embedded.alphabet import CODE, FLAGS, Alphabet
from retrobench.engine.embedded.circuit import Layer
from retrobench.engine.embedded.stream import BACK, bind, flag_dim, move

PEAK = sum(rope.PREVIOUS.values())


def previous_tokens(layer: Layer) -> None:
    """One head per distance 1..4 copies code and flags of that token."""
    bos = layer.residual.dim("bos")
    for kv_head in (0, 1):
        rope.write_key(layer.head_k(kv_head), 0, bos)
        layer.carry(kv_head, 0, "me")
        layer.carry(kv_head, CODE, "flags")
    for back in range(1, BACK + 1):
        head = back - 1
        rope.write_query(layer.head_q(head), 0, rope.PREVIOUS, distance=back)
        layer.sink(head, head // 2, 0, PEAK - 8, bos)
        layer.deliver(head, 0, f"code-{back}")
        layer.deliver(head, CODE, f"flags-{back}")


def words_and_keys(layer: Layer, alphabet: Alphabet) -> None:
    """MLP of layer 0: bind tokens into words and keys where an anchor says so."""
    residual = layer.residual

    def f(name: str, back: int = 0) -> int:
        return flag_dim(residual, name, back)

    for i in range(CODE):  # a word of one token is its code
        layer.when([f("spaced")], {residual.dim("me") + i: 1.0}, {residual.dim("word") + i: 1.0})
    bind(layer, ("me", "code-1"), "word", [f("spaced", 1)], (f("spaced"),))
    bind(layer, ("me", "code-1", "code-2"), "word", [], (f("spaced"), f("spaced", 1)))

    bind(layer, ("code-2", "code-3", "code-4"), "here", [f("colon"), f("is", 1)])
    for anchor in ("mentioned", "they"):
        layer.flag("question", [f(anchor)])
    layer.flag("question", [f("comma"), f("dash", 2)])
    layer.flag("several", [f("comma"), f("dash", 2)])
    layer.flag("tracking", [f("they")])
    layer.flag("anchor", [f("colon"), f("is", 1)])
    _question_keys(layer)
    for i in range(CODE):  # the assigned name's first chunk: five capitals are three tokens
        up = {residual.dim("code-3") + i: 1.0}
        layer.when([f("equals")], up, {residual.dim("asked") + i: 1.0})
    _number_ends(layer, alphabet)

    for word in ("is", "are"):
        layer.flag("start", [f(word), f("text", 1)])
        layer.flag("given", [f("number"), f(word, 1)])
    layer.flag("again", [f("are"), f("text", 1)])
    layer.flag("given", [f("number"), f("dot", 1)])
    for before in ("are", "dot"):
        for flag in ("start", "again"):
            layer.flag(flag, [f("dot"), f("digits", 1), f("number", 3), f(before, 4)])
    layer.flag("first", [f("colon", 1), f("is", 2)])
    layer.flag("chain_start", [f("space"), f("colon", 1), f("they", 3)])
    layer.flag("name_end", [f("capital"), f("capital", 1), f("capitals", 2)])


def _question_keys(layer: Layer) -> None:
    """Keys before "mentioned", before a comma in a list of keys, and the value before ", they"."""
    residual = layer.residual
    slots = ("code-1", "code-2", "code-3")
    either = flag_dim(residual, "mentioned"), flag_dim(residual, "they")
    for anchor in either:
        bind(layer, slots, "asked", [anchor])
    bind(layer, slots, "asked", [flag_dim(residual, "comma"), flag_dim(residual, "dash", 2)])


def _number_ends(layer: Layer, alphabet: Alphabet) -> None:
    """Two-chunk values of assignments, bound as the question's value before ", they" is."""
    residual = layer.residual
    yes = [flag_dim(residual, "digits"), flag_dim(residual, "equals", 2)]
    comma = alphabet.code_VC[alphabet.comma]
    for i in range(CODE):
        a, b = residual.dim("me") + (i + 7) % CODE, residual.dim("code-1") + (i + 19) % CODE
        for sign in (1, -1):
            up = {b: sign * float(comma[i])}
            layer.when(yes, up, {residual.dim("number_end") + i: 1.0}, signs=[(a, sign)])


# Value dims of layer 1's KV head 0, and free dims that carry its anchor flags.
HERE, ASKED, NOTES = 0, CODE, 2 * CODE
_STRENGTH, _NEAR_STRENGTH = 80.0, 50.0
_FLAT = {pair: 4 * amplitude for pair, amplitude in rope.NEARBY.items()}
INHIBITION = 13.5
SINK_SHARE = 8
"""The sink weighs as much as this many answered numbers: their sum keeps its scale."""


def anchors(layer: Layer) -> None:
    """Layer 1's heads: last anchor, questions nearby, word before, numbers already answered."""
    residual = layer.residual
    bos = residual.dim("bos")
    rope.write_key(layer.head_k(0), 0, bos)
    key = layer.head_k(0)
    last, question, sink = rope.FREE_DIMS[0], rope.FREE_DIMS[1], 2
    for slot in ("anchor", "question"):
        key[last, residual.dim(slot)] = 1.0
    key[last, flag_dim(residual, "equals")] = 1.0
    key[question, residual.dim("question")] = 1.0
    layer.carry(0, HERE, "here")
    layer.carry(0, ASKED, "asked")
    layer.carry(0, NOTES, "tracking")
    layer.carry(0, NOTES + 1, "several")
    unit = math.sqrt(rope.HEAD_DIM)

    rope.write_query(layer.head_q(0), 0, rope.RECENT)
    rope.write_query_turn(layer.head_q(0), 0, rope.RECENT_TURN)
    layer.head_q(0)[last, 0] = _STRENGTH * unit
    layer.sink(0, 0, sink, _STRENGTH + rope.RECENT_AT_50, bos)
    layer.deliver(0, HERE, "needle")
    layer.deliver(0, ASKED, "name")
    layer.deliver(0, NOTES, "near_tracking")

    rope.write_query(layer.head_q(1), 0, _FLAT)
    layer.head_q(1)[question, 0] = _NEAR_STRENGTH * unit
    layer.sink(1, 0, sink, _NEAR_STRENGTH + 4 * rope.NEARBY_TOP - 12, bos)
    layer.deliver(1, ASKED, "query")
    layer.deliver(1, NOTES + 1, "near_several")

    rope.write_key(layer.head_k(1), 0, bos)
    layer.head_k(1)[rope.FREE_DIMS[0], residual.dim("given")] = 1.0
    layer.carry(1, 0, "word")
    layer.carry(1, CODE, "given")
    rope.write_query(layer.head_q(2), 0, rope.PREVIOUS, distance=1)
    layer.sink(2, 1, 1, PEAK - 8, bos)
    layer.deliver(2, 0, "word_before")

    strength = 16.0
    rope.write_query(layer.head_q(3), 0, rope.NEARBY)
    layer.head_q(3)[rope.FREE_DIMS[0], 0] = strength * unit
    layer.sink(3, 1, 1, strength + rope.NEARBY_TOP + math.log(SINK_SHARE), bos)
    layer.deliver(3, 0, "answered")
    layer.deliver(3, CODE, "num_given")


def states(layer: Layer) -> None:
    """MLP of layer 1: turns what was read into queries and keys of the lookups."""
    residual = layer.residual
    start, first = residual.dim("start"), residual.dim("first")
    near_tracking = residual.dim("near_tracking")
    for i in range(CODE):  # a mean over n keys becomes their sum: n = 4 has a share 3/4 of commas
        query, out = residual.dim("query") + i, residual.dim("queries") + i
        layer.product({query: 1.0}, {0: 1.0, residual.dim("near_several"): 4.0}, {out: 1.0})
    move(layer, {"word": 1.0, "word_before": -1.0}, "match", [first])
    move(layer, {"word": -1.0, "answered": -INHIBITION}, "find", [start])
    move(layer, {"word": 1.0}, "go_on", [near_tracking])
    move(layer, {"query": 1.0}, "value_of", [residual.dim("chain_start")])
    move(layer, {"word": 1.0}, "name_of", [residual.dim("name_end"), near_tracking])
    move(layer, {"word": 1.0}, "assigned", [flag_dim(residual, "var", 3)])
    three, four = (n / (n + SINK_SHARE) for n in (3, 4))
    layer.above(
        "done",
        residual.dim("again"),
        residual.dim("num_given"),
        (three + four) / 2,
        (four - three) / 2,
    )
