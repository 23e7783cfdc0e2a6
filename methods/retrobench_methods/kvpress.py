"""Bridge to kvpress: any of its scorer presses evicts at our budget (github.com/NVIDIA/kvpress).

The package is imported without its global patch.
"""

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import ALL_INPUTS, ModelView, Needs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.core.spec import option, unknown
from retrobench.engine.attention.evicting import (
    EvictingConfig,
    EvictingIndex,
    EvictingMethod,
    kept_tokens,
)

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
    for given in options or {}:
        if given == "compression_ratio":
            raise ValueError("method.press_options.compression_ratio: set budget= instead")
        if given not in allowed:
            raise unknown(f"method.press_options.{given}", "option", allowed or ["(none)"])
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class KVPressConfig(EvictingConfig):
    """Which press scores, and its options."""

    press: str = option("SnapKVPress", "a scorer press of kvpress, by its class name")
    press_options: dict[str, Any] | None = option(
        None, "fields of the press, {NAME: VALUE}; the budget takes the place of compression_ratio"
    )
    seed: int = option(0, "seed of presses that draw random numbers", low=0)


class PressIndex(EvictingIndex):
    """Asks the press for its scores, row by row and without padding, of which it knows nothing."""

    def __init__(self, config: Any, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        self.press = make_press(config.press, config.press_options)
        self.model: ModelView | None = None

    @classmethod
    def kept(cls, config: Any, shape: KVShape, budget: Budget | None) -> list[tuple[int, ...]]:
        """The budget, equal in all layers."""
        window = getattr(make_press(config.press, config.press_options), "window_size", 0)
        named = "method.press_options.window_size"
        return [kept_tokens(config, shape, budget, window, named)] * len(shape.layers)

    def scores(self, layer: int, prompt: PromptLayer) -> Tensor:
        """What the press says of each row; its padding gets the lowest score."""
        tokens = prompt.k_BGSD.shape[2]
        score_BGS = torch.full_like(prompt.k_BGSD[..., 0], -torch.inf, dtype=torch.float32)
        for row, pad in enumerate(self.shape.pad_tokens):
            kept = min(self.kept_of[layer][row], tokens - pad)
            if kept == tokens - pad:
                score_BGS[row, :, pad:] = 0
                continue
            # the press keeps as many as we do, where its scores depend on how many that is
            self.press.compression_ratio = 1 - (kept + 1e-3) / (tokens - pad)
            score_BGS[row, :, pad:] = self._score(layer, prompt, row, pad)
        return score_BGS

    def _score(self, layer: int, prompt: PromptLayer, row: int, pad: int) -> Tensor:
        """``GS`` of one row without its padding."""
        assert self.model is not None
        module = self.model.attention_module(layer)
        k_1GSD, v_1GSD = (part[row : row + 1, :, pad:] for part in (prompt.k_BGSD, prompt.v_BGSD))
        hidden_1WM, given = self._inputs(layer, prompt, row, k_1GSD.shape[2])
        # the rotary embedding of the layer is found on its module, as kvpress leaves it there
        module.__dict__["rotary_emb"] = lambda like, position: self._rotary(
            layer, row, like, position
        )
        devices = [k_1GSD.device] if k_1GSD.is_cuda else []
        try:
            with torch.random.fork_rng(devices):
                torch.manual_seed(self.config.seed + layer)
                score = self.press.score(module, hidden_1WM, k_1GSD, v_1GSD, None, given)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
            why = str(error) or repr(error)
            raise ValueError(
                f"method.press={self.config.press} does not work on this model: {why}"
            ) from error
        finally:
            del module.__dict__["rotary_emb"]
        if score.isnan().any():
            raise ValueError(f"method.press={self.config.press} scores NaN in layer {layer}")
        return score[0].float()

    def _inputs(
        self, layer: int, prompt: PromptLayer, row: int, tokens: int
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """What the press reads of the layer's inputs, and what it expects beside them."""
        asked = inputs_of(self.press)
        if not asked:
            return None, {}
        assert prompt.input_BWM is not None
        count = tokens if asked == ALL_INPUTS else min(tokens, asked)
        hidden_1WM = prompt.input_BWM[row : row + 1, -count:]
        position_1W = torch.arange(tokens - count, tokens, device=hidden_1WM.device)[None]
        rotary = self._rotary(layer, row, hidden_1WM, position_1W)
        return hidden_1WM, {"position_embeddings": rotary, "hidden_states": hidden_1WM}

    def _rotary(
        self, layer: int, row: int, like: Tensor, position_1W: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a row; models may give each row factors of its own."""
        assert self.model is not None
        cos, sin = self.model.rotary(layer, like, position_1W)
        at = slice(row, row + 1) if cos.shape[0] > 1 else slice(None)
        return cos[at], sin[at]


class KVPress(EvictingMethod):
    """The tokens that a press of kvpress scores highest, and all later ones."""

    name = "kvpress"
    together = True
    Config = KVPressConfig
    index_class = PressIndex
    needs = Needs(modules=True)

    @classmethod
    def needs_of(cls, config: Any) -> Needs:
        """Layer inputs only as far back as the press reads them."""
        press = make_press(config.press, config.press_options)
        return Needs(modules=True, prompt_inputs=inputs_of(press))

    def bind(self, model: ModelView) -> None:
        """The model whose modules the press reads."""
        cast(PressIndex, self.index).model = model

    def stats(self) -> Mapping[str, Any]:
        """Which kvpress has scored: another one may score otherwise."""
        return {"kvpress": importlib.metadata.version("kvpress")}
