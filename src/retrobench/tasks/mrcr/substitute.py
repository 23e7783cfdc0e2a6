"""Substitute conversations in MRCR's schema: invented writings, some asked for several times."""

import json
import random
import string
from typing import Any

from retrobench.tasks.records import Prose

_FORMS = ("poem", "blog post", "short essay", "news article", "social media post", "short scene")
_TOPICS = ("tapirs", "rocks", "bridges", "lanterns", "rivers", "gardens", "clocks", "harbours")
_ORDINALS = ("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th")
_TURN_TOKENS = 160
_ASK = (
    "Prepend {prefix} to the {ordinal} (1 indexed) {what}. Do not include any other text in your "
    "response."
)


def conversation(needles: int, tokens: float, rng: random.Random, prose: Prose) -> dict[str, Any]:
    """A record of about so many tokens with ``needles`` equal requests."""
    count = max(needles + 2, int(tokens / _TURN_TOKENS) - 2)
    pairs = [f"{form} about {topic}" for form in _FORMS for topic in _TOPICS]
    wanted = pairs.pop(rng.randrange(len(pairs)))
    asked = [rng.choice(pairs) for _ in range(count - needles)]
    for place in sorted(rng.sample(range(count), needles)):
        asked.insert(place, wanted)
    messages = [{"role": "user", "content": _example(rng, prose)}]
    writings = []
    for what in asked:
        text = prose.text(_TURN_TOKENS - 25, rng)
        messages.append({"role": "user", "content": f"write a {what}"})
        messages.append({"role": "assistant", "content": text})
        writings.append(text)
    places = [place for place, what in enumerate(asked) if what == wanted]
    chosen, prefix = rng.randrange(needles), _prefix(rng)
    question = _ASK.format(prefix=prefix, ordinal=_ORDINALS[chosen], what=wanted)
    messages.append({"role": "user", "content": question})
    text = json.dumps(messages)
    return {
        "prompt": text,
        "answer": prefix + writings[places[chosen]],
        "random_string_to_prepend": prefix,
        "n_needles": needles,
        "desired_msg_index": 1 + 2 * places[chosen],
        "total_messages": len(messages),
        "n_chars": sum(len(message["content"]) for message in messages),
    }


def _example(rng: random.Random, prose: Prose) -> str:
    """A worked example, which the first message of a conversation holds."""
    prefix, first, second = _prefix(rng), prose.text(30, rng), prose.text(30, rng)
    turns = [f"User: write a poem about moths\nAssistant: {text}" for text in (first, second)]
    ask = _ASK.format(prefix=prefix, ordinal="2nd", what="poem about moths")
    lines = "\n".join([*turns, f"User: {ask}\nAssistant: {prefix}{second}"])
    return (
        "Here is an example of a conversation succeeded by a follow-up question answered "
        f"correctly:\n\n======EXAMPLE======\n{lines}\n======END EXAMPLE======\n\n"
        "Here is the conversation:"
    )


def _prefix(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_letters + string.digits, k=10))
