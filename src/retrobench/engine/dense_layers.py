"""Layers that stay with full attention whatever the method (``engine.dense_layers``).

Quest's and InfiniGen's papers leave the first layers dense. With the same layers dense for every
method, equal budgets mean equal work in the same places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Method, ModelView, Probe
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.math import causal, dense_decode
from retrobench.memory.placement import DeviceStore, vector_bytes


class _WithDenseLayers(Method):
    """``inner`` serves the other layers; the ``dense`` ones stay on the device."""

    inner_class: ClassVar[type[Method]]
    dense: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        config: Any,
        shape: KVShape,
        probe: Probe | None = None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(config, shape, probe, budget)
        kept, left = _split(shape, self.dense)
        self.store = DeviceStore(kept)
        self.inner = self.inner_class(config, left, probe, budget)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Both parts."""
        kept, left = _split(shape, cls.dense)
        return DeviceStore.plan(kept) + cls.inner_class.plan(config, left, budget)

    @classmethod
    def calibration(cls, config: Any, weights_id: str) -> str:
        """The inner method's."""
        return cls.inner_class.calibration(config, weights_id)

    def prefill(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Exact in both parts."""
        if layer not in self.dense:
            return self.inner.prefill(layer, q_BHTD, k_BGTD, v_BGTD, args)
        self.store.append(layer, k_BGTD, v_BGTD)
        keys, values = self.store.keys(layer), self.store.values(layer)
        return causal(q_BHTD, keys, values, args, self.shape.pad_tokens)

    def seal(self) -> None:
        """Pass on."""
        self.inner.seal()

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Everything in a dense layer, else the inner method."""
        if layer not in self.dense:
            return self.inner.decode(layer, q_BHTD, k_BGTD, v_BGTD, args)
        self.store.append(layer, k_BGTD, v_BGTD)
        keys, values = self.store.keys(layer), self.store.values(layer)
        tokens = [keys.shape[2] - pad for pad in self.shape.pad_tokens]
        self.probe.live(layer, attended=sum(tokens) / len(tokens))
        unit = self.shape.num_kv_heads * vector_bytes(self.shape)
        self.probe.moved("kv", sum(tokens) * unit)
        return dense_decode(q_BHTD, keys, values, args, self.shape.pad_tokens)

    def layer_input(self, layer: int, hidden_BTE: Tensor, phase: str) -> None:
        """Pass on: a dense layer's input may foretell the next one's queries."""
        self.inner.layer_input(layer, hidden_BTE, phase)

    def bind(self, model: ModelView) -> None:
        """Pass on."""
        self.inner.bind(model)

    def step(self) -> None:
        """Pass on."""
        self.inner.step()

    def allocated(self) -> Footprint:
        """Both parts."""
        return self.store.footprint() + self.inner.allocated()

    def stats(self) -> Mapping[str, Any]:
        """The inner method's."""
        return self.inner.stats()

    def close(self) -> None:
        """Free both parts."""
        self.inner.close()
        self.store.close()


def with_dense_layers(method: type[Method], layers: tuple[int, ...]) -> type[Method]:
    """``method`` with these layers left to full attention; itself if there are none."""
    if not layers:
        return method
    facts = {"inner_class": method, "dense": layers, "needs": method.needs, "name": method.name}
    facts |= {"memory_knob": method.memory_knob, "Calibrator": method.Calibrator}
    return type(method.__name__, (_WithDenseLayers,), {**facts, "Config": method.Config})


def _split(shape: KVShape, dense: tuple[int, ...]) -> tuple[KVShape, KVShape]:
    """Shapes of the dense layers and of the others; ValueError if either is not there."""
    strange = sorted(set(dense) - set(shape.layers))
    if strange or len(dense) >= len(shape.layers):
        raise ValueError(
            f"engine.dense_layers={','.join(map(str, dense))}: name some, not all, of the model's "
            f"layers {shape.layers[0]}-{shape.layers[-1]}"
        )
    left = tuple(layer for layer in shape.layers if layer not in dense)
    return tuple(dataclasses.replace(shape, layers=part) for part in (dense, left))  # type: ignore
