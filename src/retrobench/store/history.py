"""What earlier rows say: seconds per sample for a preflight, a cell's summary for its tracker."""

from typing import Any

from retrobench.store.results import ResultStore
from retrobench.store.row_file import OK

_TIMES = ["prefill_s", "seal_s", "decode_s"]


def seconds_per_sample(store: ResultStore) -> dict[tuple[str, str], dict[int, float]]:
    """Median seconds per sample by (model, method) and length; method "": any."""
    frame = store.columns(["model", "method", "length", "batch", *_TIMES])
    frame = frame.dropna(subset=["prefill_s"])
    seconds = frame[_TIMES].sum(axis=1) / frame["batch"].clip(lower=1)
    frame = frame.assign(seconds=seconds)
    found: dict[tuple[str, str], dict[int, float]] = {}
    for model, rows in frame.groupby("model"):
        found[model, ""] = rows.groupby("length")["seconds"].median().to_dict()
        for method, own in rows.groupby("method"):
            found[model, method] = own.groupby("length")["seconds"].median().to_dict()
    return found


def summarise(store: ResultStore, key: str) -> dict[str, Any]:
    """Answered samples of a cell, their mean score, and medians of the times."""
    frame = store.columns(["status", "score", "decode_steps", *_TIMES], [key])
    good = frame[frame["status"] == OK]
    if good.empty:
        return {"samples": 0}
    step_s = good["decode_s"] / good["decode_steps"].clip(lower=1)
    return {
        "samples": len(good),
        "mean_score": float(good["score"].mean()),
        "median_prefill_s": float(good["prefill_s"].median()),
        "median_seal_s": float(good["seal_s"].median()),
        "median_step_s": float(step_s.median()),
    }
