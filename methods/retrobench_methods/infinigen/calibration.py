"""Offline skewing (paper 4.2): an orthogonal basis per KV head in which few channels matter.

``softmax(q A (k A)^T) = softmax(q k^T)`` for orthogonal A. A holds the right singular vectors of
the head's queries on a calibration text; with RoPE the queries are taken after the rotation, which
does not commute with A, so A is applied at run time (as in the released Llama file). With GQA, the
queries of a KV head's whole group are stacked (ours).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Calibrator, Probe
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.math import causal
from retrobench.memory.placement import DeviceStore
from retrobench_methods.infinigen.config import InfiniGenConfig


def path(config: InfiniGenConfig, weights_id: str) -> Path:
    """The calibration file of a model."""
    return Path(config.calibration_dir) / f"infinigen-{weights_id}.safetensors"


def find(config: InfiniGenConfig, weights_id: str) -> Path:
    """The file, or ValueError with the command that makes it."""
    file = path(config, weights_id)
    if not file.exists():
        raise ValueError(
            f"method=infinigen needs a calibration of this model, {file}, which is not there; "
            "make it with `python scripts/calibrate.py method=infinigen model=...` "
            "(the model's options as in the run)"
        )
    return file


def content_hash(file: Path) -> str:
    """Hash of a calibration file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def load(file: Path, shape: KVShape) -> dict[str, Tensor]:
    """``skew_LGDD``, ``q_abs_LGD`` and ``k_abs_LGD`` on the shape's device, in float32."""
    with safe_open(file, "pt", device=shape.device) as stream:
        found = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        made_of = json.loads(stream.metadata().get("layers", "[]"))
    layers = made_of or list(range(len(found["skew_LGDD"])))
    if set(shape.layers) < set(layers):  # others are left to full attention
        chosen = [layers.index(layer) for layer in shape.layers]
        found = {name: tensor[chosen] for name, tensor in found.items()}
    expected = (len(shape.layers), shape.num_kv_heads, shape.head_dim, shape.head_dim)
    if tuple(found["skew_LGDD"].shape) != expected:
        raise ValueError(f"{file}: made for another model (shape {found['skew_LGDD'].shape})")
    return found


class SkewCalibration(Calibrator):
    """Watches the prefill of the calibration text and computes each layer's basis."""

    name = "infinigen_calibration"
    Config = InfiniGenConfig

    def __init__(
        self, config: Any, shape: KVShape, probe: Probe | None = None, budget: Budget | None = None
    ) -> None:
        super().__init__(config, shape, probe, budget)
        self.store = DeviceStore(shape)
        self.queries: dict[int, list[Tensor]] = {layer: [] for layer in shape.layers}

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """The exact cache."""
        return DeviceStore.plan(shape)

    def prefill(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Exact attention; the queries are kept."""
        self.store.append(layer, k_BGTD, v_BGTD)
        self.queries[layer].append(q_BHTD)
        keys, values = self.store.keys(layer), self.store.values(layer)
        return causal(q_BHTD, keys, values, args, self.shape.pad_tokens)

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Calibration has no decode."""
        raise AssertionError("calibration only prefills")

    def save(self, weights_id: str, about: Mapping[str, str]) -> Path:
        """Write the file; ``about`` (text, tokens, model ...) becomes its metadata."""
        bases, q_abs, k_abs = zip(*(self._layer(layer) for layer in self.shape.layers), strict=True)
        file = path(self.config, weights_id)
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"skew_LGDD": bases, "q_abs_LGD": q_abs, "k_abs_LGD": k_abs}
        temporary = file.with_suffix(".tmp")
        save_file(
            {name: torch.stack(parts).cpu().contiguous() for name, parts in tensors.items()},
            temporary,
            metadata={"weights_id": weights_id, "layers": json.dumps(self.shape.layers), **about},
        )
        temporary.replace(file)
        return file

    def _layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """(basis ``GDD``, channel sums of |Q| and |K| in that basis, both ``GD``)."""
        q_HTD = torch.cat(self.queries[layer], 2)[0].float()
        q_GND = q_HTD.unflatten(0, (self.shape.num_kv_heads, -1)).flatten(1, 2)
        basis = torch.linalg.svd(q_GND, full_matrices=q_GND.shape[1] < q_GND.shape[2])[2].mT
        k_GSD = self.store.keys(layer)[0].float()
        return basis, (q_GND @ basis).abs().sum(1), (k_GSD @ basis).abs().sum(1)

    def close(self) -> None:
        """Free the cache."""
        self.store.close()
        self.queries.clear()
