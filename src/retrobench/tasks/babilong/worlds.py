"""Small invented worlds in the manner of bAbI: facts in order, a question, its answer.

They stand in for the official records, which take facts of bAbI and text of PG19.
"""

import random
from collections.abc import Callable, Sequence

from retrobench.tasks.babilong import relations
from retrobench.tasks.babilong.relations import World
from retrobench.tasks.scorers.babilong import PLACES

PEOPLE: tuple[str, ...] = ("Mary", "John", "Daniel", "Sandra")
_THINGS: tuple[str, ...] = ("apple", "football", "milk")
_GOES = ("went", "moved", "travelled", "journeyed", "went back")


def _move(rng: random.Random, who: str, where: str) -> str:
    return f"{who} {rng.choice(_GOES)} to the {where}."


def _walks(rng: random.Random) -> tuple[list[str], dict[str, str]]:
    """Facts of people who walk, and where each is in the end."""
    facts, at = [], {}
    for _ in range(rng.randint(3, 9)):
        who = rng.choice(PEOPLE)
        at[who] = rng.choice([place for place in PLACES if place != at.get(who)])
        facts.append(_move(rng, who, at[who]))
    return facts, at


def one_fact(rng: random.Random) -> World:
    """Where somebody is (qa1)."""
    facts, at = _walks(rng)
    who = rng.choice(list(at))
    return facts, f"Where is {who}?", at[who]


def _carried(rng: random.Random) -> tuple[list[str], str, list[str]]:
    """Somebody takes a thing and walks on; others walk as well. The places of the thing."""
    who, thing = rng.choice(PEOPLE), rng.choice(_THINGS)
    route = rng.sample(PLACES, 4)
    facts = [_move(rng, who, route[0]), f"{who} picked up the {thing} there."]
    for place in route[1:]:
        other = rng.choice([name for name in PEOPLE if name != who])
        facts += [_move(rng, other, rng.choice(PLACES)), _move(rng, who, place)]
    if rng.random() < 0.5:
        facts.append(f"{who} dropped the {thing}.")
        facts.append(_move(rng, who, rng.choice([p for p in PLACES if p != route[-1]])))
    return facts, thing, route


def two_facts(rng: random.Random) -> World:
    """Where a thing is (qa2)."""
    facts, thing, route = _carried(rng)
    return facts, f"Where is the {thing}?", route[-1]


def three_facts(rng: random.Random) -> World:
    """Where a thing was before (qa3)."""
    facts, thing, route = _carried(rng)
    step = rng.randint(1, len(route) - 1)
    return facts, f"Where was the {thing} before the {route[step]}?", route[step - 1]


def giving(rng: random.Random) -> World:
    """Who gave what to whom (qa5)."""
    giver, taker, other = rng.sample(("Bill", "Fred", "Jeff", "Mary"), 3)
    thing, spare = rng.sample(_THINGS, 2)
    facts = [
        f"{giver} picked up the {thing} there.",
        f"{other} took the {spare} there.",
        f"{giver} gave the {thing} to {taker}.",
        _move(rng, other, rng.choice(PLACES)),
    ]
    asked = (
        (f"What did {giver} give to {taker}?", thing),
        (f"Who gave the {thing} to {taker}?", giver),
        (f"Who did {giver} give the {thing} to?", taker),
    )
    return facts, *rng.choice(asked)


def yes_no(rng: random.Random) -> World:
    """Whether somebody is somewhere (qa6)."""
    facts, at = _walks(rng)
    who = rng.choice(list(at))
    asked = at[who] if rng.random() < 0.5 else rng.choice([p for p in PLACES if p != at[who]])
    return facts, f"Is {who} in the {asked}?", "yes" if asked == at[who] else "no"


def _holding(rng: random.Random) -> tuple[list[str], str, list[str]]:
    """Somebody takes and drops things; what is left in hand."""
    who, held, facts = rng.choice(PEOPLE), [], []
    for thing in rng.sample(_THINGS, rng.randint(1, len(_THINGS))):
        facts += [_move(rng, who, rng.choice(PLACES)), f"{who} got the {thing} there."]
        held.append(thing)
    for thing in rng.sample(held, rng.randint(0, len(held))):
        facts.append(f"{who} dropped the {thing}.")
        held.remove(thing)
    return facts, who, held


def counting(rng: random.Random) -> World:
    """How many things somebody carries (qa7)."""
    facts, who, held = _holding(rng)
    count = ("none", "one", "two", "three")[len(held)]
    return facts, f"How many objects is {who} carrying?", count


def listing(rng: random.Random) -> World:
    """Which things somebody carries (qa8)."""
    facts, who, held = _holding(rng)
    return facts, f"What is {who} carrying?", ",".join(held) or "nothing"


def negation(rng: random.Random) -> World:
    """Facts that deny (qa9)."""
    facts, at = _walks(rng)
    who = rng.choice(list(at))
    if rng.random() < 0.5:
        facts.append(f"{who} is no longer in the {at[who]}.")
        return facts, f"Is {who} in the {at[who]}?", "no"
    return facts, f"Is {who} in the {at[who]}?", "yes"


def maybe(rng: random.Random) -> World:
    """Facts that leave it open (qa10)."""
    places = rng.sample(("bedroom", "cinema", "kitchen", "office", "park", "school"), 4)
    who, other = rng.sample(("Bill", "Fred", "Julie", "Mary"), 2)
    facts = [
        f"{who} is either in the {places[0]} or the {places[1]}.",
        f"{other} is in the {places[2]}.",
    ]
    rng.shuffle(facts)
    asked = (
        (f"Is {who} in the {places[0]}?", "maybe"),
        (f"Is {who} in the {places[3]}?", "no"),
        (f"Is {other} in the {places[2]}?", "yes"),
    )
    return facts, *rng.choice(asked)


def _together(rng: random.Random, groups: Sequence[str], pronoun: bool) -> World:
    """Walks of one or of two people, where the second sentence may name nobody."""
    facts, at = [], {}
    for _ in range(rng.randint(2, 4)):
        group = rng.choice(groups)
        first, second = rng.sample(PLACES, 2)
        facts.append(_move(rng, group, first))
        if pronoun:
            word = "they" if " and " in group else "she" if group in ("Mary", "Sandra") else "he"
            facts.append(f"After that {word} {rng.choice(_GOES)} to the {second}.")
        at |= dict.fromkeys(group.split(" and "), second if pronoun else first)
    who = rng.choice(list(at))
    return facts, f"Where is {who}?", at[who]


_PAIRS = [f"{one} and {two}" for one in PEOPLE for two in PEOPLE if one < two]

WORLDS: dict[str, Callable[[random.Random], World]] = {
    "qa1": one_fact,
    "qa2": two_facts,
    "qa3": three_facts,
    "qa4": relations.directions,
    "qa5": giving,
    "qa6": yes_no,
    "qa7": counting,
    "qa8": listing,
    "qa9": negation,
    "qa10": maybe,
    "qa11": lambda rng: _together(rng, PEOPLE, True),
    "qa12": lambda rng: _together(rng, _PAIRS, False),
    "qa13": lambda rng: _together(rng, _PAIRS, True),
    "qa14": relations.times,
    "qa15": relations.fears,
    "qa16": relations.colours,
    "qa17": relations.positions,
    "qa18": relations.sizes,
    "qa19": relations.paths,
    "qa20": relations.motives,
}
"""Question set -> a world of its kind."""
