"""A method measured beside full attention: the model goes on with the exact output.

So every decode call of the method sees the queries, keys and values of the dense trajectory, and
errors do not compound over layers or steps.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Method, ModelView, Probe
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.math import dense_decode
from retrobench.memory.placement import DeviceStore


class Judge(Probe, Protocol):
    """A probe that also compares outputs."""

    def compare(
        self,
        layer: int,
        q_BHTD: Tensor,
        k_BGSD: Tensor,
        v_BGSD: Tensor,
        exact_BHTD: Tensor,
        ours_BHTD: Tensor,
        args: AttentionArgs,
    ) -> None:
        """One decode call: all keys and values, the exact output and the method's."""
        ...


class Shadow(Method):
    """Runs ``inner`` on the dense trajectory; ``judge`` is also the probe of ``inner``."""

    name = "shadow"

    def __init__(self, inner: Method, judge: Judge) -> None:
        super().__init__(inner.config, inner.shape, judge, inner.budget)
        self.inner, self.judge = inner, judge
        self.needs = inner.needs  # type: ignore[misc]
        self.truth = DeviceStore(inner.shape)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """The exact cache; the inner method's bytes come on top."""
        return DeviceStore.plan(shape)

    def prefill(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """The inner method's prefill, which is exact."""
        self.truth.append(layer, k_BGTD, v_BGTD)
        return self.inner.prefill(layer, q_BHTD, k_BGTD, v_BGTD, args)

    def seal(self) -> None:
        """Seal the inner method."""
        self.inner.seal()

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Both outputs to the judge, the exact one to the model."""
        self.truth.append(layer, k_BGTD, v_BGTD)
        keys, values = self.truth.keys(layer), self.truth.values(layer)
        exact = dense_decode(q_BHTD, keys, values, args, self.shape.pad_tokens)
        ours = self.inner.decode(layer, q_BHTD, k_BGTD, v_BGTD, args)
        self.judge.compare(layer, q_BHTD, keys, values, exact, ours, args)
        return exact

    def layer_input(self, layer: int, hidden_BTE: Tensor, phase: str) -> None:
        """Pass on."""
        self.inner.layer_input(layer, hidden_BTE, phase)

    def bind(self, model: ModelView) -> None:
        """Pass on."""
        self.inner.bind(model)

    def step(self) -> None:
        """Pass on."""
        self.inner.step()

    def allocated(self) -> Footprint:
        """The inner method's bytes."""
        return self.inner.allocated()

    def stats(self) -> dict[str, Any]:
        """The inner method's facts."""
        return dict(self.inner.stats())

    def close(self) -> None:
        """Free both."""
        self.inner.close()
        self.truth.close()
