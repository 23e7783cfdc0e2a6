"""What the layers from the second on start as: circuits of one query head each.

Bare numbers are logits, of a condition or of the sink. A head attends where its conditions together
exceed its sink, which stands between the sum of all of them and that of all but one.
"""

from __future__ import annotations

import math

from torch import Tensor

from retrobench.training.layer import SINK, Layer
from retrobench.training.start import KINDS, PLURAL, SLOTS, TOPIC

# what circuits write, in units of an embedding's words
COPY, NAMED_COPY = 7.0, 10.0
ASK, NEXT, REPEAT, HOP, COUNT = 12.0, 40.0, 10.0, 16.0, 12.0
NAMED, FEW = 14.0, 8.0  # likewise, parts of a name; how many there are until each weighs half
CHOSEN = 3.0  # likewise, into the dim of the plural, where a value is chosen
LISTED, MANY = 7.0, 4.0  # likewise, each word listed; how many are listed until each weighs half
# logits of a match at distances 0, 1 ..., in any text and where the name spoken of counts as well
MATCH_LOGITS, NAMED_LOGITS = (40.0, 10.0, 9.0, 6.0, 6.0), (40.0, 10.0, 9.0)
TOPIC_LOGIT, PART = 90.0, 12.0  # logits of that name and of a part of one
SAME, RARE = 14.0, 8.0  # logit of the same word; how often a word comes that counts half
# logits of a word that always comes and of one that was said; what parts words that come as often
OFTEN, UNSAID, TIE = 110.0, 30.0, 8.0
OPEN, CLOSE, OWNED = 25.0, 8.0, 1.5  # gains of rules; how far a token's own kind hides a copied one
# kinds of parts of names and values; those that follow their like, and the logit for it
PARTIAL = ("number", "hex", "name start", "capitals", "word part")
ALIKE, KIN = ("number", "hex", "capitals"), 13.0
SEPARATOR = ";"  # between the words of a list; a kind of its own


def notice(layer: Layer) -> None:
    """The free heads of layer 1: how often a listed word has come, as n / (n + RARE); and whether
    several things were asked for just now."""
    count, plural = 1, 3
    layer.keys(0, {0: 1.0})
    layer.compare(count, [(0, 0, SAME)])
    layer.seek(count, SINK, 0.965 * SAME + math.log(RARE))
    layer.mark(count, layer.sees(0, "word start") + _numbered(layer), layer.layout.count)
    layer.flag(1, 1, layer.sees(0, PLURAL))
    layer.near(plural, 20, 48, 40.0)
    layer.seek(plural, 1, 24.0)
    layer.seek(plural, SINK, 58.0)
    layer.mark(plural, layer.sees(0, PLURAL), layer.layout.plural)


def _numbered(layer: Layer) -> Tensor:
    """Reads a word behind "12.", but not the full stop of "123 4."."""
    return layer.sees(2, "number") - layer.sees(1, "number")


def ask_and_next(layer: Layer) -> None:
    """Layer 2: where an answer begins, what was asked for; what has been said of several words or
    values; at the end of a value, the next key of those asked for, or else the same again."""
    rows = _ask(layer, 0)
    _listed(layer, 1, rows)
    _next_key(layer, 2, 3)


def _ask(layer: Layer, head: int) -> Tensor:
    layer.near(head, 0, 60, 40.0)
    for flag, token in enumerate(("Ġfor", "space", "Ġvalue"), 1):
        layer.flag(0, flag, layer.sees(1, token))
        layer.seek(head, flag, 20.0)
    layer.seek(head, SINK, 112.0)
    for now, before in (("verb", "text"), ("space", "colon")):
        layer.seek(head, SINK, -35.0, layer.sees(0, now))
        layer.seek(head, SINK, -35.0, layer.sees(1, before))
    rows = layer.read(0, layer.layout.words)
    layer.write(head, rows, 0, ASK)
    return rows


def _listed(layer: Layer, head: int, rows: Tensor) -> None:
    """Words or values said so far, kept in the slot of the topic: a separator and the colon before
    a value have none."""
    layer.flag(0, 4, layer.sees(1, "separator"))
    layer.seek(head, 4, 20.0)
    layer.seek(head, SINK, 32.0 + math.log(MANY))
    layer.seek(head, SINK, -15.0, layer.sees(0, "separator"))
    # values are numbers behind a near colon; the sink is strong: each weighs little and the same
    layer.flag(0, 5, layer.sees(1, "colon") + layer.sees(0, "number"))
    layer.seek(head, 5, 4.5, layer.sees(0, "colon"))
    layer.seek(head, 5, 7.0, layer.marked(layer.layout.plural))
    layer.near(head, 20, 48, 20.0, layer.sees(0, "colon"))
    layer.seek(head, SINK, 7.0, layer.sees(0, "colon"))
    first, end = SLOTS[TOPIC]
    layer.write(head, rows[first:end], layer.layout.slots[TOPIC].start, LISTED * MANY)


