"""Which implementation of an op runs: the fast one of the tensor's device, or the naive one.

An op is a folder with ``naive.py`` (plain torch, the reference and the portable path) and fast
forms beside it: ``cpu.py``, ``triton.py``. A fast module may define ``unsupported(tensor)``, which
says why it cannot run here (None: it can). ``RETROBENCH_KERNELS=naive`` turns fast forms off.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from types import ModuleType

from torch import Tensor

_FAST = {"cpu": "cpu", "cuda": "triton"}
_VARIABLE = "RETROBENCH_KERNELS"


def implementation(op: str, tensor: Tensor) -> ModuleType:
    """The module that runs ``op`` for a tensor of this device and dtype."""
    choice = os.environ.get(_VARIABLE, "auto")
    if choice not in ("auto", "naive"):
        raise ValueError(f"{_VARIABLE}={choice}: use auto or naive")
    fast = _FAST.get(tensor.device.type)
    if choice == "auto" and fast is not None:
        module = _module(op, fast)
        if module is not None and module.unsupported(tensor) is None:
            return module
    naive = _module(op, "naive")
    assert naive is not None, f"{op} has no naive form"
    return naive


@cache
def _module(op: str, form: str) -> ModuleType | None:
    """``retrobench_kernels.<op>.<form>``, or None where it or what it needs is not installed."""
    name = f"retrobench_kernels.{op}.{form}"
    if importlib.util.find_spec(name) is None:
        return None
    if form == "triton" and importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(name)
