"""Fetch and convert benchmark data: ``python scripts/fetch_data.py ruler`` or ``longbench``.

Writes the files that the tasks look for under ``--root`` (the ``data.root`` of run.py); for RULER
also a manifest with sources and SHA-256. Files already there and whole are kept. Needs
``pip install 'retrobench[data]'``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
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


SOURCES: dict[str, tuple[tuple[str, ...], str, Callable[[Any], Any]]] = {
    "PaulGrahamEssays.json": (("baber/paul_graham_essays",), "train", essays),
    "squad.json": (("rajpurkar/squad_v2",), "validation", squad),
    "hotpotqa.json": (("hotpotqa/hotpot_qa", "distractor"), "validation", hotpot),
}


def fetch(root: Path, load: Callable[..., Any]) -> list[str]:
    """Write every file that is missing or differs from the manifest; the messages to print."""
    folder = root / "ruler"
    folder.mkdir(parents=True, exist_ok=True)
    manifest_path = folder / "manifest.json"
    manifest = json.loads(manifest_path.read_text()) if manifest_path.exists() else {}
    messages = []
    for name, (source, split, convert) in SOURCES.items():
        path = folder / name
        if path.exists() and manifest.get(name, {}).get("sha256") == _sha256(path):
            messages.append(f"{path}: already there")
            continue
        data = convert(load(*source, split=split))
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        temporary.replace(path)
        manifest[name] = {"source": "/".join(source), "split": split, "sha256": _sha256(path)}
        manifest_path.write_text(json.dumps(manifest, indent=1))
        messages.append(f"{path}: {path.stat().st_size / 2**20:.1f} MiB from {source[0]}")
    return messages


def fetch_archive(root: Path) -> str:
    """LongBench's data.zip as it is (114 MB): its loading script no longer works."""
    from huggingface_hub import hf_hub_download

    folder = root / "longbench"
    folder.mkdir(parents=True, exist_ok=True)
    source = {"repo_id": "zai-org/LongBench", "repo_type": "dataset"}
    return hf_hub_download(filename="data.zip", local_dir=str(folder), **source)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Exit code 1 if something could not be fetched."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", choices=["ruler", "longbench"])
    parser.add_argument("--root", type=Path, default=Path("data"), help="the data.root of run.py")
    options = parser.parse_args()
    try:
        from datasets import load_dataset
    except ImportError:
        parser.error("needs the package datasets: pip install 'retrobench[data]'")
    try:
        if options.benchmark == "longbench":
            print(fetch_archive(options.root))
        else:
            print("\n".join(fetch(options.root, load_dataset)))
    except (OSError, ValueError) as error:
        print(f"not fetched: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