def _next_key(layer: Layer, following: int, again: int) -> None:
    # the key whose value was said is "w1-w2": find what follows "w1-w2," or "w1-w2, and"
    layer.keys(1, {2: 1.0, 3: 1.0, 4: 0.7, 5: 0.7})
    layer.compare(following, [(5, 2, 30.0), (5, 3, 30.0), (7, 4, 20.0), (7, 5, 20.0)])
    layer.flag(1, 1, layer.sees(1, "joint") - layer.sees(0, "joint"))
    layer.near(following, 30, 40, 30.0)
    layer.seek(following, 1, 50.0)
    layer.seek(following, SINK, 91.0)
    layer.near(again, 0, 1, 80.0)
    layer.seek(again, SINK, 70.0)
    # at the end of one of several values: a number of three tokens behind a colon
    for query, gate in ((following, 35.0), (again, 20.0)):
        layer.seek(query, SINK, 4 * gate)
        layer.seek(query, SINK, -gate, layer.marked(layer.layout.plural))
        layer.seek(query, SINK, -gate, layer.sees(0, "number"))
        layer.seek(query, SINK, -gate, layer.sees(2, "number"))
        layer.seek(query, SINK, -gate, layer.sees(3, "colon"))
    words = slice(layer.layout.words.stop - 64, layer.layout.words.stop)
    layer.write(following, layer.read(1, words), words.start, NEXT)
    rows = layer.read(1, layer.layout.slots[7], at=64)
    layer.write(again, rows, SLOTS[7][0], REPEAT)


def hop_and_count(layer: Layer) -> None:
    """Layer 3: from a number or a name to the name that is given it; what comes next of several
    words or values and has not been said; everywhere, the name spoken of."""
    _hop(layer)
    rows = _listed_next(layer, 2)
    _topic(layer, 3, rows)


def _hop(layer: Layer) -> None:
    layer.keys(0, {0: 1.0, 1: 0.6})
    at = 0
    for head, distance, kind, given in (
        (0, 5, "number", layer.sees(2, "equals")),
        (1, 7, "capitals", layer.sees(4, "equals")),
    ):
        layer.compare(head, [(0, 0, 20.0), (1, 1, 12.0)])
        rows = layer.read(0, layer.layout.slots[distance], at)
        layer.write(head, rows, SLOTS[distance][0], HOP)
        at += len(rows)
        layer.flag(0, head + 1, given)
        layer.seek(head, head + 1, 24.0)
        layer.seek(head, SINK, 76.0)
        layer.seek(head, SINK, 30.0, given)  # what is given here need not be found
        layer.seek(head, SINK, -28.0, layer.sees(0, kind))


def _listed_next(layer: Layer, head: int) -> Tensor:
    """At a separator, a listed word; where one of several values begins, a value; none that has
    been said."""
    layer.keys(1, {0: 1.0, 3: 1.0, 5: 1.0})
    layer.compare(head, [(TOPIC, 0, -UNSAID), (0, 0, TIE)])
    layer.near(head, 0, 3000, 3.0)
    layer.seek(head, SINK, 44.0)
    _count(layer, head)
    _value(layer, head)
    rows = layer.read(1, layer.layout.words)
    layer.write(head, rows, 0, COUNT)
    return rows


def _count(layer: Layer, head: int) -> None:
    numbered = _numbered(layer)  # counts once, whatever the word begins with
    layer.flag(1, 1, layer.sees(0, "word start") - numbered - 4 * layer.sees(0, "separator"))
    layer.flag(1, 2, numbered)
    layer.flag(1, 3, layer.marked(layer.layout.count))
    listing = layer.sees(0, "separator")
    for flag, logit in ((1, 20.0), (2, 20.0), (3, OFTEN)):
        layer.seek(head, flag, logit, listing)
    layer.seek(head, SINK, -30.0, listing)


def _value(layer: Layer, head: int) -> None:
    """A number behind a colon and the same key as here, of two words; the copy of layer 4 rests."""
    layer.flag(1, 5, layer.sees(1, "colon") + layer.sees(0, "number"))
    layer.seek(head, 5, 20.0, layer.sees(0, "colon"))
    layer.seek(head, 5, 20.0, layer.marked(layer.layout.plural))
    layer.seek(head, 5, -20.0, layer.sees(0, "separator"))
    layer.compare(head, [(2, 3, 24.0), (4, 5, 24.0)], blind=SEPARATOR)
    # not at a separator, whose sink is that of _count, and not where a list begins
    others = [kind for kind in KINDS if kind != "separator"]
    layer.seek(head, SINK, 52.0, layer.sees(0, *others) + layer.sees(1, PLURAL))
    layer.mark(head, layer.sees(0, "number"), layer.layout.plural, CHOSEN)


