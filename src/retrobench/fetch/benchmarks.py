"""The data files that benchmarks read: where each comes from, what it becomes, its terms."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from retrobench.fetch import formats

Convert = Callable[[Iterable[Mapping[str, Any]]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One file of a benchmark.

    ``file`` is downloaded as it is; without it the data set's ``split`` is loaded and converted.
    ``originals`` are further names that the file may have in ``--from``. They need no conversion.
    ``about_mb`` is the file's size as its origin shows it; 0: not known before it is here.
    """

    repo: str
    licence: str
    about_mb: int = 0
    originals: tuple[str, ...] = ()
    file: str = ""
    config: str = ""
    split: str = ""
    convert: Convert | None = None


BENCHMARKS: dict[str, dict[str, DataFile]] = {
    "ruler": {
        "ruler/PaulGrahamEssays.json": DataFile(
            repo="baber/paul_graham_essays",
            licence="copyright of their author",
            split="train",
            convert=formats.essays,
        ),
        "ruler/squad.json": DataFile(
            repo="rajpurkar/squad_v2",
            licence="CC BY-SA 4.0",
            about_mb=4,
            split="validation",
            convert=formats.squad,
            originals=("dev-v2.0.json",),
        ),
        "ruler/hotpotqa.json": DataFile(
            repo="hotpotqa/hotpot_qa",
            licence="CC BY-SA 4.0",
            about_mb=46,
            config="distractor",
            split="validation",
            convert=formats.hotpot,
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
    "aime24": {
        "reasoning/aime24.json": DataFile(
            repo="HuggingFaceH4/aime_2024",
            licence="see its data card",
            split="train",
            convert=formats.aime,
        ),
    },
    "gpqa": {
        "reasoning/gpqa.json": DataFile(
            repo="Idavidrein/gpqa",
            licence="CC BY 4.0, asks for a login",
            config="gpqa_diamond",
            split="train",
            convert=formats.gpqa,
        ),
    },
}
