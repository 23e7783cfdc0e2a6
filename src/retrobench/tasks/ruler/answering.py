"""Question answering over documents (qa_1, qa_2)."""

import random
from collections.abc import Iterable, Iterator
from itertools import chain, cycle, islice

from retrobench.core.task import FollowUp
from retrobench.tasks.corpus import Corpus
from retrobench.tasks.fitting.parts import MAX_FOLLOW_UPS, PromptFactory, PromptParts
from retrobench.tasks.ruler import spec

_MAX_MISSES = 50  # documents in a row that are too long: then the room is too small for any


def factory(rng: random.Random, corpus: Corpus, index: int) -> PromptFactory:
    """Units: characters of documents.

    Sample ``index`` asks question ``index``. Its gold documents are always in the prompt. The room
    left is filled with documents of the same article, then with others, in random order; the others
    repeat when all are used. All documents are shuffled for every sample.
    """
    if index >= len(corpus.questions):
        raise ValueError(
            f"{corpus.name} has {len(corpus.questions)} questions; task.samples asks for more"
        )
    question = corpus.questions[index]
    own = {*question.gold, *question.related}
    related = rng.sample(question.related, len(question.related))
    others = [document for document in corpus.documents if document not in own]
    rng.shuffle(others)
    seed = rng.getrandbits(64)

    def make(units: int) -> PromptParts:
        room = units - sum(map(len, question.gold))
        chosen = [*question.gold, *_filling(chain(related, cycle(others)), room)]
        random.Random(seed).shuffle(chosen)
        listed = (f"Document {i}:\n{text}" for i, text in enumerate(chosen, 1))
        return PromptParts(
            context=spec.QA_HEAD + "\n\n".join(listed),
            question=spec.QA_QUESTION.format(query=question.text),
            answer_prefix=spec.QA_PREFIX,
            references=question.answers,
            meta={"haystack": corpus.name},
            follow_ups=tuple(islice(_follow_ups(corpus, index, set(chosen)), MAX_FOLLOW_UPS)),
        )

    return make


def _follow_ups(corpus: Corpus, index: int, chosen: set[str]) -> Iterator[FollowUp]:
    """The next questions whose gold documents are in the prompt too."""
    first = corpus.questions[index]
    for question in (*corpus.questions[index + 1 :], *corpus.questions[:index]):
        if question.text != first.text and chosen.issuperset(question.gold):
            yield FollowUp(
                question=spec.QA_QUESTION.format(query=question.text),
                answer_prefix=spec.QA_PREFIX,
                references=question.answers,
            )


def _filling(documents: Iterable[str], room: int) -> list[str]:
    """Documents in order, at most ``room`` characters together; neither empty nor too long ones."""
    chosen: list[str] = []
    misses = 0
    for document in documents:
        if 0 < len(document) <= room:
            chosen.append(document)
            room -= len(document)
            misses = 0
        else:
            misses += 1
        if misses > _MAX_MISSES:
            break
    return chosen
