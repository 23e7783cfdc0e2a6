"""Worlds of relations: directions, times, animals, shapes, sizes, paths, motives."""

import random

from retrobench.tasks.scorers.babilong import LABELS, PLACES

World = tuple[list[str], str, str]  # facts, question, answer
_SIDES = {"n": "north", "s": "south", "e": "east", "w": "west"}
_OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}


def directions(rng: random.Random) -> World:
    """What is north of a place (qa4)."""
    first, middle, last = rng.sample(PLACES, 3)
    side = rng.choice(list(_OPPOSITE))
    facts = [f"The {first} is {side} of the {middle}.", f"The {middle} is {side} of the {last}."]
    rng.shuffle(facts)
    asked = (
        (f"What is {side} of the {middle}?", first),
        (f"What is the {middle} {side} of?", last),
    )
    return facts, *rng.choice(asked)


def times(rng: random.Random) -> World:
    """Where somebody was before, of facts out of order (qa14)."""
    who, other = rng.sample(("Bill", "Fred", "Julie", "Mary"), 2)
    route = rng.sample(LABELS["qa14"], 3)
    days = ("Yesterday", "This morning", "This afternoon")
    facts = [f"{day} {who} went to the {place}." for day, place in zip(days, route, strict=True)]
    facts.append(f"Yesterday {other} went to the {rng.choice(LABELS['qa14'])}.")
    rng.shuffle(facts)
    step = rng.randint(1, 2)
    return facts, f"Where was {who} before the {route[step]}?", route[step - 1]


def fears(rng: random.Random) -> World:
    """What somebody's kind is afraid of (qa15)."""
    plural = {"cat": "Cats", "mouse": "Mice", "sheep": "Sheep", "wolf": "Wolves"}
    kinds = list(plural)
    afraid = {kind: rng.choice([other for other in kinds if other != kind]) for kind in kinds}
    facts = [
        f"{plural[kind]} are afraid of {plural[other].lower()}." for kind, other in afraid.items()
    ]
    named = {name: rng.choice(kinds) for name in ("Gertrude", "Winona", "Emily", "Jessica")}
    facts += [f"{name} is a {kind}." for name, kind in named.items()]
    rng.shuffle(facts)
    who = rng.choice(list(named))
    return facts, f"What is {who.lower()} afraid of?", afraid[named[who]]


def colours(rng: random.Random) -> World:
    """The colour of somebody whose kind is known from others (qa16)."""
    kinds: list[str] = ["frog", "lion", "swan", "rhino"]
    colour = dict(zip(kinds, rng.sample(LABELS["qa16"], 4), strict=True))
    names = rng.sample(("Lily", "Bernhard", "Brian", "Julius", "Greg"), 5)
    kinds.append(rng.choice(kinds))  # the last is known by its kind alone
    facts = [f"{name} is a {kind}." for name, kind in zip(names, kinds, strict=True)]
    facts += [f"{name} is {colour[kind]}." for name, kind in zip(names[:4], colour, strict=True)]
    rng.shuffle(facts)
    return facts, f"What color is {names[4]}?", colour[kinds[4]]


def _yes_or_no(rng: random.Random, facts: list[str], true: str, false: str) -> World:
    """The facts in some order, and one of two questions."""
    rng.shuffle(facts)
    question, answer = (true, "yes") if rng.random() < 0.5 else (false, "no")
    return facts, question, answer


def positions(rng: random.Random) -> World:
    """Whether a shape is above another, over a third (qa17)."""
    one, two, three = rng.sample(("triangle", "pink rectangle", "blue square", "red sphere"), 3)
    facts = [f"The {one} is above the {two}.", f"The {two} is above the {three}."]
    true, false = f"Is the {one} above the {three}?", f"Is the {one} below the {three}?"
    return _yes_or_no(rng, facts, true, false)


def sizes(rng: random.Random) -> World:
    """Whether a thing fits into another (qa18)."""
    one, two, three = rng.sample(("box", "chest", "suitcase", "container", "chocolate"), 3)
    facts = [f"The {one} fits inside the {two}.", f"The {three} is bigger than the {two}."]
    true, false = f"Does the {one} fit in the {three}?", f"Is the {one} bigger than the {three}?"
    return _yes_or_no(rng, facts, true, false)


def paths(rng: random.Random) -> World:
    """Two steps from a place to another (qa19)."""
    answer = rng.choice(LABELS["qa19"])
    start, middle, end, other = rng.sample(PLACES, 4)
    first, second = (_SIDES[letter] for letter in answer.split(","))
    facts = [
        f"The {middle} is {first} of the {start}.",
        f"The {middle} is {_OPPOSITE[second]} of the {end}.",
        f"The {other} is {_OPPOSITE[first]} of the {start}.",
    ]
    rng.shuffle(facts)
    return facts, f"How do you go from the {start} to the {end}?", answer


def motives(rng: random.Random) -> World:
    """Where somebody will go, or why somebody went (qa20)."""
    goal = {"tired": "bedroom", "hungry": "kitchen", "thirsty": "kitchen", "bored": "garden"}
    who, other = rng.sample(("Sumit", "Yann", "Antoine", "Jason"), 2)
    mood, spare = rng.sample(list(goal), 2)
    facts = [f"{who} is {mood}.", f"{other} is {spare}."]
    rng.shuffle(facts)
    if rng.random() < 0.5:
        return facts, f"Where will {who.lower()} go?", goal[mood]
    facts.append(f"{who} journeyed to the {goal[mood]}.")
    return facts, f"Why did {who.lower()} go to the {goal[mood]}?", mood
