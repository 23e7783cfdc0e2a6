"""Recorded traces on disk: where they are, what their manifests say, and the library of them.

A trace is a folder with ``manifest.json`` and one safetensors shard per prompt and layer
(``engine.replay`` has what is in them). The library is a small set of traces of real models that
``retrobench traces`` records into the cache folder; ``model=trace:NAME`` replays one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrobench.core.cell import digest
from retrobench.core.paths import cache_root
from retrobench.core.spec import unknown

MANIFEST = "manifest.json"
_AGAIN = "record the trace again with task=trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryTrace:
    """A trace of the library: a model (``conf/model``), its recorded layers, and prompts.

    ``prompts``: a RULER sub-task and its length in tokens, one prompt each.
    """

    name: str
    model: str
    layers: tuple[int, ...]
    prompts: tuple[tuple[str, int], ...]


# Early, middle and late layers. Gemma 3 270M has full attention in layers 5, 11 and 17 only.
LIBRARY = {
    trace.name: trace
    for trace in (
        LibraryTrace(
            name="smollm2",
            model="smollm2",
            layers=(4, 14, 24),
            prompts=(("niah_multikey_2", 4096), ("fwe", 4096), ("vt", 8192)),
        ),
        LibraryTrace(
            name="gemma3_270m",
            model="gemma3_270m",
            layers=(11, 17),
            prompts=(("niah_multikey_2", 4096), ("vt", 8192)),
        ),
    )
}


def library_folder(name: str) -> Path:
    """Where a trace of the library is kept."""
    return cache_root() / "traces" / name


def trace_folder(path: str) -> Path:
    """The folder that a path or the name of a library's trace means.

    ValueError for a trace of the library that was not recorded (whole), and for a bare name that
    is neither a folder nor in the library.
    """
    folder = Path(path)
    if folder.is_dir() or len(folder.parts) != 1:
        return folder
    if path not in LIBRARY:
        raise ValueError(
            f"{unknown(path, 'folder, and no trace of the library', LIBRARY)}; "
            "task=trace task.path=FOLDER records one of your own"
        )
    if missing(path, deep=False):
        raise ValueError(
            f"the trace {path} is not here whole ({library_folder(path)}): run `retrobench traces "
            f"{path}`"
        )
    return library_folder(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest; ValueError if there is none."""
    file = folder / MANIFEST
    if not file.is_file():
        raise ValueError(
            f"{folder}: no trace there (no {MANIFEST}); record one with "
            f"`python run.py task=trace task.path={folder} method=full model=...`"
        )
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: not the manifest of a trace; {_AGAIN}")
    return found


def content_digest(manifest: dict[str, Any]) -> str:
    """Digest of what was recorded, whenever that was; of all where shards were not hashed."""
    samples = manifest["samples"]
    if not all("shards" in sample for sample in samples):
        return digest(manifest)
    same = [{k: v for k, v in sample.items() if k != "recorded"} for sample in samples]
    return digest({**manifest, "samples": same})


def shard_mark(file: Path) -> list[Any]:
    """Bytes and SHA-256 of a shard, as manifests keep them."""
    with file.open("rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]


def damaged_shards(folder: Path, sample: dict[str, Any], *, deep: bool) -> list[str]:
    """Names of a sample's shards that are missing or not as recorded; ``deep``: by content."""
    return [
        name
        for name, mark in sample.get("shards", {}).items()
        if not (folder / name).is_file()
        or (folder / name).stat().st_size != mark[0]
        or (deep and shard_mark(folder / name) != mark)
    ]


def missing(name: str, *, deep: bool) -> list[tuple[str, int]]:
    """Prompts of a library's trace that are not on disk as they were recorded."""
    folder, trace = library_folder(name), LIBRARY[name]
    try:
        manifest = read_manifest(folder)
        whole = {
            (sample["task"], sample["length"])
            for sample in manifest["samples"]
            if "shards" in sample and not damaged_shards(folder, sample, deep=deep)
        }
        if tuple(manifest["layers"]) != trace.layers:
            whole = set()
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = set()
    return [prompt for prompt in trace.prompts if prompt not in whole]
