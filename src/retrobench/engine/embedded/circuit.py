"""A Llama state dict written by hand: named residual slots, head projections, gated MLP units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import LlamaConfig

from retrobench.engine.embedded.rope import FREE_DIMS, HEAD_DIM

CONST = 512.0
"""Value of the constant residual dimension: it dwarfs the rest, so that RMSNorm is a fixed scale."""

SHARPNESS = 40.0
SINK_KEY = 8.0


class Residual:
    """Named slots of the residual stream; slot ``one`` (1 after every norm) comes first."""

    def __init__(self) -> None:
        self.slots: dict[str, slice] = {}
        self.size = 0
        self.add("one", 1)

    def add(self, name: str, width: int) -> None:
        """Reserve ``width`` dimensions."""
        self.slots[name] = slice(self.size, self.size + width)
        self.size += width

    def __getitem__(self, name: str) -> slice:
        return self.slots[name]

    def dim(self, name: str) -> int:
        """The only (or first) dimension of a slot."""
        return self.slots[name].start

    def dims(self, name: str) -> list[int]:
        """All dimensions of a slot."""
        return list(range(self.slots[name].start, self.slots[name].stop))


class Layer:
    """Weights of one decoder layer."""

    def __init__(self, config: LlamaConfig, residual: Residual) -> None:
        width, self.residual = config.hidden_size, residual
        self.q = torch.zeros(config.num_attention_heads * HEAD_DIM, width)
        self.k = torch.zeros(config.num_key_value_heads * HEAD_DIM, width)
        self.v = torch.zeros(config.num_key_value_heads * HEAD_DIM, width)
        self.o = torch.zeros(width, config.num_attention_heads * HEAD_DIM)
        self.gate = torch.zeros(config.intermediate_size, width)
        self.up = torch.zeros(config.intermediate_size, width)
        self.down = torch.zeros(width, config.intermediate_size)
        self.units = 0

    def head_q(self, head: int) -> Tensor:
        """Query rows of a head, ``[D, hidden]``."""
        return self.q[head * HEAD_DIM : (head + 1) * HEAD_DIM]

    def head_k(self, kv_head: int) -> Tensor:
        """Key rows of a KV head, ``[D, hidden]``."""
        return self.k[kv_head * HEAD_DIM : (kv_head + 1) * HEAD_DIM]

    def ask(self, head: int, start: int, slot: str, nats: float) -> None:
        """Query content: a slot into the free dims from ``start``; a full match adds ``nats``."""
        dims = self.residual.dims(slot)
        scale = nats * math.sqrt(HEAD_DIM) / len(dims)
        for i, dim in enumerate(dims):
            self.head_q(head)[FREE_DIMS[start + i], dim] += scale

    def offer(self, kv_head: int, start: int, slot: str) -> None:
        """Key content: a slot into the free dims from ``start``."""
        for i, dim in enumerate(self.residual.dims(slot)):
            self.head_k(kv_head)[FREE_DIMS[start + i], dim] += 1.0

    def sink(self, head: int, kv_head: int, at: int, nats: float, bos: int) -> None:
        """BOS scores ``nats``; its value is zero, so a head that finds nothing adds nothing."""
        self.head_q(head)[FREE_DIMS[at], 0] += nats * math.sqrt(HEAD_DIM) / SINK_KEY
        self.head_k(kv_head)[FREE_DIMS[at], bos] = SINK_KEY

    def carry(self, kv_head: int, start: int, slot: str) -> None:
        """Value content: a slot into value dims from ``start``."""
        for i, dim in enumerate(self.residual.dims(slot)):
            self.v[kv_head * HEAD_DIM + start + i, dim] += 1.0

    def deliver(self, head: int, start: int, slot: str) -> None:
        """Output: value dims from ``start`` added to a slot."""
        for i, dim in enumerate(self.residual.dims(slot)):
            self.o[dim, head * HEAD_DIM + start + i] += 1.0

    def _unit(self, gate: dict[int, float], up: dict[int, float], down: dict[int, float]) -> None:
        i = self.units
        if i >= len(self.gate):
            raise AssertionError("intermediate_size is too small for the circuit")
        for matrix, entries in ((self.gate, gate), (self.up, up)):
            for dim, value in entries.items():
                matrix[i, dim] += value
        for dim, value in down.items():
            self.down[dim, i] += value
        self.units += 1

    def when(
        self,
        yes: Sequence[int],
        up: dict[int, float],
        down: dict[int, float],
        no: Sequence[int] = (),
        signs: Iterable[tuple[int, int]] = (),
    ) -> None:
        """Add ``down * up`` where all ``yes`` flags are 1, ``no`` flags 0, ``signs`` dims agree.

        SiLU of +-SHARPNESS/2 is a step: its height is divided out.
        """
        signs = list(signs)
        gate = {0: -(len(yes) + len(signs) - 0.5) * SHARPNESS}
        for dim in yes:
            gate[dim] = gate.get(dim, 0.0) + SHARPNESS
        for dim in no:
            gate[dim] = gate.get(dim, 0.0) - SHARPNESS
        for dim, sign in signs:
            gate[dim] = gate.get(dim, 0.0) + sign * SHARPNESS / 2
        gate[0] += len(signs) * SHARPNESS / 2
        height = SHARPNESS / 2
        self._unit(gate, up, {dim: value / height for dim, value in down.items()})

    def flag(self, name: str, yes: Sequence[int], no: Sequence[int] = ()) -> None:
        """Set a flag slot to 1 where the conditions hold."""
        self.when(yes, {0: 1.0}, {self.residual.dim(name): 1.0}, no)

    def above(self, name: str, where: int, level: int, threshold: float, gap: float) -> None:
        """Set a flag slot where flag ``where`` holds and dim ``level`` exceeds ``threshold``.

        ``gap`` is the distance of the threshold from the nearest levels.
        """
        steep, height = SHARPNESS / 2 / gap, SHARPNESS / 2
        veto = 1000.0 * SHARPNESS
        gate = {0: -veto - steep * threshold, where: veto, level: steep}
        self._unit(gate, {0: 1.0}, {self.residual.dim(name): 1.0 / height})

    def product(self, a: dict[int, float], b: dict[int, float], down: dict[int, float]) -> None:
        """Add the product of two linear forms: ``x y = silu(x) y + silu(-x)(-y)``."""
        self._unit(a, b, down)
        minus = ({d: -v for d, v in form.items()} for form in (a, b))
        self._unit(*minus, down)


def norm_weights(width: int) -> Tensor:
    """RMSNorm weights that leave the stream as it is and turn the constant into 1."""
    rms = CONST / math.sqrt(width)
    weight = torch.full((width,), rms)
    weight[0] = rms / CONST
    return weight
