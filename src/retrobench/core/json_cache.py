"""Small JSON files that can be made again, kept with a digest: damage is told and not believed."""

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

from retrobench.core.cell import digest
from retrobench.core.paths import regular, replacing


def read(file: Path) -> Any:
    """What ``write`` kept; None where there is nothing, and with a warning if it was changed."""
    if not file.exists():
        return None
    try:
        whole = json.loads(regular(file).read_text(encoding="utf-8"))
        if whole["digest"] != _digest(file, whole["value"]):
            raise ValueError("it is not what its digest says")
        return whole["value"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        warnings.warn(f"{file}: damaged ({error}); it is made anew", stacklevel=2)
        return None


def write(file: Path, value: Any) -> None:
    """Keep a value, or replace one; nothing depends on it, so a full disk is no error."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = {"value": value, "digest": _digest(file, value)}
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(whole), encoding="utf-8")


def _digest(file: Path, value: Any) -> str:
    return digest([file.name, value], 32)
