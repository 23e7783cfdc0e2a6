"""Training samples: the families of RULER's tasks in other words, many questions per sample.

A sample is a ``Draft``: context pieces of which as many are kept as fit, then questions with
answers. The frames below share words with RULER's templates but never make one of its prompts:
``phrase`` and ``clause`` exclude the combinations that RULER uses.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from retrobench.training import words

Rng = random.Random
Segment = tuple[str, bool]  # text, and whether the loss counts it
END = "<|eos|>"


@dataclass(slots=True)
class Draft:
    """Parts of a sample. ``must`` pieces stand among ``filler`` in their order."""

    must: list[str]
    questions: list[list[Segment]]
    filler: list[str] = field(default_factory=list)
    head: str = ""
    joiner: str = " "


Family = Callable[[Rng, int], Draft]

_ADJECTIVES = ("special", "magic", "secret", "hidden", "lucky", "daily", "final", "common", "")
_NOUNS = {
    "number": ("number", "numbers", "code", "figure", "value", "price", "count"),
    "uuid": ("uuid", "uuids", "token", "identifier", "address", "value"),
    "pair": ("word", "words", "phrase", "name", "label", "value"),
}
# (before the key, between key and value, after the value); an answer quotes from the key on
_NEEDLES = (
    ("One of the {what} for ", " is: ", "."),
    ("One of the {what} for ", " is: ", "."),
    ("The {what} for ", " is: ", "."),
    ("The {what} of ", " is ", "."),
    ("One {what} for ", " was: ", "."),
    ("For ", " the {what} is: ", "."),
    ("The {what} that belongs to ", " is ", "."),
    ("", " is: ", "."),
    ("", ": ", ";"),
    ("", " = ", ""),
    ("The {what} of ", " = ", "."),
    ("Remember that ", " has the {what} ", "."),
)
_QUESTIONS = (
    "What is the {what} for {key} {clause}?",
    "What are all the {what} for {key} {clause}?",
    "Which {what} was for {key} {clause}?",
    "Find the {what} of {key} {clause}.",
    "Question: What is the {what} for {key}?",
    "",
)
_PREFIXES = (
    " The {what} for {key} {clause} {verb}",
    " The {what} for {key} {clause} {verb}",
    " The {what} for {key} {verb}",
    " Answer: The {what} of {key} {clause} {verb}",
    " {key} {verb}",
    " For {key} {clause} the {what} {verb}",
)
_CLAUSE = (
    ("mentioned", "given", "hidden", "found", "listed", "named", "that are", "written", ""),
    ("in", "within", "above in", "somewhere in", "by"),
    ("the", "the following", "the provided", "this", "the given", "the above", "the long"),
    ("text", "document", "list", "documents", "passage", "words", "lines"),
)
_RULER_CLAUSE = "mentioned in the provided text"


def phrase(rng: Rng, kind: str, clause: str) -> str:
    """What is asked for, e.g. ``secret code``."""
    noun = rng.choice(_NOUNS.get(kind, _NOUNS["number"]))
    if rng.random() < 0.35 and clause != _RULER_CLAUSE:
        return f"special magic {noun}"
    return f"{rng.choice(_ADJECTIVES)} {noun}".strip()


def clause(rng: Rng) -> str:
    """Words between a key and the verb that a reader has to skip."""
    pick = rng.random()
    if pick < 0.1:
        return _RULER_CLAUSE
    if pick < 0.2:
        return " ".join(words.word(rng) for _ in range(rng.randint(1, 5)))
    return " ".join(" ".join(rng.choice(part) for part in _CLAUSE).split())


def _value_kind(rng: Rng) -> str:
    pick = rng.random()
    if pick < 0.6:
        return f"number{7 if rng.random() < 0.6 else rng.randint(2, 9)}"
    return "uuid" if pick < 0.85 else "pair"


def _key_kind(rng: Rng) -> str:
    return rng.choices(("pair", "uuid", "name", "number", "word"), (60, 16, 10, 6, 8))[0]


@dataclass(frozen=True, slots=True)
class _Frames:
    """How one sample states its facts, asks for them and quotes them."""

    needle: tuple[str, str, str]
    question: str
    prefix: str
    what: str
    clause: str

    def state(self, key: str, value: str) -> str:
        """The sentence that gives ``key`` its value."""
        before, between, after = (part.format(what=self.what) for part in self.needle)
        return f"{before}{key}{between}{value}{after}"

    def quote(self, key: str, value: str) -> str:
        """What an answer says: the sentence from the key to the value."""
        return f"{key}{self.needle[1].format(what=self.what)}{value}"

    def ask(self, keys: str, verb: str) -> str:
        """The question and the beginning of its answer."""
        fields = {"what": self.what, "key": keys, "clause": self.clause, "verb": verb}
        return "\n" + self.question.format(**fields) + self.prefix.format(**fields)


def _frames(rng: Rng, value_kind: str) -> _Frames:
    said = clause(rng)
    what = phrase(rng, value_kind.rstrip("0123456789"), said)
    needle = rng.choice(_NEEDLES)
    if needle[0].startswith("One of the") and what.startswith("special magic"):
        needle = ("One of our {what} for ", *needle[1:])
    return _Frames(needle, rng.choice(_QUESTIONS), rng.choice(_PREFIXES), what, said)


def _verb(rng: Rng, plural: bool) -> str:
    return rng.choice(("are", "are", "were") if plural else ("is", "is", "is", "was", "is:"))


def needles(rng: Rng, tokens: int) -> Draft:
    """Keys with one value each; every key may be asked."""
    key_kind, value_kind = _key_kind(rng), _value_kind(rng)
    frames = _frames(rng, value_kind)
    cost = (20 if key_kind == "uuid" else 5) + (20 if value_kind == "uuid" else 4) + 4
    most = max(1, int(tokens * rng.uniform(0.35, 0.8)) // (cost + 8))
    count = rng.randint(1, most) if rng.random() < 0.5 else most
    count = min(count, 2) if rng.random() < 0.15 else count
    names = words.keys(rng, key_kind, count)
    values = {name: words.value(rng, value_kind) for name in names}
    texts = [frames.state(name, values[name]) for name in names]
    asked = rng.sample(names, min(count, max(1, min(40, (tokens // 2) // (cost + 8)))))
    questions: list[list[Segment]] = []
    for name in asked:
        text = frames.ask(name, _verb(rng, False))
        questions.append([(text, False), (f" {frames.quote(name, values[name])}.{END}", True)])
    return Draft(texts, questions, words.filler(rng), joiner=rng.choice((" ", "\n")))


def many_values(rng: Rng, tokens: int) -> Draft:
    """Keys with several values each, answered in order of appearance."""
    value_kind = "number7" if rng.random() < 0.7 else _value_kind(rng)
    frames = _frames(rng, value_kind)
    cost = (20 if value_kind == "uuid" else 4) + 14
    per_key = rng.randint(2, 5)
    count = rng.randint(1, max(1, tokens // (2 * per_key * cost)))
    names = words.keys(rng, "pair", count)
    pairs = [(name, words.value(rng, value_kind)) for name in names for _ in range(per_key)]
    rng.shuffle(pairs)
    texts = [frames.state(name, value) for name, value in pairs]
    questions: list[list[Segment]] = []
    for name in rng.sample(names, min(count, max(1, tokens // 4 // (per_key * 12 + 20)))):
        answer = ", ".join(frames.quote(name, v) for n, v in pairs if n == name)
        text = frames.ask(name, _verb(rng, True))
        questions.append([(text, False), (f" {answer}.{END}", True)])
    return Draft(texts, questions, words.filler(rng), joiner=rng.choice((" ", "\n")))


def many_keys(rng: Rng, tokens: int) -> Draft:
    """Questions for several keys at once; the answer repeats each key before its value."""
    value_kind = "number7" if rng.random() < 0.7 else _value_kind(rng)
    frames = _frames(rng, value_kind)
    count = max(2, min(60, tokens // 2 // ((20 if value_kind == "uuid" else 4) + 14)))
    count = rng.randint(2, count)
    names = words.keys(rng, "pair", count)
    values = {name: words.value(rng, value_kind) for name in names}
    texts = [frames.state(name, values[name]) for name in names]
    questions: list[list[Segment]] = []
    for _ in range(max(1, tokens // 4 // 90)):
        asked = rng.sample(names, min(count, rng.randint(2, 5)))
        joined = ", ".join(asked[:-1]) + f", and {asked[-1]}"
        answer = ", ".join(frames.quote(name, values[name]) for name in asked)
        text = frames.ask(joined, _verb(rng, True))
        questions.append([(text, False), (f" {answer}.{END}", True)])
    return Draft(texts, questions, words.filler(rng), joiner=rng.choice((" ", "\n")))


_ASSIGN = ("VAR {b} = {a} ", "VAR {b} = {a}\n", "LET {b} = {a} ", "SET {b} = {a} .")


def variables(rng: Rng, tokens: int) -> Draft:
    """Chains of assignments; every chain is asked, names in the order of the chain."""
    frame, mark = rng.choice(_ASSIGN), rng.choice(("VAR ", "VAR ", ""))
    hops = rng.choice((1, 2, 2, 3, 4, 4, 4))
    length = rng.choice((3, 5, 5, 5, 4))
    cost = 9 * (hops + 1)
    chains = rng.randint(
        1, max(1, min(rng.choice((1, 2, 3, 6)), tokens * 6 // 10 // (cost + 4 * hops + 24)))
    )
    queues: list[list[str]] = []
    answers: list[tuple[str, list[str]]] = []
    for _ in range(chains):
        names = list(dict.fromkeys(words.capitals(rng, length) for _ in range(hops + 1)))
        start = words.number(rng, rng.choice((5, 5, 3, 4, 6)))
        lines = [frame.format(b=names[0], a=start)]
        lines += [frame.format(b=b, a=mark + a) for a, b in zip(names, names[1:], strict=False)]
        queues.append(lines)
        answers.append((start, names))
    texts: list[str] = []
    while any(queues):
        texts.append(rng.choice([q for q in queues if q]).pop(0))
    ask = rng.choice(
        (
            "\nQuestion: Which variables are assigned the value {start}?{lead}{count} of them: ",
            "\nQuestion: Find all variables that have the value {start} above.{lead}they are: ",
            "\nFind the variables that are assigned {start} in the text.{lead}they are: ",
            "\nVariables with the value {start}: ",
        )
    )
    lead = rng.choice((" Answer: In the chain above ", " Answer: ", " According to the text, "))
    questions: list[list[Segment]] = []
    rng.shuffle(answers)
    for start, names in answers:
        text = ask.format(start=start, lead=lead, count=len(names))
        questions.append([(text, False), (" ".join(names) + END, True)])
    return Draft(texts, questions, words.filler(rng), joiner="\n")


def common_words(rng: Rng, tokens: int) -> Draft:
    """A numbered list in which some words repeat often; the answer is in order of appearance."""
    top = rng.choice((3, 5, 10, 10))
    often, seldom = rng.choice(((6, 1), (8, 1), (12, 2), (30, 3), (20, 2)))
    items = max(top * 2, int(tokens * 0.85) // 4)
    often = max(2 * seldom, min(often, int(0.6 * items) // top))
    drawn = list({words.word(rng).lower(): None for _ in range(top + max(2, items))})
    common, rare = drawn[:top], drawn[top:]
    listed = common * often
    rest = max(1, (items - len(listed)) // seldom)
    listed += rare[:rest] * seldom
    rng.shuffle(listed)
    order = list(dict.fromkeys(w for w in listed if w in set(common)))
    text = " ".join(f"{i}. {w}" for i, w in enumerate(listed, 1))
    head = rng.choice(("A numbered list:\n", "Read the words in the list below.\n", "List: "))
    ask = rng.choice(
        (
            "\nQuestion: Which {n} words are the most common?{lead}",
            "\nWhat are the {n} most frequent words in the list?{lead}",
        )
    ).format(n=top, lead=rng.choice((" Answer: The {n} most common are:", " They are:")))
    answer = " ".join(f"{i}. {w}" for i, w in enumerate(order, 1))
    questions: list[list[Segment]] = [[(ask.format(n=top), False), (f" {answer}{END}", True)]]
    return Draft([text], questions, head=head)


def frequent_words(rng: Rng, tokens: int) -> Draft:
    """Coded text with a steep distribution; the answer goes from the most frequent down."""
    top = rng.choice((1, 2, 3, 3, 3))
    alpha = rng.uniform(1.6, 2.4)
    coded = rng.random() < 0.7
    total = max(20, int(tokens * 0.85) // (3 if coded else 1) * (7 if coded else 5) // 5)
    kinds = max(top + 2, tokens // rng.randint(12, 60))
    drawn = list(
        {(words.lower(rng, 6, 6) if coded else words.word(rng)): None for _ in range(kinds)}
    )
    dots = ["..."] if coded else []
    text: list[str] = []
    for rank, item in enumerate([*dots, *drawn], 1):
        share = total * rank**-alpha / 1.64
        text += [item] * int(share if share >= 1 else rng.random() < share)
    rng.shuffle(text)
    head = rng.choice(("Coded text: ", "Track how often each word comes. ", ""))
    ask = rng.choice(
        (
            "\nQuestion: Which words are the most frequent?{lead}",
            "\nQuestion: Please ignore the dots. What are the {n} most frequent words?{lead}",
        )
    ).format(n=top, lead=rng.choice((" Answer: The most frequent words are:", " They are:")))
    answer = " ".join(drawn[:top])
    questions: list[list[Segment]] = [[(ask, False), (f" {answer}{END}", True)]]
    return Draft([" ".join(text)], questions, head=head)


# (statement, quoted answer, question)
_FACTS = (
    ("The ", "{thing} of {name} opened in {value}", "In what year did the {thing} of {name} open?"),
    ("The ", "{thing} of {name} was built in {value}", "When was the {thing} of {name} built?"),
    ("", "{name} is known for its {value}", "What is {name} known for?"),
    ("The people of ", "{name} make {value}", "What do the people of {name} make?"),
)
_THINGS = "market bridge school garden station library museum tower".split()


def documents(rng: Rng, tokens: int) -> Draft:
    """Facts in numbered documents with prose around them."""
    before, quote, ask = rng.choice(_FACTS)
    thing = rng.choice(_THINGS)
    count = rng.randint(1, max(1, tokens // 60))
    prose = words.filler(rng)
    pieces: list[str] = []
    answers: list[tuple[str, str]] = []
    for i, name in enumerate(words.keys(rng, "name", count), 1):
        value = words.number(rng, 4) if "{thing}" in quote else words.word(rng)
        told = quote.format(thing=thing, name=name, value=value)
        around = rng.sample(prose, 3)
        first = f"{around[2]} " if rng.random() < 0.5 else f"{name} is a place. "
        pieces.append(f"Document {i}:\n{first}{around[0]} {before}{told}. {around[1]}")
        answers.append((ask.format(thing=thing, name=name), told))
    rng.shuffle(answers)
    questions: list[list[Segment]] = []
    for question, told in answers[: max(1, tokens // 70)]:
        text = f"\n\nQuestion: {question} Answer:"
        questions.append([(text, False), (f" {told}{END}", True)])
    return Draft(pieces, questions, joiner="\n\n")


_JOINS = (
    ("is a village by the stream", "The stream", "brings", "What does the stream at {n} bring?"),
    ("stands on the river", "The river", "carries", "What does the river of {n} carry?"),
    ("lies near the lake", "The lake", "is full of", "What is the lake of {n} full of?"),
)


def two_facts(rng: Rng, tokens: int) -> Draft:
    """Two facts to join; the answer quotes the first and goes on with the second."""
    count = rng.randint(1, max(1, tokens // 70))
    names = words.keys(rng, "name", 2 * count)
    numbered = rng.random() < 0.6
    lies, subject, verb, ask = rng.choice(_JOINS)
    pieces: list[str] = []
    answers: list[tuple[str, str]] = []
    for i in range(count):
        name, value = names[i], words.word(rng)
        water = names[count + i] + (str(rng.randint(1, 999)) if numbered else "")
        pieces.append(f"{name}\n{name} {lies} {water}. {words.sentence(rng)}")
        pieces.append(f"{water}\n{subject} {water} {verb} {value} {words.sentence(rng).lower()}")
        answers.append((name, f"{name} {lies} {water} {verb} {value}"))
    rng.shuffle(pieces)
    pieces = [f"Document {i}:\n{text}" for i, text in enumerate(pieces, 1)]
    questions: list[list[Segment]] = []
    for name, told in answers[: max(1, tokens // 70)]:
        text = f"\n\nQuestion: {ask.format(n=name)} Answer:"
        questions.append([(text, False), (f" {told}{END}", True)])
    return Draft(pieces, questions, joiner="\n\n")


def repeats(rng: Rng, tokens: int) -> Draft:
    """A random sequence and a part of it again: plain copying."""
    kind = rng.random()
    count = tokens // 3
    if kind < 0.4:
        items = [words.word(rng) for _ in range(count)]
    elif kind < 0.7:
        items = [words.number(rng, rng.randint(3, 6)) for _ in range(count // 2)]
    else:
        items = [words.capitals(rng, 5) for _ in range(count // 3)]
    start = rng.randrange(max(1, len(items) // 2))
    lead = 2
    again = items[start : start + max(lead + 2, len(items) // 2)]
    opening = " " + " ".join(again[:lead])
    questions: list[list[Segment]] = [[("\n", False), (opening, False)]]
    questions[0].append((" " + " ".join(again[lead:]), True))
    return Draft([" ".join(items)], questions)


FAMILIES: dict[str, Family] = {
    "needles": needles,
    "many_values": many_values,
    "many_keys": many_keys,
    "variables": variables,
    "common_words": common_words,
    "frequent_words": frequent_words,
    "documents": documents,
    "two_facts": two_facts,
    "repeats": repeats,
}
