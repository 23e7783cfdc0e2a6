"""Texts that samples are made of: local files where they exist, labelled stand-ins otherwise."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from retrobench.tasks import standin

_ESSAYS = ("PaulGrahamEssays.json",)
_SQUAD = ("squad.json", "dev-v2.0.json")
_HOTPOT = ("hotpotqa.json", "hotpot_dev_distractor_v1.json")
_WORDS = ("english_words.json",)
_LFS = "version https://git-lfs"
FETCH = "python scripts/fetch_data.py ruler"


class Haystack:
    """Essay words, repeated end to end when more are asked for."""

    def __init__(self, root: str | None, stand_in: bool = True) -> None:
        self._path = locate(root, _ESSAYS)
        if self._path is None and root is not None:
            folder = Path(root) / "ruler" / "essays"
            self._path = folder if any(folder.glob("*.txt")) else None
        if self._path is None and not stand_in:
            raise missing(root, (*_ESSAYS, "essays/*.txt"))
        self.stand_in = self._path is None
        self.name = standin.NAME if self._path is None else self._path.name
        self._standin_words: list[str] = []

    @cached_property
    def _real(self) -> list[str]:
        assert self._path is not None
        if self._path.is_dir():
            text = " ".join(p.read_text("utf-8") for p in sorted(self._path.glob("*.txt")))
        else:
            text = read_json(self._path)["text"]
        return text.split()

    def words(self, count: int) -> list[str]:
        """The first ``count`` words."""
        if self._path is None:
            if len(self._standin_words) < count:
                self._standin_words = standin.essay_words(2 * count)
            return self._standin_words[:count]
        repeats = -(-count // len(self._real))
        return (self._real * repeats)[:count]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the text."""
        if self._path is None:
            return f"{standin.NAME}:{_hash(' '.join(standin.essay_words(5000)))}"
        return _hash(" ".join(self._real))


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
    stand_in: bool

    @property
    def fingerprint(self) -> str:
        """Hash of all texts."""
        return _hash("\0".join((*self.documents, *(q.text for q in self.questions))))


def corpus(task: str, root: str | None, stand_in: bool = True) -> Corpus:
    """SQuAD for qa_1, HotpotQA for qa_2, or a synthetic stand-in of the same form."""
    names = _SQUAD if task == "qa_1" else _HOTPOT
    path = locate(root, names)
    if path is None and not stand_in:
        raise missing(root, names)
    if path is None:
        return _synthetic(task)
    return _squad(path) if task == "qa_1" else _hotpot(path)


def english_words(root: str | None) -> tuple[str, ...]:
    """RULER's long word list (``{"0": word, ...}``), or nothing where the file is missing."""
    path = locate(root, _WORDS)
    return _word_list(path) if path else ()


@cache
def _word_list(path: Path) -> tuple[str, ...]:
    return tuple(sorted(set(read_json(path).values())))


def english_words_fingerprint(root: str | None) -> str:
    """Hash of the long word list; empty without one."""
    listed = english_words(root)
    return _hash("\0".join(listed)) if listed else ""


def locate(root: str | None, names: tuple[str, ...]) -> Path | None:
    """The first of ``names`` under the data root or its ``ruler`` folder."""
    if root is None:
        return None
    for folder in (Path(root), Path(root) / "ruler"):
        for name in names:
            if (folder / name).exists():
                return folder / name
    return None


def missing(root: str | None, names: tuple[str, ...]) -> ValueError:
    """The error for data that must be real: which file, where it was looked for, how to get it."""
    return ValueError(
        f"{' or '.join(names)} not found in {root} or {root}/ruler. Fetch it with `{FETCH}`, point "
        "data.root at a folder that has it, or allow task.stand_in=true"
    )


def read_json(path: Path) -> Any:
    """A JSON file; ValueError naming it for git-lfs pointers and broken content."""
    text = path.read_text("utf-8")
    if text.startswith(_LFS):
        raise ValueError(f"{path} is a git-lfs pointer, not the data: run `git lfs pull` there")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again with `{FETCH}`") from error


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _squad(path: Path) -> Corpus:
    questions, documents = [], []
    for article in read_json(path)["data"]:
        texts = [paragraph["context"] for paragraph in article["paragraphs"]]
        documents += texts
        for paragraph in article["paragraphs"]:
            related = tuple(text for text in texts if text != paragraph["context"])
            for item in paragraph["qas"]:
                if not item["is_impossible"]:
                    answers = tuple(answer["text"] for answer in item["answers"])
                    gold = (paragraph["context"],)
                    questions.append(Question(item["question"], answers, gold, related))
    return Corpus("squad", tuple(questions), tuple(sorted(set(documents))), False)


@cache
def _hotpot(path: Path) -> Corpus:
    questions, documents = [], set()
    for item in read_json(path):
        gold = tuple(f"{title}\n{''.join(lines)}" for title, lines in item["context"])
        documents.update(gold)
        questions.append(Question(item["question"], (item["answer"],), gold))
    return Corpus("hotpotqa", tuple(questions), tuple(sorted(documents)), False)


@cache
def _synthetic(task: str) -> Corpus:
    """Invented towns and what they make: one fact per question, or two facts to join."""
    rng = random.Random(7)
    syllables = ("bar", "cor", "del", "fen", "gar", "hol", "kel", "lor", "mar", "nor", "pel", "tor")
    ends = ("ford", "wick", "ton", "dale", "mouth", "stead", "field", "bridge")
    goods = ("glass", "paper", "salt", "rope", "copper", "cloth", "cheese", "bricks", "clocks")
    names = list(
        dict.fromkeys((a + b + c).capitalize() for a in syllables for b in syllables for c in ends)
    )
    rng.shuffle(names)
    towns, rivers = names[:800], names[800:1100]
    filler = list(islice(standin.essay_sentences(11), 5 * len(towns)))
    questions, documents = [], []
    for i, town in enumerate(towns):
        river, good, year = rng.choice(rivers), rng.choice(goods), rng.randint(1400, 1900)
        prose = " ".join(" ".join(words) for words in filler[5 * i : 5 * i + 1 + i % 5])
        if task == "qa_1":
            text = f"{town} is a town on the river {river}. It is known for its {good}. {prose} "
            text += f"The market of {town} opened in {year}."
            documents.append(text)
            asked = (f"In what year did the market of {town} open?", (str(year),))
            questions.append(Question(*asked, (text,)))
        else:
            first = f"{town}\n{town} is a town on the river {river}{i}. {prose}"
            second = f"{river}{i}\nThe river {river}{i} carries {good} to the coast."
            documents += [first, second]
            asked = (f"What does the river on which {town} lies carry to the coast?", (good,))
            questions.append(Question(*asked, (first, second)))
    return Corpus("synthetic stand-in", tuple(questions), tuple(documents), True)
