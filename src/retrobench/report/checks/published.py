"""Published numbers, each with its source; nothing was read off a plot."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published point: scores in percent, lengths in tokens."""

    model: str  # substring of the model's name, lower case
    method: str
    length: int
    score: float
    source: str
    task: str = "avg"
    benchmark: str = "ruler"


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

_TASKS = (
    "niah_single_1 niah_single_2 niah_single_3 niah_multikey_1 niah_multikey_2 niah_multikey_3 "
    "niah_multiquery niah_multivalue vt cwe fwe qa_1 qa_2 avg"
).split()


def _row(method: str, scores: list[float]) -> list[Published]:
    """A row of RetrievalAttention's Table 9: 128K, Llama-3-8B-Instruct-Gradient-262k."""
    model, source = "gradient-262k", "arXiv 2409.10516v3 Table 9"
    return [
        Published(model=model, method=method, length=131072, score=s, source=source, task=task)
        for task, s in zip(_TASKS, scores, strict=True)
    ]


RULER_BY_TASK = [
    *_row("full", [100, 100, 100, 98, 98, 73, 94.5, 97, 87, 1.0, 72.2, 58.5, 44.5, 78.7]),
    *_row("quest", [100, 100, 98.5, 98.5, 36.5, 0, 48.9, 64.3, 89.4, 1.0, 64.5, 45, 39.5, 60.5]),
    *_row("infinigen", [99, 91.5, 24.5, 82.5, 25, 0, 30.3, 27.8, 67.3, 1.2, 45.5, 33, 32.5, 43.1]),
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
