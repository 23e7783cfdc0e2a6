"""Documents and questions for RULER's QA tasks: local files, or labelled synthetic ones."""

import random
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from retrobench.core.cell import text_hash
from retrobench.tasks import substitute
from retrobench.tasks.local_files import (
    is_text_list,
    locate,
    missing,
    read_json,
    shaped,
    some_text,
)

_FILES = {
    "qa_1": ("squad.json", "dev-v2.0.json"),
    "qa_2": ("hotpotqa.json", "hotpot_dev_distractor_v1.json"),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its gold documents; ``related`` come before random others."""

    text: str
    answers: tuple[str, ...]
    gold: tuple[str, ...]
    related: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Corpus:
    """Questions and the documents to hide them among."""

    name: str
    questions: tuple[Question, ...]
    documents: tuple[str, ...]
    is_substitute: bool

    @property
    def fingerprint(self) -> str:
        """Hash of all texts."""
        return text_hash("\0".join((*self.documents, *(q.text for q in self.questions))))


def load_corpus(task: str, root: str | None, allow_substitute: bool = True) -> Corpus:
    """SQuAD for qa_1, HotpotQA for qa_2, or a synthetic substitute of the same form.

    ValueError if there is no file and ``allow_substitute`` is false.
    """
    path = locate(root, _FILES[task])
    if path is None and not allow_substitute:
        raise missing(root, _FILES[task])
    if path is None:
        return _synthetic(task)
    return _squad(path) if task == "qa_1" else _hotpot(path)


@cache
def _squad(path: Path) -> Corpus:
    whole, found, documents = read_json(path, "ruler"), [], set()
    with shaped(path, "ruler", "SQuAD 2.0's JSON (data, paragraphs, context, qas)"):
        for number, article in enumerate(whole["data"], 1):
            where = f"article {number}:"
            texts = [some_text(p["context"], f"{where} context") for p in article["paragraphs"]]
            documents.update(texts)
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                related = tuple(text for text in texts if text != context)
                for item in paragraph["qas"]:
                    if not item["is_impossible"]:
                        answers = [answer["text"] for answer in item["answers"]]
                        found.append(_question(item, answers, (context,), related, where))
        return _corpus("squad", found, documents)


@cache
def _hotpot(path: Path) -> Corpus:
    items, found, documents = read_json(path, "ruler"), [], set()
    with shaped(path, "ruler", "HotpotQA's JSON (a list of question, answer, context)"):
        for number, item in enumerate(items, 1):
            gold = tuple(f"{title}\n{''.join(lines)}" for title, lines in item["context"])
            documents.update(gold)
            found.append(_question(item, [item["answer"]], gold, (), f"item {number}:"))
        return _corpus("hotpotqa", found, documents)


def _question(
    item: Any, answers: list[Any], gold: tuple[str, ...], related: tuple[str, ...], where: str
) -> Question:
    """A question of a file; ValueError if it has no text, no answer or no document."""
    if not gold or not answers or not is_text_list(answers):
        raise ValueError(f"{where} a question without answer or document")
    return Question(some_text(item["question"], f"{where} question"), tuple(answers), gold, related)


def _corpus(name: str, questions: list[Question], documents: set[str]) -> Corpus:
    if not questions:
        raise ValueError("it has no questions with answers")
    return Corpus(name, tuple(questions), tuple(sorted(documents)), False)


@cache
def _synthetic(task: str) -> Corpus:
    """Invented towns and their goods. A question needs one document (qa_1) or two (qa_2)."""
    rng = random.Random(7)
    syllables = ("bar", "cor", "del", "fen", "gar", "hol", "kel", "lor", "mar", "nor", "pel", "tor")
    ends = ("ford", "wick", "ton", "dale", "mouth", "stead", "field", "bridge")
    goods = ("glass", "paper", "salt", "rope", "copper", "cloth", "cheese", "bricks", "clocks")
    names = list(
        dict.fromkeys((a + b + c).capitalize() for a in syllables for b in syllables for c in ends)
    )
    rng.shuffle(names)
    towns, rivers = names[:800], names[800:1100]
    filler = list(islice(substitute.essay_sentences(11), 5 * len(towns)))
    questions, documents = [], []
    for i, town in enumerate(towns):
        river, good, year = rng.choice(rivers), rng.choice(goods), rng.randint(1400, 1900)
        prose = " ".join(" ".join(words) for words in filler[5 * i : 5 * i + 1 + i % 5])
        if task == "qa_1":
            text = f"{town} is a town on the river {river}. It is known for its {good}. {prose} "
            gold = (f"{text}The market of {town} opened in {year}.",)
            query, answer = f"In what year did the market of {town} open?", str(year)
        else:
            first = f"{town}\n{town} is a town on the river {river}{i}. {prose}"
            gold = (first, f"{river}{i}\nThe river {river}{i} carries {good} to the coast.")
            query, answer = f"What does the river on which {town} lies carry to the coast?", good
        documents += gold
        questions.append(Question(query, (answer,), gold))
    return Corpus("synthetic substitute", tuple(questions), tuple(documents), True)
