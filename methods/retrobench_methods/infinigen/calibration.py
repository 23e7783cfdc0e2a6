"""Offline skewing (paper 4.2): an orthogonal basis per KV head in which few channels matter.

``softmax(q A (k A)^T) = softmax(q k^T)`` for orthogonal A. A holds the right singular vectors of
the head's queries on a calibration text; with RoPE the queries are taken after the rotation, which
does not commute with A, so A is applied at run time (as in the released Llama file). With GQA, the
queries of a KV head's whole group are stacked (ours).
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from retrobench.core.method import ALL_QUERIES, Needs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench_methods._calibration import FileCalibrator, read_calibration


def load(file: Path, shape: KVShape) -> dict[str, Tensor]:
    """``skew_LGDD``, ``q_abs_LGD`` and ``k_abs_LGD`` on the shape's device, in float32."""
    found = read_calibration(file, shape)
    expected = (len(shape.layers), shape.num_kv_heads, shape.head_dim, shape.head_dim)
    if tuple(found["skew_LGDD"].shape) != expected:
        raise ValueError(f"{file}: made for another model (shape {found['skew_LGDD'].shape})")
    return found


class SkewCalibration(FileCalibrator):
    """Computes each layer's basis from the queries of a calibration text."""

    method = "infinigen"
    needs = Needs(prompt_queries=ALL_QUERIES)
    tokens = 2048  # the first ones of a book

    @classmethod
    def measure(cls, layers: Iterable[PromptLayer]) -> dict[str, Tensor]:
        """``skew_LGDD``, and channel sums ``q_abs_LGD`` and ``k_abs_LGD``."""
        bases, q_abs, k_abs = zip(*map(_basis, layers), strict=True)
        tensors = {"skew_LGDD": bases, "q_abs_LGD": q_abs, "k_abs_LGD": k_abs}
        return {name: torch.stack(parts) for name, parts in tensors.items()}


def _basis(prompt: PromptLayer) -> tuple[Tensor, Tensor, Tensor]:
    """(basis ``GDD``, channel sums of |Q| and |K| in that basis, both ``GD``) of one layer."""
    assert prompt.q_BHWD is not None
    k_GSD = prompt.k_BGSD[0].float()
    q_GND = prompt.q_BHWD[0].float().unflatten(0, (k_GSD.shape[0], -1)).flatten(1, 2)
    basis = torch.linalg.svd(q_GND, full_matrices=q_GND.shape[1] < q_GND.shape[2])[2].mT
    return basis, (q_GND @ basis).abs().sum(1), (k_GSD @ basis).abs().sum(1)