def _topic(layer: Layer, head: int, rows: Tensor) -> None:
    """Parts of the name last read: a capital and letter pairs, of no coded word and no variable.
    The sink is strong: each part weighs the same, so that a longer name weighs more, not less."""
    parts = layer.sees(0, "word part", "capitals")
    for distance in (1, 2, 3):
        parts = parts - layer.sees(distance, "word start")
    for distance in (1, 2):
        parts = parts - layer.sees(distance, "name start")
    layer.flag(1, 4, parts)
    layer.near(head, 9, 6, 20.0)  # hardly what a next name begins with
    layer.seek(head, 4, PART)
    layer.seek(head, SINK, 20.0 + PART + math.log(FEW))
    first, end = SLOTS[TOPIC]
    layer.write(head, rows[first:end], layer.layout.slots[TOPIC].start, NAMED)


def match(layer: Layer) -> None:
    """Layer 4: copy what followed the same history, in any text, and, stronger, where the same name
    was spoken of. Its MLP opens lists and ends their items."""
    # the power of a slot that makes the mixture's noise smallest
    shares = {n: logit / MATCH_LOGITS[0] for n, logit in enumerate(MATCH_LOGITS, 1)}
    for group in (0, 1):
        layer.keys(group, {**shares, TOPIC: TOPIC_LOGIT / MATCH_LOGITS[0]})
        for flag, kind in enumerate(ALIKE, 1):
            layer.flag(group, flag, layer.sees(1, kind))
        half = layer.layout.half(group)
        rows = layer.read(group, half)
        for head, gain in ((2 * group, COPY), (2 * group + 1, NAMED_COPY)):
            layer.near(head, 20, 48, -5.0)  # from the text, not from the question and answer
            layer.seek(head, SINK, 60.0, layer.sees(0, "separator"))
            layer.seek(head, SINK, 60.0 / CHOSEN, layer.marked(layer.layout.plural))
            layer.write(head, rows, half.start, gain)
        _copy(layer, 2 * group)
        _copy_named(layer, 2 * group + 1)
    _rules(layer)


def _copy(layer: Layer, head: int) -> None:
    layer.compare(head, [(n, n + 1, logit) for n, logit in enumerate(MATCH_LOGITS)])
    for flag, kind in enumerate(ALIKE, 1):
        layer.seek(head, flag, KIN, layer.sees(0, kind))
    layer.near(head, 20, 48, 11.0, layer.sees(0, *PARTIAL))  # parts of names are near
    layer.near(head, 20, 48, 16.0, layer.sees(1, "verb"))  # the key asked for has just begun
    layer.seek(head, SINK, 7.0)


def _copy_named(layer: Layer, head: int) -> None:
    pairs = [(n, n + 1, logit) for n, logit in enumerate(NAMED_LOGITS)]
    layer.compare(head, [*pairs, (TOPIC, TOPIC, TOPIC_LOGIT)])
    begun = layer.sees(0, "capitals") + layer.sees(1, "capitals")
    layer.near(head, 20, 48, 12.0, begun)  # a name asked for is copied from the question
    layer.seek(head, SINK, 76.0)
    # uuids speak of no name, and where an answer begins none has been said
    layer.seek(head, SINK, 20.0, layer.sees(0, "hex") + layer.sees(1, "hex"))
    layer.seek(head, SINK, 60.0, layer.sees(0, "colon") + layer.sees(1, "colon"))


def _rules(layer: Layer) -> None:
    """A list opens after "are:", a name after "Answer:"; an item of a list ends where what follows
    in the text begins another word; the first word of a key goes on with a hyphen."""
    layer.copying(COPY)
    layer.rule(layer.sees(0, "colon"), layer.sees(1, "Ġare"), SEPARATOR, OPEN)
    layer.rule(layer.sees(0, "colon"), layer.sees(1, "ĠAnswer"), "Ġ", OPEN / 3)
    within = [layer.sees(distance, "separator") for distance in (1, 2, 3)]
    number = layer.copied("number") - OWNED * layer.sees(0, "number")
    layer.rule(number, within[0], SEPARATOR, CLOSE)
    start = layer.copied("word start") - OWNED * layer.sees(0, "word start")
    layer.rule(start, within[0] + within[1] + within[2], SEPARATOR, CLOSE)
    word = layer.sees(0, "plain") - 2 * layer.sees(0, "-")
    layer.rule(word, layer.sees(1, "number"), "-", CLOSE / 2)
    layer.rule(layer.copied("dots"), layer.sees(0, "word part"), SEPARATOR, CLOSE)
