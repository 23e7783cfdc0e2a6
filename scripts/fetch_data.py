"""Fetch, convert and verify benchmark data: ``python scripts/fetch_data.py ruler longbench``.

Writes the files that the tasks look for under ``--root`` (``data.root`` of run.py), and a manifest
of sources, revisions and SHA-256. Complete files are kept, so a stopped fetch continues.
``--from FOLDER`` takes downloaded originals (dev-v2.0.json, data.zip ...) instead of the network.
``--verify`` only checks. All need ``retrobench[data]``; GPQA also needs ``hf auth login``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Convert = Callable[[Iterable[Mapping[str, Any]]], Any]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file: where it comes from, what it becomes.

    ``file`` is downloaded as it is; without it the data set's ``split`` is loaded and converted.
    ``originals`` are further names that the file may have in ``--from``. They need no conversion.
    """

    repo: str
    originals: tuple[str, ...] = ()
    file: str = ""
    config: str = ""
    split: str = ""
    convert: Convert | None = None


SOURCES: dict[str, dict[str, Source]] = {
    "ruler": {
        "ruler/PaulGrahamEssays.json": Source(
            repo="baber/paul_graham_essays", split="train", convert=essays
        ),
        "ruler/squad.json": Source(
            repo="rajpurkar/squad_v2",
            split="validation",
            convert=squad,
            originals=("dev-v2.0.json",),
        ),
        "ruler/hotpotqa.json": Source(
            repo="hotpotqa/hotpot_qa",
            config="distractor",
            split="validation",
            convert=hotpot,
            originals=("hotpot_dev_distractor_v1.json",),
        ),
    },
    # The repository's loading script is no longer supported: the tasks read the archive.
    "longbench": {"longbench/data.zip": Source(repo="zai-org/LongBench", file="data.zip")},
    "longbench_v2": {
        "longbench_v2/data.json": Source(repo="zai-org/LongBench-v2", file="data.json")
    },
    "aime24": {
        "reasoning/aime24.json": Source(
            repo="HuggingFaceH4/aime_2024", split="train", convert=aime
        ),
    },
    "gpqa": {
        "reasoning/gpqa.json": Source(
            repo="Idavidrein/gpqa", config="gpqa_diamond", split="train", convert=gpqa
        ),
    },
}


class Hub:
    """The Hugging Face Hub. Its libraries are imported when something is downloaded."""

    def revision(self, source: Source) -> str:
        """Commit that the data set's main branch is at."""
        from huggingface_hub import HfApi

        return str(HfApi().dataset_info(source.repo).sha)

    def rows(self, source: Source, revision: str) -> Iterable[Mapping[str, Any]]:
        """Rows of a split."""
        from datasets import load_dataset

        name = source.config or None
        return load_dataset(source.repo, name, split=source.split, revision=revision)

    def file(self, source: Source, revision: str) -> Path:
        """A file as it is. An interrupted download continues."""
        from huggingface_hub import hf_hub_download

        return Path(
            hf_hub_download(source.repo, source.file, repo_type="dataset", revision=revision)
        )


def fetch(root: Path, names: Iterable[str], hub: Any, given: Path | None = None) -> list[str]:
    """Writes every file of the benchmarks that is missing or differs from the manifest.

    ``given`` is a folder of downloaded originals. Returns the messages to print. The manifest is
    written after each file. ValueError if a file is damaged or not in ``given``.
    """
    manifest = read_manifest(root)
    messages = []
    for benchmark in names:
        for name, source in SOURCES[benchmark].items():
            path = root / name
            if problem(path, manifest.get(name)) is None:
                messages.append(f"{path}: already there")
                continue
            if path.exists() and name not in manifest and damage(path, name) is None:
                messages.append(f"{path}: kept, though not fetched by this script")
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(path.name + ".part")
            entry = _write(temporary, name, source, hub, given)
            if (broken := damage(temporary, path.name)) is not None:
                temporary.unlink()
                raise ValueError(f"{name} from {entry['source']} is {broken}; not kept")
            temporary.replace(path)
            manifest[name] = {**entry, "sha256": sha256(path), "bytes": path.stat().st_size}
            _replace(root / "manifest.json", json.dumps(manifest, indent=1))
            size = path.stat().st_size / 2**20
            messages.append(f"{path}: {size:.1f} MiB from {entry['source']}")
    return messages


def _write(path: Path, name: str, source: Source, hub: Any, given: Path | None) -> dict[str, str]:
    """Writes one file and says where it came from."""
    if given is not None:
        names = (name, Path(name).name, *source.originals)
        found = next((given / each for each in names if (given / each).exists()), None)
        if found is None:
            raise ValueError(f"{' or '.join(names)} not found in {given}")
        shutil.copyfile(found, path)
        return {"source": found.name, "revision": "given"}
    revision = hub.revision(source)
    if source.convert is None:
        shutil.copyfile(hub.file(source, revision), path)
    else:
        data = source.convert(hub.rows(source, revision))
        path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return {"source": f"hf://datasets/{source.repo}", "revision": revision}


def problem(path: Path, entry: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a file on disk, or None."""
    if not path.exists():
        return "missing"
    if entry is None:
        return "not in the manifest"
    return None if sha256(path) == entry["sha256"] else "changed since it was fetched"


def damage(path: Path, name: str) -> str | None:
    """What is wrong with a file's content (a git-lfs pointer, half a zip, no JSON), or None."""
    with path.open("rb") as stream:
        if stream.read(23) == b"version https://git-lfs":
            return "a git-lfs pointer, not the data"
    if name.endswith(".zip"):
        try:
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
        except zipfile.BadZipFile as error:
            return f"no whole zip archive ({error})"
        return f"damaged in {bad}" if bad else None
    try:
        json.loads(path.read_bytes())
    except ValueError as error:
        return f"not JSON ({error})"
    return None


def verify(root: Path, names: Iterable[str]) -> list[str]:
    """One line for each file that is missing, unknown or changed."""
    manifest = read_manifest(root)
    found = []
    for benchmark in names:
        for name in SOURCES[benchmark]:
            if (wrong := problem(root / name, manifest.get(name))) is not None:
                found.append(f"{root / name}: {wrong}")
    return found


def read_manifest(root: Path) -> dict[str, Any]:
    """What was fetched before; empty without a manifest."""
    path = root / "manifest.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def sha256(path: Path) -> str:
    """Digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main() -> int:
    """Exit code 1 if something could not be fetched or is not whole."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmarks", nargs="+", choices=[*SOURCES, "all"])
    parser.add_argument("--root", type=Path, default=Path("data"), help="the data.root of run.py")
    parser.add_argument(
        "--from", dest="given", type=Path, help="folder of downloaded originals: no network"
    )
    parser.add_argument("--verify", action="store_true", help="check files against the manifest")
    options = parser.parse_args()
    names = list(SOURCES) if "all" in options.benchmarks else options.benchmarks
    if options.verify:
        print("\n".join(wrong := verify(options.root, names)) or f"{options.root}: all is whole")
        return bool(wrong)
    try:
        print("\n".join(fetch(options.root, names, Hub(), options.given)))
    except ImportError as error:
        parser.error(f"needs {error.name}: pip install 'retrobench[data]'")
    except Exception as error:  # the libraries raise many kinds for a missing network
        print(f"not fetched: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
