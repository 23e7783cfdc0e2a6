"""Runs an op in the form that fits its inputs: C++, Triton, or plain torch.

An op is a folder. ``naive.py`` is the reference in plain torch and runs everywhere. Fast forms
stand beside it, one for each device: ``cpu.py`` (C++) and ``triton.py`` (CUDA). All forms take the
arguments of the reference. A fast module defines ``unsupported(tensor)``, which says why it cannot
run (None: it can). ``RETROBENCH_KERNELS=naive`` turns the fast forms off.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from functools import cache, wraps
from types import ModuleType
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import Tensor

_FAST = {"cpu": "cpu", "cuda": "triton"}
_VARIABLE = "RETROBENCH_KERNELS"

P = ParamSpec("P")
Result = TypeVar("Result")
Bundle = TypeVar("Bundle")


def op(naive: Callable[P, Result], chosen_by: str | None = None) -> Callable[P, Result]:
    """The op whose reference is ``naive``, with the signature and docstring of the reference.

    The argument called ``chosen_by`` (default: the first) chooses the form by its device, dtype
    and head dim.
    """
    folder, name = naive.__module__.rpartition(".")[0], naive.__name__
    parameters = list(inspect.signature(naive).parameters)
    key = chosen_by or parameters[0]
    place = parameters.index(key)

    @wraps(naive)
    def run(*args: P.args, **kwargs: P.kwargs) -> Result:
        tensor: Any = args[place] if place < len(args) else kwargs[key]
        module = _fast(folder, tensor)
        form = naive if module is None else getattr(module, name)
        return form(*args, **kwargs)

    return run


def takes(
    bundle: Callable[P, Bundle],
) -> Callable[[Callable[Concatenate[Bundle, ...], Result]], Callable[P, Result]]:
    """Decorate a function of one NamedTuple: it is then called with the fields instead.

    An op with many arguments lists them once, as the fields of ``bundle``. Keywords that are no
    field (``splits`` of a Triton form) reach the function as they are.
    """
    signature = inspect.signature(bundle)
    fields = frozenset(signature.parameters)

    def decorate(function: Callable[Concatenate[Bundle, ...], Result]) -> Callable[P, Result]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            if fields.issuperset(kwargs):
                return function(bundle(*args, **kwargs))
            extra = {key: kwargs.pop(key) for key in kwargs.keys() - fields}
            return function(bundle(*args, **kwargs), **extra)

        vars(call)["__signature__"] = signature
        return call

    return decorate


def _fast(folder: str, tensor: Tensor) -> ModuleType | None:
    """The fast form for this tensor; None if plain torch must run."""
    choice = os.environ.get(_VARIABLE, "auto")
    if choice not in ("auto", "naive"):
        raise ValueError(f"{_VARIABLE}={choice}: use auto or naive")
    device = "cpu" if tensor.is_cpu else tensor.device.type  # reading the device takes longer
    kind = _FAST.get(device)
    if choice == "naive" or kind is None:
        return None
    module = form_module(folder, kind)
    return None if module is None or module.unsupported(tensor) is not None else module


@cache
def form_module(folder: str, kind: str) -> ModuleType | None:
    """The module ``<folder>.<kind>``; None if it does not exist or Triton is not installed."""
    name = f"{folder}.{kind}"
    missing = importlib.util.find_spec(name) is None
    if missing or (kind == "triton" and importlib.util.find_spec("triton") is None):
        return None
    return importlib.import_module(name)
