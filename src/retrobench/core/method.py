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
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from retrobench.core.budget import Budget
from retrobench.core.needs import ALL_INPUTS as ALL_INPUTS
from retrobench.core.needs import ALL_QUERIES as ALL_QUERIES
from retrobench.core.needs import Needs as Needs
from retrobench.core.prompt_layer import AttentionArgs as AttentionArgs
from retrobench.core.prompt_layer import PromptLayer as PromptLayer
from retrobench.core.shapes import Footprint, KVShape

if TYPE_CHECKING:
    from torch import Tensor


class ModelView(Protocol):
    """What ``bind`` gives a method: what it may ask of the model.

    ``queries`` and ``projection_bytes`` are there with ``needs.layer_inputs`` only.
    """

    @property
    def weights_id(self) -> str:
        """Stable identity of the weights (a content hash)."""
        ...

    def queries(self, layer: int, hidden_BTM: Tensor) -> Tensor | None:
        """Post-RoPE queries ``q_BHTD`` that ``layer`` would compute from these hidden states.

        None where they cannot be computed yet (before the first managed layer of a forward).
        """
        ...

    def projection_bytes(self, layer: int) -> int:
        """Weights that ``queries`` reads."""
        ...

    def attention_module(self, layer: int) -> Any:
        """The attention module of a layer; ValueError where there are no modules."""
        ...

    def rotary(self, layer: int, like: Tensor, position_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a layer's rotary embedding, in the dtype of ``like``."""
        ...


class Probe:
    """Where a method reports what it did; this one listens to nothing.

    ``counting``, ``detail`` and ``timing`` say whether anybody listens to ``count``, to
    ``selected`` and to ``span``: ask before building arguments, so that a timed run pays nothing.
    """

    counting = False
    detail = False
    timing = False

    def span(self, name: str) -> AbstractContextManager[None]:
        """Times a named part of a step."""
        return contextlib.nullcontext()

    def count(self, layer: int, **amounts: float | Tensor) -> None:
        """Add what one decode call of a layer cost; names are ``core.counts.COUNTS``.

        ``attended`` (tokens attended exactly, mean per row and head) must be among them once per
        call: it proves that the layer ran. Amounts are numbers, or tensors of one element that stay
        on their device until the answer is complete.
        """

    def capture(self) -> None:
        """A step is captured as a graph from here on: what it counts on the host will repeat."""

    def replayed(self) -> None:
        """The captured step ran (again)."""

    def selected(
        self, layer: int, token_BGR: Tensor, estimate: Any = None, member_BGE: Tensor | None = None
    ) -> None:
        """Which tokens a decode call attends (only if ``detail``).

        ``token_BGR``: positions attended exactly, -1 padded, per KV head or query head.
        ``estimate``: the ``memory.selection.Estimate`` in use, if any; ``member_BGE``: positions of
        the tokens that it stands for, cluster after cluster, -1 padded at the end.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedCall:
    """One decode call of a method beside exact attention on the same inputs.

    ``k_BGSD`` and ``v_BGSD`` are all keys and values, the newest included.
    """

    layer: int
    q_BHTD: Tensor
    k_BGSD: Tensor
    v_BGSD: Tensor
    exact_BHTD: Tensor
    ours_BHTD: Tensor
    args: AttentionArgs
    pad_tokens: tuple[int, ...]


class Method(ABC):
    """KV state and decode attention of one batch, for one session.

    The engine prefills; a method never computes prefill attention. Life: constructor -> ``build``
    (once per layer, with the prompt) -> ``finish_build`` -> per decode step ``begin_step``,
    ``decode`` per layer, ``end_step`` -> ``close``. ``Config`` is a frozen keyword-only dataclass
    whose fields are the options ``method.*``.

    A CUDA graph can hold ``decode`` if shapes, addresses and host values do not change from step to
    step. A method that can do that takes ``static = True`` (set by the executor before ``build``)
    and leaves whatever the host must do to ``begin_step``.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    needs: ClassVar[Needs] = Needs()
    Calibrator: ClassVar[type[Calibrator] | None] = None
    memory_knob: ClassVar[str | None] = None  # the option that `match=gpu_memory` solves
    budgeted: ClassVar[bool] = True  # false: attends everything, so every budget is the same cell
    together: ClassVar[bool] = False  # one instance must see all layers, so on one device
    adaptive: ClassVar[bool] = False  # knows budgets of attention mass (top_p)
    static: bool = False

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
        self.probe = Probe() if probe is None else probe
        self.budget = budget
        self.setup()

    def setup(self) -> None:
        """Make the state of a new session; the constructor calls it once."""

    @classmethod
    def needs_of(cls, config: Any) -> Needs:
        """``needs``, unless it depends on the method's options."""
        return cls.needs

    @classmethod
    @abstractmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Bytes by place that a session of this shape will hold, computed before allocation."""

    @classmethod
    def dense_layers(cls, config: Any, shape: KVShape) -> tuple[int, ...]:
        """Layers that attend everything, whatever the budget."""
        return tuple(getattr(config, "dense_layers", ()))

    @abstractmethod
    def build(self, layer: int, prompt: PromptLayer) -> None:
        """Take one layer of the prompt: store its keys and values, build the index."""

    def finish_build(self) -> None:
        """All layers are built; decode steps follow."""

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
        assert cls.Calibrator is not None
        return cls.Calibrator.content_hash(config, weights_id)

    @classmethod
    def check_calibrated(
        cls, config: Any, weights_id: str, shape: KVShape, budget: Budget | None
    ) -> None:
        """ValueError where these weights cannot keep the budget (if ``needs.calibration``)."""

    def layer_input(self, layer: int, hidden_BTM: Tensor) -> None:
        """Input of a layer's attention in a decode step (only if ``needs.layer_inputs``)."""

    def bind(self, model: ModelView) -> None:
        """The model, before ``build`` (for ``layer_inputs``, ``modules`` and ``calibration``)."""

    def begin_step(self) -> None:
        """The host's part of the coming decode step: lengths, index updates."""

    def end_step(self) -> None:
        """After the last layer of a decode step."""

    def report_counts(self) -> None:
        """Tell the probe what was counted elsewhere (a block cache), once the answer is there."""

    @classmethod
    def no_graph(cls, config: Any, shape: KVShape) -> str | None:
        """Why a CUDA graph cannot hold this method's decode step; None if it can."""
        return f"method={cls.name} needs the host in every step"

    def allocated(self) -> Footprint:
        """Bytes held now, by place; after ``finish_build`` it must equal ``plan``."""
        return Footprint()

    def stats(self) -> Mapping[str, Any]:
        """Fields about this session for the row (cluster counts, hit ratio ...)."""
        return {}

    def close(self) -> None:
        """Free all state."""


class Calibrator(ABC):
    """Makes the file that a method needs beforehand, from the prefill of a calibration text."""

    needs: ClassVar[Needs]
    tokens: ClassVar[int]  # of the calibration text, unless the user says otherwise

    @classmethod
    @abstractmethod
    def check(cls, config: Any) -> None:
        """ValueError if the file could not be written; asked before any work is done."""

    @classmethod
    @abstractmethod
    def content_hash(cls, config: Any, weights_id: str) -> str:
        """Hash of the file of these weights; ValueError where it is missing."""

    @classmethod
    @abstractmethod
    def save(
        cls, config: Any, layers: Mapping[int, PromptLayer], weights_id: str, about: dict[str, str]
    ) -> Path:
        """Write the file of these weights; ``about`` becomes its metadata."""
