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
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from retrobench.core.budget import Budget
from retrobench.core.shapes import Footprint, KVShape

if TYPE_CHECKING:
    from torch import Tensor

Bytes = Literal["kv", "index", "weights", "h2d", "d2h"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a method asks of the engine beyond keys, values and decode queries.

    The engine reads this; nobody tests a method's type. ``layer_inputs``: call ``bind`` once and
    ``layer_input`` before each layer's attention. ``calibration``: a file made beforehand
    (``scripts/calibrate.py``), looked for by ``Method.calibration``.
    """

    layer_inputs: bool = False
    calibration: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionArgs:
    """Scalars of one attention call: logit scale and optional tanh soft cap."""

    scale: float
    softcap: float | None = None


class ModelView(Protocol):
    """What a method with ``needs.layer_inputs`` may ask of the model."""

    @property
    def weights_id(self) -> str:
        """Stable identity of the weights (a content hash)."""
        ...

    def queries(self, layer: int, hidden_BTE: Tensor) -> Tensor | None:
        """Post-RoPE queries ``q_BHTD`` that ``layer`` would compute from these hidden states.

        None where they cannot be computed yet (before the first served layer of a forward).
        """
        ...

    def projection_bytes(self, layer: int) -> int:
        """Weights that ``queries`` reads."""
        ...


class Probe(Protocol):
    """Where a method reports what it did. ``NullProbe`` costs nothing in timed runs."""

    @property
    def detail(self) -> bool:
        """Whether ``selected`` is listened to: ask before building its arguments."""
        ...

    def span(self, name: str) -> AbstractContextManager[None]:
        """Times a named part of a step."""
        ...

    def moved(self, kind: Bytes, num_bytes: int) -> None:
        """Bytes read (``kv``, ``index``, ``weights``) or copied between tiers (``h2d``, ``d2h``).

        ``weights`` are read beyond those of the model's own forward, once per batch.
        """
        ...

    def access(self, layer: int, hits: int, misses: int, evictions: int = 0) -> None:
        """Fast-tier hits, misses and evictions of a layer in one step, in KV pages."""
        ...

    def live(self, layer: int, *, attended: float, estimated: float = 0.0) -> None:
        """Tokens per row and head that layer attended exactly, and through estimates."""
        ...

    def selected(
        self,
        layer: int,
        token_BGR: Tensor,
        estimate: Any = None,
        member_BGE: Tensor | None = None,
    ) -> None:
        """Which tokens a decode call attends (only if ``detail``).

        ``token_BGR``: positions attended exactly, -1 padded, per KV head or query head.
        ``estimate``: the ``engine.attend.Estimate`` in use, if any; ``member_BGE``: positions of
        the tokens that it stands for, cluster after cluster, -1 padded at the end.
        """
        ...


class NullProbe:
    """A probe that does nothing."""

    detail = False

    def span(self, name: str) -> AbstractContextManager[None]:
        """No-op."""
        return contextlib.nullcontext()

    def moved(self, kind: Bytes, num_bytes: int) -> None:
        """No-op."""

    def access(self, layer: int, hits: int, misses: int, evictions: int = 0) -> None:
        """No-op."""

    def live(self, layer: int, *, attended: float, estimated: float = 0.0) -> None:
        """No-op."""

    def selected(
        self,
        layer: int,
        token_BGR: Tensor,
        estimate: Any = None,
        member_BGE: Tensor | None = None,
    ) -> None:
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
    Calibrator: ClassVar[type[Calibrator] | None] = None
    memory_knob: ClassVar[str | None] = None  # the option that `match=gpu_memory` solves
    budgeted: ClassVar[bool] = True  # false: attends everything, so every budget is the same cell

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

    @classmethod
    def calibration(cls, config: Any, weights_id: str) -> str:
        """Content hash of the file made beforehand, for the cell key (if ``needs.calibration``).

        ValueError naming the command that makes it where it is missing.
        """
        raise NotImplementedError

    def layer_input(self, layer: int, hidden_BTE: Tensor, phase: str) -> None:
        """Input of a layer's attention, after its norm (only if ``needs.layer_inputs``)."""

    def bind(self, model: ModelView) -> None:
        """The model, before prefill (only if ``needs.layer_inputs``)."""

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


class Calibrator(Method):
    """Watches the prefill of a calibration text, then writes its file (``needs.calibration``)."""

    @abstractmethod
    def save(self, weights_id: str, about: Mapping[str, str]) -> Path:
        """Write the file of these weights; ``about`` becomes its metadata."""
