"""Bridge to kvpress: any of its scorer presses evicts at our budget (github.com/NVIDIA/kvpress)."""

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import ALL_INPUTS, ModelView, Needs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.core.spec import option
from retrobench.engine.attention.evicting import (
    EvictingConfig,
    EvictingIndex,
    EvictingMethod,
    kept_tokens,
)
from retrobench_methods._presses import inputs_of, make_press


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
