"""Published numbers shown beside ours, each with its source; nothing was read off a plot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published point: scores in percent, lengths in tokens."""

    model: str  # substring of the model's name, lower case
    method: str
    length: int
    score: float
    source: str


_RULER_README = "NVIDIA/RULER README"
_DOUBLE_P = "arXiv 2602.05191"


def _curve(model: str, method: str, source: str, values: dict[int, float]) -> list[Published]:
    return [
        Published(model=model, method=method, length=1024 * k, score=score, source=source)
        for k, score in values.items()
    ]


RULER = [
    *_curve(
        "llama31_8b",
        "full",
        _RULER_README,
        {4: 95.5, 8: 93.8, 16: 91.6, 32: 87.4, 64: 84.7, 128: 77.0},
    ),
    *_curve("llama31_8b", "retroinfer", _DOUBLE_P, {16: 91.56, 32: 88.12, 64: 83.77}),
    *_curve("llama31_8b", "quest", _DOUBLE_P, {16: 89.24, 32: 85.95, 64: 83.61}),
]

# RetroInfer v3 (PVLDB 19(5), arXiv 2505.02922v3): its defaults, marked in sensitivity figures
RETROINFER = "RetroInfer v3"
HIT_RATIO = (0.79, 0.94)  # section 4.3: across tasks, 5% cache, 128K
DEFAULTS = {
    "tokens_per_cluster": 16,
    "segment_tokens": 8192,
    "retrieval_frac": 0.018,
    "estimation_frac": 0.232,
    "cache_frac": 0.05,
    "page_tokens": 8,
    "kmeans_iterations": 10,
}
