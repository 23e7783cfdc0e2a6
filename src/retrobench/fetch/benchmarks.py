"""The data files that benchmarks read: where each comes from, what it becomes, its terms."""

import random
from typing import Any

from retrobench.fetch.data_file import DataFile, Rows
from retrobench.fetch.long_context import BABILONG, INFINITEBENCH, MRCR, SCBENCH


def essays(rows: Rows) -> dict[str, str]:
    """Essays, in their given order, as RULER's one text."""
    return {"text": " ".join(str(row["text"]) for row in rows)}


def squad(rows: Rows) -> dict[str, Any]:
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


def hotpot(rows: Rows) -> list[dict[str, Any]]:
    """HotpotQA distractor rows in the layout of the original file."""
    converted = []
    for row in rows:
        context = row["context"]
        pairs = list(zip(context["title"], context["sentences"], strict=True))
        converted.append({"question": row["question"], "answer": row["answer"], "context": pairs})
    return converted


def aime(rows: Rows) -> list[dict[str, str]]:
    """AIME problems with their whole-number answers."""
    return [{"question": row["problem"], "answer": str(row["answer"])} for row in rows]


def gpqa(rows: Rows) -> list[dict[str, Any]]:
    """GPQA questions, their four choices in an order fixed by the question's number."""
    converted = []
    for index, row in enumerate(rows):
        right = row["Correct Answer"].strip()
        choices = [right, *(row[f"Incorrect Answer {i}"].strip() for i in (1, 2, 3))]
        random.Random(index).shuffle(choices)
        letter = "ABCD"[choices.index(right)]
        converted.append({"question": row["Question"], "choices": choices, "answer": letter})
    return converted


BENCHMARKS: dict[str, dict[str, DataFile]] = {
    "ruler": {
        "ruler/PaulGrahamEssays.json": DataFile(
            repo="baber/paul_graham_essays",
            licence="copyright of their author",
            split="train",
            convert=essays,
        ),
        "ruler/squad.json": DataFile(
            repo="rajpurkar/squad_v2",
            licence="CC BY-SA 4.0",
            about_mb=4,
            split="validation",
            convert=squad,
            originals=("dev-v2.0.json",),
        ),
        "ruler/hotpotqa.json": DataFile(
            repo="hotpotqa/hotpot_qa",
            licence="CC BY-SA 4.0",
            about_mb=46,
            config="distractor",
            split="validation",
            convert=hotpot,
            originals=("hotpot_dev_distractor_v1.json",),
        ),
    },
    # The repository's loading script is no longer supported: the tasks read the archive.
    "longbench": {
        "longbench/data.zip": DataFile(
            repo="zai-org/LongBench",
            licence="terms of its source texts",
            about_mb=114,
            file="data.zip",
        )
    },
    "longbench_v2": {
        "longbench_v2/data.json": DataFile(
            repo="zai-org/LongBench-v2", licence="Apache-2.0", file="data.json"
        )
    },
    "mrcr": MRCR,
    "babilong": BABILONG,
    "infinitebench": INFINITEBENCH,
    "scbench": SCBENCH,
    "aime24": {
        "reasoning/aime24.json": DataFile(
            repo="HuggingFaceH4/aime_2024",
            licence="see its data card",
            split="train",
            convert=aime,
        ),
    },
    "aime25": {
        "reasoning/aime25.json": DataFile(
            repo="math-ai/aime25",
            licence="see its data card",
            split="test",
            revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
            convert=aime,
        ),
    },
    "gpqa": {
        "reasoning/gpqa.json": DataFile(
            repo="Idavidrein/gpqa",
            licence="CC BY 4.0, asks for a login",
            config="gpqa_diamond",
            split="train",
            convert=gpqa,
        ),
    },
}
