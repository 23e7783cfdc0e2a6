"""The table of ``task=speed``: one line per method, context and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from retrobench.store.results import OK

COLUMNS = (
    "meta.batch meta.shape speed.step_s speed.step_q1_s speed.step_q3_s speed.tokens_per_s "
    "speed.read_bytes speed.read_gb_s speed.ceiling_gb_s speed.output_error speed.threads "
    "method_stats.backend live.fetch_hidden_frac"
).split()


def speed_matrix(
    frame: pd.DataFrame, labels: Callable[[pd.DataFrame], dict[str, Any]]
) -> pd.DataFrame:
    """Medians with quartiles, rates against the machine's, and the ratio to full attention.

    ``vs full`` divides by the fastest ``method=full`` row of the same model shape, context and
    batch; the backend that it ran is named in its line. A failure shows its status.
    """
    rows = []
    frame = frame.assign(sparse=frame["method"] != "full")  # full attention first
    order = ["length", "meta.batch", "sparse", "method", "key"]
    for _, row in frame.sort_values(order, kind="stable").iterrows():
        cell = {**labels(frame[frame["key"] == row["key"]]), "context": f"{row['length']}"}
        cell["batch"] = f"{row['meta.batch']:.0f}"
        if row["status"] != OK:
            rows.append({**cell, "ms/step": row["status"]})
            continue
        error, backend = row["speed.output_error"], row["method_stats.backend"]
        build = row["seal_s"] + (row["prefill_s"] if pd.notna(row["prefill_s"]) else 0)
        held = row[["footprint.device", "footprint.pinned", "footprint.host"]].sum()
        hit, hidden = row["live.hit_ratio"], row["live.fetch_hidden_frac"]
        spread = f"{1000 * row['speed.step_q1_s']:.3g}-{1000 * row['speed.step_q3_s']:.3g}"
        rows.append(
            {
                **cell,
                "backend": backend if isinstance(backend, str) else "",
                "ms/step": f"{1000 * row['speed.step_s']:.2f}",
                "quartiles": spread,
                "tok/s": f"{row['speed.tokens_per_s']:.1f}",
                "vs full": _ratio(row, frame),
                "error": "" if pd.isna(error) else f"{error:.1e}",
                "MB/step": f"{row['speed.read_bytes'] / 1e6:.1f}",
                "GB/s": f"{row['speed.read_gb_s']:.1f} of {row['speed.ceiling_gb_s']:.1f}",
                "hit": "" if pd.isna(hit) else f"{hit:.2f}",
                "hidden": "" if pd.isna(hidden) else f"{hidden:.2f}",
                "build s": f"{build:.2f}",
                "MB held": f"{held / 1e6:.0f}",
            }
        )
    return pd.DataFrame(rows)


def full_step_s(row: pd.Series, frame: pd.DataFrame) -> float | None:
    """Fastest full attention at the row's model, context and batch."""
    same = frame[
        (frame["method"] == "full")
        & (frame["status"] == OK)
        & (frame["model"] == row["model"])
        & (frame["length"] == row["length"])
        & (frame["meta.batch"] == row["meta.batch"])
    ]
    return float(same["speed.step_s"].min()) if len(same) else None


def _ratio(row: pd.Series, frame: pd.DataFrame) -> str:
    full = full_step_s(row, frame)
    return "" if full is None else f"{full / row['speed.step_s']:.2f}x"
