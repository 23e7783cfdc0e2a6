"""The presses of kvpress, imported without its global patch, and which of them can be asked."""

import importlib.util
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import ModuleType
from typing import Any

from retrobench.core.method import ALL_INPUTS
from retrobench.core.spec import unknown

INSTALL = "pip install --no-deps kvpress cachetools fire termcolor"

# layer inputs that score() reads: of the last window and one token more, or none; else of all
_NO_INPUTS = {"KnormPress", "KeyDiffPress", "LagKVPress", "RandomPress", "StreamingLLMPress"}
_NO_INPUTS |= {"CURPress"}
_WINDOWS = {"SnapKVPress": "window_size", "TOVAPress": None}  # the field that holds it; None: 1

_DOWNLOADS = "it downloads weights or statistics of its own for each model"
_WRAPS = "it wraps another press: name that one"
_REFUSED = {
    "ScorerPress": "it is the base class of the presses",
    "ObservedAttentionPress": "it needs the attention weights of the whole prompt, which nobody "
    "keeps; method.press=SnapKVPress takes those of the last tokens",
    "KVzapPress": _DOWNLOADS,
    "QFilterPress": _DOWNLOADS,
    "ExpectedAttentionStatsPress": _DOWNLOADS,
    "CriticalKVPress": _WRAPS,
    "AdaKVPress": "it shares the budget among heads, by masks; use method=adakv",
    "PyramidKVPress": "its layer budgets are not in its scores, which are those of SnapKVPress; "
    "use method=pyramidkv",
}


@cache
def kvpress() -> ModuleType:
    """The package; ValueError with the command that installs it.

    Its import wraps every attention function of transformers; they are put back.
    """
    if importlib.util.find_spec("kvpress") is None:
        raise ValueError(f"method=kvpress: the package kvpress is not installed: {INSTALL}")
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as FUNCTIONS

    before = dict(FUNCTIONS.items())
    try:
        return importlib.import_module("kvpress")
    except ImportError as error:
        raise ValueError(f"method=kvpress: {error}; kvpress needs: {INSTALL}") from error
    finally:
        for name, function in before.items():
            if FUNCTIONS[name] is not function:
                del FUNCTIONS[name]  # what this process set over what is registered for all
            if FUNCTIONS.get(name) is not function:
                FUNCTIONS[name] = function


def make_press(name: str, options: Mapping[str, Any] | None) -> Any:
    """The press; ValueError for one that does not exist, cannot be asked, or options it has not."""
    package = kvpress()
    base = package.ScorerPress
    presses = {n: getattr(package, n) for n in package.__all__ if n.endswith("Press")}
    reasons = {n: _why_not(press, base) for n, press in presses.items()}
    works = sorted(n for n, reason in reasons.items() if reason is None)
    if name not in presses:
        raise unknown(f"method.press={name}", "press", works)
    if reasons[name] is not None:
        raise ValueError(
            f"method.press={name} cannot be used: {reasons[name]}. Usable: {', '.join(works)}"
        )
    press_class = presses[name]
    allowed = [f.name for f in fields(press_class) if f.init and not f.name.startswith("_")]
    allowed.remove("compression_ratio")
    for option in options or {}:
        if option == "compression_ratio":
            raise ValueError("method.press_options.compression_ratio: set budget= instead")
        if option not in allowed:
            raise unknown(f"method.press_options.{option}", "option", allowed or ["(none)"])
    try:
        return press_class(**(options or {}))
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"method.press_options of {name}: {error or repr(error)}") from error


def _why_not(press_class: Any, base: Any) -> str | None:
    """Why a press has no scores that say it all; None if it can be asked for them."""
    if press_class.__name__ in _REFUSED:
        return _REFUSED[press_class.__name__]
    if not issubclass(press_class, base):
        return "it has no score(): it works inside its own forward hook"
    if press_class.compress is not base.compress:
        return "it does more than score, in its own compress()"
    return None


def inputs_of(press: Any) -> int:
    """Layer inputs that ``score`` reads, as ``Needs.prompt_inputs`` counts them."""
    name = type(press).__name__
    if name in _NO_INPUTS:
        return 0
    if name not in _WINDOWS:
        return ALL_INPUTS
    field = _WINDOWS[name]
    return 1 + (getattr(press, field) if field else 1)
