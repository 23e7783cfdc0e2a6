"""Summaries of runs that were planned before: a finished cell asked for again needs no torch.

An entry is found by a hash of the composed configuration and of everything that decides the cell:
our own source files, versions of the libraries that it depends on, and every file or folder that
the configuration names. What changed is simply not found and is planned anew.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from retrobench.core import json_cache
from retrobench.core.cell import digest
from retrobench.core.paths import cache_root
from retrobench.core.registry import method_source
from retrobench.core.spec import leaves
from retrobench.core.traces import library_folder
from retrobench.measure.machine import version_of
from retrobench.run.composed import APART
from retrobench.run.summary import RunSummary

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "safetensors")
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_CACHE", "RETROBENCH_CACHE")
_MAX_ENTRIES = 4096


def find(raw: Mapping[str, Any]) -> RunSummary | None:
    """The summary of a composed configuration, if nothing that decides it has changed.

    A damaged or edited entry is told and not believed.
    """
    values = json_cache.read(_file(raw))
    return None if values is None else RunSummary.read(values)


def keep(raw: Mapping[str, Any], summary: RunSummary) -> None:
    """Remember a summary; nothing depends on it, so a full disk is no error."""
    file = _file(raw)
    json_cache.write(file, summary.plain())
    _forget_oldest(file.parent)


def _file(raw: Mapping[str, Any]) -> Path:
    asked = {name: value for name, value in raw.items() if name not in APART}
    method = str((raw.get("method") or {}).get("name"))
    key = {
        "asked": asked,
        "code": _code_state(method.partition("@")[0]),
        "versions": _versions(),
        "variables": {name: os.environ.get(name) for name in _VARIABLES},
        "gpu": os.path.exists("/dev/nvidiactl"),
        "files": _named_files(asked),
    }
    return cache_root() / "plans" / f"{digest(key, 32)}.json"


@cache
def _versions() -> list[str]:
    return [sys.version, *(version_of(name) or "" for name in _PACKAGES)]


@cache
def _code_state(method: str) -> str:
    """Names, sizes and times of the source files that a run of this method can use."""
    packages = ["retrobench", "retrobench_methods", "retrobench_kernels"]
    source = method_source(method)
    packages += [source.partition(".")[0].partition(":")[0]] if source else []
    states = []
    for package in dict.fromkeys(packages):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            states += _state(Path(folder))
    return digest(states, 32)


def _named_files(asked: Mapping[str, Any]) -> list[Any]:
    """State of every path that a value names, of the data folder, and of a model's files."""
    found: list[Any] = []
    for text in dict.fromkeys(value for _, value in leaves(asked) if isinstance(value, str)):
        path = os.path.expanduser(text)  # a whole architecture may stand in an option:
        if ("/" in text or "." in text or text == "data") and os.path.exists(path):
            found += _state(Path(path))  # pathlib would refuse a name of its length
    model = asked.get("model") or {}
    if model.get("source") == "fetched":
        found += _state(cache_root() / "models" / str(model.get("id")))
    if model.get("source") == "trace":
        found += _state(library_folder(str(model.get("path"))))
    for name in (model.get("id"), model.get("tokenizer")):
        if name:
            home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
            hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
            found += _state(hub / f"models--{str(name).replace('/', '--')}")
    return found


def _state(path: Path) -> list[tuple[str, int, int]]:
    """(path, size, time) of a file, or of every file of a folder."""
    if path.is_file():
        return [_stat(path)]
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        found += [_stat(Path(folder, name)) for name in sorted(names)]
    return found


def _stat(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), status.st_size, status.st_mtime_ns


def _forget_oldest(folder: Path) -> None:
    entries = sorted(folder.glob("*.json"), key=lambda path: _stat(path)[2])
    for path in entries[: max(0, len(entries) - _MAX_ENTRIES)]:
        path.unlink(missing_ok=True)
