"""Where files are kept that can be made again, and whether a file can be written."""

import os
from pathlib import Path


def cache_root() -> Path:
    """``$RETROBENCH_CACHE``, or ``retrobench`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RETROBENCH_CACHE") or Path(base) / "retrobench")


def check_output(option: str, path: Path) -> None:
    """ValueError for a file that cannot be written; makes the folder that it goes into."""
    reason = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = str(error.strerror)
    if path.is_dir():
        reason = "it is a folder"
    elif not reason and not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "no right to write there"
    if reason:
        raise ValueError(f"{option} {path}: cannot be written ({reason}); name a file elsewhere")
