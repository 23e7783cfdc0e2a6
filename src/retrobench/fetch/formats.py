"""Rows of the Hub's data sets as the files that the tasks read."""

import random
from collections.abc import Iterable, Mapping
from typing import Any


def essays(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Essays, in their given order, as RULER's one text."""
    return {"text": " ".join(str(row["text"]) for row in rows)}


def squad(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Flat SQuAD v2 rows as articles, paragraphs and questions."""
    articles: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        answers = [{"text": text} for text in row["answers"]["text"]]
        item = {"question": row["question"], "answers": answers, "is_impossible": not answers}
        articles.setdefault(row["title"], {}).setdefault(row["context"], []).append(item)
    return {
        "data": [
            {"paragraphs": [{"context": text, "qas": qas} for text, qas in paragraphs.items()]}
            for paragraphs in articles.values()
        ]
    }


def hotpot(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """HotpotQA distractor rows in the layout of the original file."""
    converted = []
    for row in rows:
        context = row["context"]
        pairs = list(zip(context["title"], context["sentences"], strict=True))
        converted.append({"question": row["question"], "answer": row["answer"], "context": pairs})
    return converted


def aime(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """AIME problems with their whole-number answers."""
    return [{"question": row["problem"], "answer": str(row["answer"])} for row in rows]


def gpqa(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """GPQA questions, their four choices in an order fixed by the question's number."""
    converted = []
    for index, row in enumerate(rows):
        right = row["Correct Answer"].strip()
        choices = [right, *(row[f"Incorrect Answer {i}"].strip() for i in (1, 2, 3))]
        random.Random(index).shuffle(choices)
        letter = "ABCD"[choices.index(right)]
        converted.append({"question": row["Question"], "choices": choices, "answer": letter})
    return converted
