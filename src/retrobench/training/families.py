"""Training samples: the families of RULER's tasks in other words, many questions per sample.

A sample is a ``Draft``: context pieces of which as many are kept as fit, then questions with
answers. The frames below share words with RULER's templates but never make one of its prompts:
``phrase`` and ``clause`` exclude the combinations that RULER uses.
"""

from __future__ import annotations

from retrobench.training import words
from retrobench.training.circuits import SEPARATOR
from retrobench.training.draft import END, Draft, Family, Rng, Segment
from retrobench.training.needles import many_keys, many_values, needles

_ASSIGN = ("VAR ", "VAR ", "VAR ", "set ", "note ", "name ")


def variables(rng: Rng, tokens: int) -> Draft:
    """Chains of assignments; every chain is asked, answered by its value and then its names in
    order."""
    mark, end = rng.choice(_ASSIGN), rng.choice((" ", "\n", " ."))
    hops = rng.choice((1, 2, 2, 3, 4, 4, 4))
    length = 5
    cost = 9 * (hops + 1)
    chains = rng.randint(
        1, max(1, min(rng.choice((1, 2, 3, 6)), tokens * 6 // 10 // (cost + 4 * hops + 24)))
    )
    queues: list[list[str]] = []
    answers: list[tuple[str, list[str]]] = []
    for _ in range(chains):
        names = list(dict.fromkeys(words.capitals(rng, length) for _ in range(hops + 1)))
        start = words.number(rng, 5)
        given = [start, *(mark + name for name in names)]
        lines = [f"{mark}{b} = {a}{end}" for a, b in zip(given, names, strict=False)]
        queues.append(lines)
        answers.append((start, names))
    texts: list[str] = []
    while any(queues):
        texts.append(rng.choice([q for q in queues if q]).pop(0))
    ask = rng.choice(
        (
            "\nQuestion: Find all variables that have the value {start} above.{lead}they are: ",
            "\nFind the variables that are assigned the value {start} in the list.{lead}they are: ",
            "\nWhat variables are assigned the value {start}?{lead}the names are: ",
            "\nThe variables with the value {start}: ",
        )
    )
    lead = rng.choice((" Answer: In the chain above ", " Answer: ", " In the text, "))
    questions: list[list[Segment]] = []
    rng.shuffle(answers)
    for start, names in answers:
        text = ask.format(start=start, lead=lead)
        answer = " ".join(["", start, *names]) + END
        questions.append([Segment(text, False), Segment(answer, True)])
    return Draft(texts, questions, words.filler(rng), joiner="\n")


_LIST_LEADS = (
    " Answer: The {n} most common are:",
    " Answer: The words that come most often in the text are:",
    " Answer: As the text above shows, the {n} most common words are:",
    " The words are:",
)


def _word_list(rng: Rng, tokens: int, top: int) -> tuple[str, list[str]]:
    """A numbered list of about ``tokens`` tokens and the ``top`` words that repeat often in it."""
    often, seldom = rng.choice(((8, 1), (12, 2), (20, 2), (30, 3), (30, 3)))
    items = max(top * 2, tokens // 4)
    often = max(2 * seldom, min(often, int(0.6 * items) // top))
    drawn = list({words.known(rng).lower(): None for _ in range(top + max(2, items))})
    common, rare = drawn[:top], drawn[top:]
    listed = common * often
    rest = max(1, (items - len(listed)) // seldom)
    listed += rare[:rest] * seldom
    rng.shuffle(listed)
    return " ".join(f"{i}. {w}" for i, w in enumerate(listed, 1)), common


def common_words(rng: Rng, tokens: int) -> Draft:
    """A numbered list in which some words repeat often, perhaps after a small solved example; the
    answer names them in any order."""
    top = rng.choice((3, 5, 10, 10))
    head = rng.choice(("A numbered list:\n", "Read the words in the list below.\n", "List: "))
    ask = rng.choice(
        (
            "\nQuestion: What {n} words are the most common?{lead}",
            "\nWhat are the {n} words that come most often in the list?{lead}",
        )
    ).format(n=top, lead=rng.choice(_LIST_LEADS).format(n=top))
    room = int(tokens * 0.85) - 6 * top
    solved = ""
    if tokens >= 256 and rng.random() < 0.5:
        text, common = _word_list(rng, room // 4, top)
        listed = "".join(f" {i}. {word}" for i, word in enumerate(common, 1))
        solved = f"{head}{text}{ask}{listed}\n"
        room -= room // 4 + 12 * top
    text, common = _word_list(rng, room, top)
    questions = [[Segment(ask, False), *_listed(common, any_order=True)]]
    return Draft([text], questions, head=solved + head)


def _listed(items: list[str], any_order: bool = False) -> list[Segment]:
    """The answer that lists ``items``; as in ``many_values``, its end is not learnt."""
    texts, segments = [f" {item}" for item in items], []
    for at, text in enumerate(texts):
        later = tuple(texts[at + 1 :]) if any_order else ()
        segments += [Segment(SEPARATOR, True), Segment(text, True, later)]
    return [*segments, Segment(END, False)]


def frequent_words(rng: Rng, tokens: int) -> Draft:
    """Coded text with a steep distribution; the answer goes from the most frequent down."""
    top = 3
    alpha = rng.uniform(1.8, 2.4)
    total = max(20, int(tokens * 0.85) // 15 * 7)
    kinds = max(top + 2, tokens // rng.randint(12, 60))
    drawn = list({words.lower(rng, 6, 6): None for _ in range(kinds)})
    text: list[str] = []
    for rank, item in enumerate(["...", *drawn], 1):
        share = total * rank**-alpha / 1.64
        text += [item] * int(share if share >= 1 else rng.random() < share)
    rng.shuffle(text)
    head = rng.choice(("Coded text: ", "Track how often each word comes. ", ""))
    ask = rng.choice(
        (
            "\nQuestion: What words come most often?{lead}",
            "\nQuestion: Please ignore the dots. What are the {n} most common words?{lead}",
        )
    ).format(n=top, lead=rng.choice(_LIST_LEADS).format(n=top))
    questions = [[Segment(ask, False), *_listed(drawn[:top])]]
    return Draft([" ".join(text)], questions, head=head)


# (before the quote, what an answer quotes, question)
_FACTS = (
    ("The {thing} of ", "{name} opened in {value}", "In what year did the {thing} of {name} open?"),
    ("The {thing} of ", "{name} was built in {value}", "When was the {thing} of {name} built?"),
    ("", "{name} is known for its {value}", "What is {name} known for?"),
    ("", "{name} opened its {thing} in {value}", "When did the {thing} of {name} open?"),
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
        value = words.number(rng, 4) if "{thing}" in ask else words.word(rng)
        told = quote.format(thing=thing, name=name, value=value)
        around = rng.sample(prose, 3)
        first = f"{around[2]} " if rng.random() < 0.5 else f"{name} is a place. "
        pieces.append(
            f"Document {i}:\n{first}{around[0]} {before.format(thing=thing)}{told}. {around[1]}"
        )
        answers.append((ask.format(thing=thing, name=name), told))
    rng.shuffle(answers)
    questions: list[list[Segment]] = []
    for question, told in answers[: max(1, tokens // 70)]:
        text = f"\n\nQuestion: {question} Answer:"
        questions.append([Segment(text, False), Segment(f" {told}{END}", True)])
    return Draft(pieces, questions, joiner="\n\n")


_JOINS = (
    ("is a village by the stream", "The stream", "brings", "What does the stream at {n} bring?"),
    ("stands on the river", "The river", "carries", "What does the river of {n} carry?"),
    ("lies near the lake", "The lake", "is full of", "What is the lake of {n} full of?"),
    (
        "is a farm in the valley",
        "The valley",
        "gives",
        "What does the valley in which {n} lies give?",
    ),
    ("is one of the ports of", "The island", "sells", "What does the island {n} belongs to sell?"),
)


def _join(rng: Rng) -> tuple[str, str, str, str]:
    """How two facts are told and asked for: one of the above, or made of any words."""
    if rng.random() < 0.4:
        return rng.choice(_JOINS)
    kind, thing = words.known(rng), words.known(rng)
    verb = words.known(rng) if rng.random() < 0.5 else words.lower(rng, 4, 8)
    place = rng.choice(("on", "in", "by", "near", "under", "behind"))
    where = rng.choice((f"{place} which {{n}} lies", "of {n}", "at {n}"))
    ask = f"What does the {thing} {where} {verb}?"
    return f"is a {kind} {place} the {thing}", f"The {thing}", f"{verb}s", ask


def two_facts(rng: Rng, tokens: int) -> Draft:
    """Two facts to join; the answer quotes the first and goes on with the second."""
    count = rng.randint(1, max(1, tokens // 70))
    names = words.keys(rng, "name", 2 * count)
    numbered = rng.random() < 0.6
    lies, subject, verb, ask = _join(rng)
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
        questions.append([Segment(text, False), Segment(f" {told}{END}", True)])
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
    rest = " " + " ".join(again[lead:])
    questions = [[Segment("\n", False), Segment(opening, False), Segment(rest, True)]]
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
