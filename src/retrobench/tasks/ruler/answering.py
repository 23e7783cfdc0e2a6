"""Question answering over documents (qa_1, qa_2)."""

from __future__ import annotations

import random

from retrobench.tasks.haystack import Corpus
from retrobench.tasks.ruler import spec
from retrobench.tasks.ruler.draft import Draft, Maker


def maker(rng: random.Random, corpus: Corpus, index: int) -> tuple[Maker, int]:
    """The maker, and how many documents there are. Units: documents.

    Sample ``index`` asks question ``index``; its gold documents come first, then those of the same
    article, then others, and all are shuffled afresh for every sample.
    """
    if index >= len(corpus.questions):
        raise ValueError(
            f"{corpus.name} has {len(corpus.questions)} questions; task.samples asks for more"
        )
    question = corpus.questions[index]
    own = {*question.gold, *question.related}
    others = [document for document in corpus.documents if document not in own]
    rng.shuffle(others)
    pool = [*question.gold, *question.related, *others]
    seed = rng.getrandbits(64)

    def make(units: int) -> Draft:
        chosen = pool[: max(units, len(question.gold))]
        random.Random(seed).shuffle(chosen)
        listed = (f"Document {i}:\n{text}" for i, text in enumerate(chosen, 1))
        return Draft(
            context=spec.QA_HEAD + "\n\n".join(listed),
            question=spec.QA_QUESTION.format(query=question.text),
            prefix=spec.QA_PREFIX,
            references=question.answers,
            meta={"haystack": corpus.name},
        )

    return make, len(pool)
