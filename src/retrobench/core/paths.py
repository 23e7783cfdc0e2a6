"""Where files are kept that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """``$RETROBENCH_CACHE``, or ``retrobench`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RETROBENCH_CACHE") or Path(base) / "retrobench")
