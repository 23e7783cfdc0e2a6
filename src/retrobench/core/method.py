"""What a KV-cache method is: the protocol between the engine and a method.

Nothing here imports torch; tensors appear in annotations only.
"""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from retrobench.core.budget import Budget
from retrobench.core.shapes import Footprint, KVShape

if TYPE_CHECKING:
    from torch import Tensor

Bytes = Literal["kv", "index", "h2d", "d2h"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a method asks of the engine beyond keys, values and decode queries.

    The engine reads this; nobody tests a method's type. ``layer_inputs``: call ``layer_input``
    with the hidden states entering each layer. ``calibration``: a file made beforehand by a
    command that the method's error message names.
    """

    layer_inputs: bool = False
    calibration: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionArgs:
    """Scalars of one attention call: logit scale and optional tanh soft cap."""

    scale: float
    softcap: float | None = None


class Probe(Protocol):
    """Where a method reports what it did. ``NullProbe`` costs nothing in timed runs."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """Times a named part of a step."""
        ...

    def moved(self, kind: Bytes, num_bytes: int) -> None:
        """Bytes read (``kv``, ``index``) or copied between tiers (``h2d``, ``d2h``)."""
        ...

    def access(self, hits: int, misses: int) -> None:
        """Fast-tier hits and misses, in KV pages."""
        ...

    def live(self, layer: int, *, attended: float, estimated: float = 0.0) -> None:
        """Tokens per row and head that layer attended exactly, and through estimates."""
        ...


class NullProbe:
    """A probe that does nothing."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """No-op."""
        return contextlib.nullcontext()

    def moved(self, kind: Bytes, num_bytes: int) -> None:
        """No-op."""

    def access(self, hits: int, misses: int) -> None:
        """No-op."""

    def live(self, layer: int, *, attended: float, estimated: float = 0.0) -> None:
        """No-op."""


class Method(ABC):
    """KV state and attention of one batch, for one session.

    Life: constructor -> ``prefill`` (per layer, one or more chunks) -> ``seal`` -> ``decode`` (per
    layer and step), ``step`` after each step -> ``close``. ``Config`` is a frozen keyword-only
    dataclass whose fields are the options ``method.*``.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    needs: ClassVar[Needs] = Needs()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        config = cls.__dict__.get("Config")
        if config is not None:
            params = getattr(config, "__dataclass_params__", None)
            if params is None or not params.frozen:
                raise TypeError(f"{cls.__name__}.Config must be a frozen dataclass")
            if not all(f.kw_only for f in dataclasses.fields(config)):
                raise TypeError(f"{cls.__name__}.Config must be keyword-only (kw_only=True)")

    def __init__(
        self,
        config: Any,
        shape: KVShape,
        probe: Probe | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.config = config
        self.shape = shape
        self.probe: Probe = probe if probe is not None else NullProbe()
        self.budget = budget

    @classmethod
    @abstractmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Bytes by place that a session of this shape will hold, computed before allocation."""

    @abstractmethod
    def prefill(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Take a chunk of the prompt's keys and values; return its attention ``o_BHTD``."""

    def seal(self) -> None:
        """The prompt is complete: build the index, offload."""

    @abstractmethod
    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """One new token (T = 1): append it and return its attention ``o_BHTD``."""

    def layer_input(self, layer: int, hidden_BTE: Tensor, phase: str) -> None:
        """Hidden states entering a layer (only if ``needs.layer_inputs``)."""

    def bind(self, model: Any) -> None:
        """The loaded model, before prefill (only if ``needs.layer_inputs``)."""

    def step(self) -> None:
        """After the last layer of a decode step."""

    def allocated(self) -> Footprint:
        """Bytes held now, by place; after ``seal`` it must equal ``plan``."""
        return Footprint()

    def stats(self) -> Mapping[str, Any]:
        """Facts about this session for the row (cluster counts, hit ratio ...)."""
        return {}

    def close(self) -> None:
        """Free all state."""
