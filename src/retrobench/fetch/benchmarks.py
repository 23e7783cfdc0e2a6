"""The data files that benchmarks read: where each comes from, what it becomes, its terms."""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Rows = Iterable[Mapping[str, Any]]  # of a data set of the Hub


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One file of a benchmark, before it is here: origin, revision, digest and terms.

    ``file`` is downloaded as it is; without it the data set's ``split`` is loaded and converted.
    ``revision`` and ``sha256`` are fixed where they are known; else the newest revision is taken,
    and the manifest says which it was. ``originals`` are further names that the file may have in
    ``--from``. They need no conversion. ``about_mb`` is the file's size as its origin shows it; 0:
    not known before it is here.
    """

    repo: str
    licence: str
    about_mb: int = 0
    originals: tuple[str, ...] = ()
    file: str = ""
    config: str = ""
    split: str = ""
    convert: Callable[[Rows], Any] | None = None
    revision: str = ""
    sha256: str = ""


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


# SHA-256 of the files at the revision of 2025-12-08, as the Hub's LFS pointers give them
_MRCR_REVISION = "f4c69fae7cf81f7ca26b9fee34b392a50f6b8a1d"
_MRCR = {
    "2needle/2needle_0": "1c297b254bf64a31856b74918cd7db889a214503e0b67daa834e84f20df6aa93",
    "2needle/2needle_1": "a5a1dc9ccc945623253d04d33c03d89aee2d676c88955ce368da2ab16a0ce94d",
    "4needle/4needle_0": "4d4fa3d11ce064749de3cd039eef1a621e30a81c2c9b3e64f1df37f8afeaf312",
    "4needle/4needle_1": "8dfdb94a208cf3eee73c4e7ac6ee8a5ccb7236c6934c13c6c5f67c0a9928cdf3",
    "8needle/8needle_0": "65df601a2e0ae4a3cfb56920a6ef99f26c0de37c6b1018695e8aed684e6a94c1",
    "8needle/8needle_1": "c80b19573bff1d38e1c157d6a0bdf9cfd1a8ab6372296174c9a7015e164189e3",
}
MRCR = {
    f"mrcr/{name}.parquet": DataFile(
        repo="openai/mrcr",
        licence="MIT",
        about_mb=230,
        file=f"{name}.parquet",
        revision=_MRCR_REVISION,
        sha256=digest,
    )
    for name, digest in _MRCR.items()
}


# the sets and lengths that the data set's card lists for all of qa1 to qa10
BABILONG = {
    f"babilong/{length}/qa{number}.jsonl": DataFile(
        repo="RMT-team/babilong",
        licence="Apache-2.0; facts of bAbI (BSD)",
        config=length,
        split=f"qa{number}",
        convert=list,
    )
    for length in ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k")
    for number in range(1, 11)
}

_INFINITEBENCH = (
    "passkey number_string kv_retrieval longbook_sum_eng longbook_choice_eng longbook_qa_eng "
    "longbook_qa_chn longdialogue_qa_eng math_find math_calc code_run code_debug"
)
INFINITEBENCH = {
    f"infinitebench/{name}.jsonl": DataFile(
        repo="xinrongzhang2022/InfiniteBench",
        licence="MIT (code); terms of its source texts",
        file=f"{name}.jsonl",
    )
    for name in _INFINITEBENCH.split()
}

_SCBENCH = (
    "kv prefix_suffix vt repoqa qa_eng qa_chn choice_eng many_shot summary mf "
    "summary_with_needles repoqa_and_kv"
)
SCBENCH = {
    f"scbench/scbench_{name}.jsonl": DataFile(
        repo="microsoft/SCBench",
        licence="MIT (code); terms of its source texts",
        config=f"scbench_{name}",
        split="test",
        convert=list,
    )
    for name in _SCBENCH.split()
}

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
