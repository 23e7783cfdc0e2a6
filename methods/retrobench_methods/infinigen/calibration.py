"""Offline skewing (paper 4.2): an orthogonal basis per KV head in which few channels matter.

``softmax(q A (k A)^T) = softmax(q k^T)`` for orthogonal A. A holds the right singular vectors of
the head's queries on a calibration text; with RoPE the queries are taken after the rotation, which
does not commute with A, so A is applied at run time (as in the released Llama file). With GQA, the
queries of a KV head's whole group are stacked (ours).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retrobench.core.method import ALL_QUERIES, Calibrator, Needs, PromptLayer
from retrobench.core.paths import check_folder
from retrobench.core.shapes import KVShape
from retrobench_methods.infinigen.config import InfiniGenConfig


def path(config: InfiniGenConfig, weights_id: str) -> Path:
    """The calibration file of a model."""
    return Path(config.calibration_dir) / f"infinigen-{weights_id}.safetensors"


def find(config: InfiniGenConfig, weights_id: str) -> Path:
    """The file, or ValueError with the command that makes it."""
    file = path(config, weights_id)
    if not file.is_file():
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
    """Computes each layer's basis from the queries of a calibration text."""

    needs = Needs(prompt_queries=ALL_QUERIES)

    @classmethod
    def check(cls, config: Any) -> None:
        """ValueError if nothing can be written to the calibration folder."""
        check_folder("method.calibration_dir", Path(config.calibration_dir))

    @classmethod
    def save(
        cls,
        config: Any,
        layers: Mapping[int, PromptLayer],
        weights_id: str,
        about: Mapping[str, str],
    ) -> Path:
        """Write the file; ``about`` (text, tokens, model ...) becomes its metadata."""
        bases, q_abs, k_abs = zip(*map(_basis, layers.values()), strict=True)
        file = path(config, weights_id)
        tensors = {"skew_LGDD": bases, "q_abs_LGD": q_abs, "k_abs_LGD": k_abs}
        temporary = file.with_suffix(".tmp")
        metadata = {"weights_id": weights_id, "layers": json.dumps(list(layers)), **about}
        stacked = {n: torch.stack(parts).cpu().contiguous() for n, parts in tensors.items()}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(stacked, temporary, metadata=metadata)
            temporary.replace(file)
        except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
            raise ValueError(
                f"method.calibration_dir={config.calibration_dir}: cannot be written ({error}); "
                "choose another with method.calibration_dir=FOLDER"
            ) from error
        return file


def _basis(prompt: PromptLayer) -> tuple[Tensor, Tensor, Tensor]:
    """(basis ``GDD``, channel sums of |Q| and |K| in that basis, both ``GD``) of one layer."""
    assert prompt.q_BHWD is not None
    k_GSD = prompt.k_BGSD[0].float()
    q_GND = prompt.q_BHWD[0].float().unflatten(0, (k_GSD.shape[0], -1)).flatten(1, 2)
    basis = torch.linalg.svd(q_GND, full_matrices=q_GND.shape[1] < q_GND.shape[2])[2].mT
    return basis, (q_GND @ basis).abs().sum(1), (k_GSD @ basis).abs().sum(1)
