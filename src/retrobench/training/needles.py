"""Needle families: facts about keys, in frames that share words with RULER's but never make one of
its prompts (``phrase`` and ``clause`` exclude the combinations that RULER uses)."""

from __future__ import annotations

from dataclasses import dataclass

from retrobench.training import words
from retrobench.training.draft import END, Draft, Rng, Segment

_ADJECTIVES = ("special", "magic", "secret", "hidden", "lucky", "daily", "final", "common", "")
_NOUNS = {
    "number": ("number", "numbers", "code", "figure", "price", "count"),
    "uuid": ("uuid", "uuids", "token", "identifier", "address"),
    "pair": ("word", "words", "phrase", "name", "label"),
}
# (before the key, between key and value, after the value); an answer quotes from the key on
_NEEDLES = (
    ("One of the {what} for ", " is: ", "."),
    ("One of the {what} for ", " is: ", "."),
    ("The {what} for ", " is: ", "."),
    ("The {what} of ", " is ", "."),
    ("One {what} for ", " was: ", "."),
    ("The {what} that belongs to ", " is ", "."),
    ("", " is: ", "."),
    ("", ": ", ";"),
)
_QUESTIONS = (
    "What is the {what} for {key} {clause}?",
    "What are all the {what} for {key} {clause}?",
    "What {what} was for {key} {clause}?",
    "Find the {what} for {key} {clause}.",
    "Question: What is the {what} for {key}?",
    "",
)
_PREFIXES = (
    " The {what} for {key} {clause} {verb}",
    " The {what} for {key} {clause} {verb}",
    " Answer: The {what} for {key} {clause} {verb}",
    " In the text {clause} the {what} for {key} in this text {verb}",
)
_CLAUSE = (
    ("mentioned", "given", "hidden", "listed", "named", "that are", "written"),
    ("in", "within", "above in", "somewhere in", "by"),
    ("the", "the following", "the provided", "this", "the given", "the above", "the long"),
    ("text",),
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
    return " ".join(" ".join(rng.choice(part) for part in _CLAUSE).split())


def _value_kind(rng: Rng) -> str:
    pick = rng.random()
    if pick < 0.6:
        return f"number{7 if rng.random() < 0.6 else rng.randint(2, 9)}"
    return "uuid" if pick < 0.85 else "pair"


def _key_kind(rng: Rng) -> str:
    return rng.choices(("pair", "uuid", "number", "word"), (60, 26, 6, 8))[0]


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


def _frames(rng: Rng, value_kind: str, several: bool = False) -> _Frames:
    said = clause(rng)
    what = phrase(rng, value_kind.rstrip("0123456789"), said)
    needle = rng.choice([n for n in _NEEDLES if not several or n[1] in (" is: ", " was: ")])
    if needle[0].startswith("One of the") and what.startswith("special magic"):
        needle = ("One of our {what} for ", *needle[1:])
    return _Frames(needle, rng.choice(_QUESTIONS), rng.choice(_PREFIXES), what, said)


def _verb(rng: Rng, plural: bool) -> str:
    return "are" if plural else rng.choice(("is", "is", "was"))


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
        answer = f" {frames.quote(name, values[name])}.{END}"
        questions.append([Segment(text, False), Segment(answer, True)])
    return Draft(texts, questions, words.filler(rng), joiner=rng.choice((" ", "\n")))


def many_values(rng: Rng, tokens: int) -> Draft:
    """Keys with several values each, answered in any order. Whether that was all is not learnt: an
    answer goes on until it is cut."""
    value_kind = "number7"
    frames = _frames(rng, value_kind, several=True)
    cost = 18
    per_key = rng.randint(2, 5)
    count = rng.randint(1, max(1, tokens // (2 * per_key * cost)))
    names = words.keys(rng, "hyphened", count)
    pairs = [(name, words.value(rng, value_kind)) for name in names for _ in range(per_key)]
    rng.shuffle(pairs)
    texts = [frames.state(name, value) for name, value in pairs]
    questions: list[list[Segment]] = []
    for name in rng.sample(names, min(count, max(1, tokens // 4 // (per_key * 12 + 20)))):
        mine = [f" {v}" for n, v in pairs if n == name]
        question = [Segment(frames.ask(name, _verb(rng, True)), False)]
        for at, v in enumerate(mine):
            question.append(Segment(f" {frames.quote(name, '').rstrip()}", True))
            question.append(Segment(v, True, tuple(mine[at + 1 :])))
        questions.append([*question, Segment(f".{END}", False)])
    return Draft(texts, questions, words.filler(rng), joiner=rng.choice((" ", "\n")))


def many_keys(rng: Rng, tokens: int) -> Draft:
    """Questions for several keys at once; the answer repeats each key before its value, and its
    end is not learnt, as that of ``many_values``."""
    value_kind = "number7"
    frames = _frames(rng, value_kind, several=True)
    count = max(2, min(60, tokens // 2 // 18))
    count = rng.randint(2, count)
    names = words.keys(rng, "hyphened", count)
    values = {name: words.value(rng, value_kind) for name in names}
    texts = [frames.state(name, values[name]) for name in names]
    questions: list[list[Segment]] = []
    for _ in range(max(1, tokens // 4 // 90)):
        asked = rng.sample(names, min(count, rng.randint(2, 5)))
        joined = ", ".join(asked[:-1]) + f", and {asked[-1]}"
        answer = " ".join(frames.quote(name, values[name]) for name in asked)
        text = frames.ask(joined, _verb(rng, True))
        segments = [Segment(text, False), Segment(f" {answer}", True), Segment(f".{END}", False)]
        questions.append(segments)
    return Draft(texts, questions, words.filler(rng), joiner=rng.choice((" ", "\n")))
