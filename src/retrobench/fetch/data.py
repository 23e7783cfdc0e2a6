"""Benchmark data under ``data.root``: fetched, kept if whole, checked against a manifest.

The manifest holds each file's source, revision and SHA-256. A stopped fetch goes on.
"""

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrobench.core.paths import replace_text, replacing
from retrobench.fetch.benchmarks import BENCHMARKS, DataFile
from retrobench.fetch.digests import sha256
from retrobench.fetch.models import Say


def fetch_benchmark(
    root: Path, benchmark: str, hub: Any, given: Path | None = None, say: Say = print
) -> None:
    """Write every file of a benchmark that is missing or differs from the manifest.

    ``given`` is a folder of downloaded originals; ``say`` is told of each file. The manifest is
    written after each file. ValueError if a file is damaged or not in ``given``.
    """
    manifest = read_manifest(root)
    for name, source in BENCHMARKS[benchmark].items():
        path = root / name
        if problem(path, manifest.get(name)) is None:
            say(f"{path}: already there")
            continue
        if path.exists() and name not in manifest and damage(path, name) is None:
            say(f"{path}: kept, though not fetched by this command")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            entry = _write(temporary, name, source, hub, given)
            broken = damage(temporary, path.name)
            if broken is None and source.sha256 and sha256(temporary) != source.sha256:
                broken = "another file: its SHA-256 is not the known one"
            if broken is not None:
                raise ValueError(f"{name} from {entry['source']} is {broken}; not kept")
        manifest[name] = {**entry, "sha256": sha256(path), "bytes": path.stat().st_size}
        replace_text(root / "manifest.json", json.dumps(manifest, indent=1))
        say(f"{path}: {path.stat().st_size / 2**20:.1f} MiB from {entry['source']}")
        say(f"  licence: {source.licence}")


def _write(path: Path, name: str, source: DataFile, hub: Any, given: Path | None) -> dict[str, str]:
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
        lines = data if name.endswith(".jsonl") else [data]
        path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "utf-8")
    return {"source": f"hf://datasets/{source.repo}", "revision": revision}


def problem(path: Path, entry: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a file on disk, or None."""
    if not path.exists():
        return "missing"
    if entry is None:
        return "not in the manifest"
    return None if sha256(path) == entry["sha256"] else "changed since it was fetched"


def damage(path: Path, name: str) -> str | None:
    """What is wrong with a file's content (a git-lfs pointer, half a file, no JSON), or None."""
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
    return _parquet_damage(path) if name.endswith(".parquet") else _json_damage(path, name)


def _parquet_damage(path: Path) -> str | None:
    """A parquet file begins and ends with the same four letters."""
    with path.open("rb") as stream:
        head = stream.read(4)
        stream.seek(max(0, path.stat().st_size - 4))
        return None if head == stream.read() == b"PAR1" else "no whole parquet file"


def _json_damage(path: Path, name: str) -> str | None:
    try:
        with path.open("rb") as stream:
            for text in stream if name.endswith(".jsonl") else [stream.read()]:
                json.loads(text)
    except ValueError as error:
        return f"not JSON ({error})"
    return None


def verify(root: Path, benchmark: str) -> list[str]:
    """One line for each file that is missing, unknown or changed."""
    manifest = read_manifest(root)
    states = {name: problem(root / name, manifest.get(name)) for name in BENCHMARKS[benchmark]}
    return [f"{root / name}: {wrong}" for name, wrong in states.items() if wrong is not None]


def read_manifest(root: Path) -> dict[str, Any]:
    """What was fetched before; empty without a manifest."""
    path = root / "manifest.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
