"""Runs an op in the form that fits its inputs: C++, Triton, or plain torch.

An op is a folder with a face (``__init__.py``). Its ``naive.py`` declares the op once: signature,
docstring, and the reference in plain torch, which runs everywhere. Fast forms stand beside it, one
for each device: ``cpu.py`` (C++) and ``triton.py`` (CUDA), with a function of the op's name.
``unsupported(tensor)`` says why a form cannot run (None: it can): that of the module, if it has
one, else that of all forms of the kind (``native``, ``triton_common``). With
``RETROBENCH_KERNELS=naive`` the fast forms are off.
"""

import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from functools import cache, update_wrapper
from types import ModuleType
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

_FAST = {"cpu": "cpu", "cuda": "triton"}
_COMMON = {"cpu": "retrobench_kernels.native", "triton": "retrobench_kernels.triton_common"}
_VARIABLE = "RETROBENCH_KERNELS"

_used: dict[tuple[str, str], None] = {}  # (op, form), in the order of their first use

P = ParamSpec("P")
Result = TypeVar("Result")
Bundle = TypeVar("Bundle")


class Op(Generic[P, Result]):
    """An op, called as its reference; the argument ``chosen_by`` (default: the first) chooses the
    form by its device, dtype and head dim.

    With ``fields``, a NamedTuple, a call takes these fields, and every form takes the tuple.
    """

    def __init__(
        self,
        reference: Callable[..., Result],
        chosen_by: str | None = None,
        fields: Callable[..., Any] | None = None,
    ) -> None:
        update_wrapper(self, reference)
        self.name, self.folder = reference.__name__, reference.__module__.rpartition(".")[0]
        self.plain, self.fields = reference, fields
        self.__signature__ = inspect.signature(fields or reference)
        names = list(self.__signature__.parameters)
        self.key = chosen_by or names[0]
        self.place = names.index(self.key)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Result:
        """The result of the form that fits."""
        given: tuple[Any, ...] = args
        named: dict[str, Any] = kwargs
        tensor: Any
        if self.fields is not None:
            bundle = self.fields(*args, **kwargs)
            tensor, given, named = bundle[self.place], (bundle,), {}
        else:
            tensor = given[self.place] if self.place < len(given) else named[self.key]
        form = self._noted(tensor)
        if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
            return form(*given, **named)
        with torch.cuda.device(tensor.device):  # a launch goes to the current device
            return form(*given, **named)

    def has_fast_form(self, tensor: Tensor) -> bool:
        """Whether a call that this tensor decides runs in C++ or Triton."""
        return self._fitting(tensor) is not self.plain

    def reference(self, *args: P.args, **kwargs: P.kwargs) -> Result:
        """The result in plain torch."""
        return self._called(self.plain)(*args, **kwargs)

    def form(self, kind: str) -> Callable[..., Result]:
        """The form ``cpu`` or ``triton``, called as the op; it may have keywords of its own."""
        return self._called(getattr(form_module(self.folder, kind), self.name))

    def _called(self, form: Callable[..., Result]) -> Callable[..., Result]:
        fields = self.fields
        if fields is None:
            return form

        def call(*args: Any, **kwargs: Any) -> Result:
            own = {key: kwargs.pop(key) for key in kwargs.keys() - self.__signature__.parameters}
            return form(fields(*args, **kwargs), **own)

        return call

    def _noted(self, tensor: Tensor) -> Callable[..., Result]:
        """The form that will run for this tensor; ``forms_used`` tells it."""
        form = self._fitting(tensor)
        _used[self.name, form.__module__.rpartition(".")[2]] = None
        return form

    def _fitting(self, tensor: Tensor) -> Callable[..., Result]:
        """The fast form for this tensor, or plain torch."""
        choice = os.environ.get(_VARIABLE, "auto")
        if choice not in ("auto", "naive"):
            raise ValueError(f"{_VARIABLE}={choice}: use auto or naive")
        device = "cpu" if tensor.is_cpu else tensor.device.type  # reading the device takes longer
        kind = _FAST.get(device)
        if choice == "naive" or kind is None:
            return self.plain
        form, unsupported = _form(self.folder, self.name, kind)
        return self.plain if form is None or unsupported(tensor) is not None else form


def forms_used() -> dict[str, str]:
    """Form (cpu: C++, triton, naive: plain torch) of each op that ran since the last call.

    An op that ran in several has them joined by ``+``.
    """
    found: dict[str, str] = {}
    for name, form in _used:
        found[name] = f"{found[name]}+{form}" if name in found else form
    _used.clear()
    return found


def prepare(device: str) -> None:
    """Build and load what ops on a device need, so that no measured time holds a compilation."""
    if device == "cpu" and os.environ.get(_VARIABLE, "auto") == "auto":
        importlib.import_module(_COMMON["cpu"]).library()


def op(reference: Callable[P, Result]) -> Op[P, Result]:
    """Declare an op whose forms take the arguments of ``reference``."""
    return Op(reference)


def op_of(
    fields: Callable[P, Bundle], chosen_by: str | None = None
) -> Callable[[Callable[[Bundle], Result]], Op[P, Result]]:
    """Declare an op of many arguments: they are listed once, as the fields of a NamedTuple."""
    return lambda reference: Op(reference, chosen_by, fields)


@cache
def _form(folder: str, name: str, kind: str) -> tuple[Any, Any]:
    """A fast form and what it cannot take; None if it does not exist."""
    module = form_module(folder, kind)
    if module is None:
        return None, None
    limits = module if hasattr(module, "unsupported") else importlib.import_module(_COMMON[kind])
    return getattr(module, name), limits.unsupported


@cache
def form_module(folder: str, kind: str) -> ModuleType | None:
    """The module ``<folder>.<kind>``; None if it does not exist or Triton is not installed."""
    name = f"{folder}.{kind}"
    missing = importlib.util.find_spec(name) is None
    if missing or (kind == "triton" and importlib.util.find_spec("triton") is None):
        return None
    return importlib.import_module(name)
