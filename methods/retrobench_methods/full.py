"""Full attention: every token, exactly. The baseline and the reference of every comparison."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from retrobench.core.budget import Budget
from retrobench.core.shapes import Footprint, KVShape
from retrobench.core.spec import choice
from retrobench.engine.attention.backends import BACKENDS, check
from retrobench.engine.attention.dense import DenseMethod


class Full(DenseMethod):
    """All keys and values on the model's device, attended exactly."""

    name = "full"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Full attention has no budget."""

        backend: str = choice(
            ("auto", *BACKENDS),
            "who computes a decode step; auto: the fastest of what is installed, timed once per "
            "shape (sdpa below 2048 tokens); the row names it",
        )

    def setup(self) -> None:
        """Make the store, after checking that the backend can run."""
        _check(self.config, self.shape)
        super().setup()

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """K and V of all tokens, after checking that the backend can run."""
        _check(config, shape)
        return super().plan(config, shape, budget)

    @classmethod
    def no_graph(cls, config: Any, shape: KVShape) -> str | None:
        """A graph holds this project's kernel."""
        if config.backend in ("auto", "cpu", "triton"):
            return None
        return f"method.backend={config.backend} has no graph form; use method.backend=auto"

    def stats(self) -> Mapping[str, Any]:
        """The backends that ran, and how long each candidate took where that was measured."""
        timed = {name: ms for times in self.backend.used.values() for name, ms in times.items()}
        return {"backend": ",".join(self.backend.used) or "graph", "backend_ms": timed}


def _check(config: Any, shape: KVShape) -> None:
    """ValueError if the backend asked for cannot run here."""
    if config.backend == "auto":
        return
    dtype = getattr(torch, shape.dtype)
    reason = check(config.backend, shape.device, dtype, shape.head_dim)
    if reason is not None:
        raise ValueError(reason)
