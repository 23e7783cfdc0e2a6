"""The table of ``task=speed``: one line per method, context and batch."""

from typing import Any

import pandas as pd

from retrobench.report.rows import HELD_BYTES, token_count
from retrobench.report.tables.labels import each_label
from retrobench.report.tables.layout import number
from retrobench.store.row_file import OK

COLUMNS = (
    "meta.batch meta.shape speed.step_s speed.step_q1_s speed.step_q3_s speed.tokens_per_s "
    "speed.read_bytes speed.read_gb_s speed.ceiling_gb_s speed.output_error speed.threads "
    "method_stats.backend prefill_tokens_per_s live.fetch_hidden_frac"
).split()


def speed_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians with quartiles, rates against the machine's, and the ratio to full attention.

    ``vs full`` divides by the fastest ``method=full`` row of the same model shape, context and
    batch; the backend that it ran is named in its line. A failure shows its status.
    """
    frame = frame.assign(sparse=frame["method"] != "full")  # full attention first
    order = ["length", "meta.batch", "sparse", "method", "key"]
    rows = []
    frame = frame.sort_values(order, kind="stable").assign(line=range(len(frame)))
    labels = each_label(frame, by=("line",))
    for (_, label), row in zip(labels, frame.to_dict("records"), strict=True):
        cell = {**label, "context": token_count(row["length"])}
        cell["batch"] = f"{row['meta.batch']:.0f}"
        if row["status"] == OK:
            cell |= _measured(row, full_step_s(row, frame))
        else:
            cell |= {"ms/step": row["status"]}
        rows.append(cell)
    return pd.DataFrame(rows)


def _measured(row: dict[str, Any], full_s: float | None) -> dict[str, str]:
    backend = row["method_stats.backend"]
    step_s, low, high = (row[f"speed.step_{name}s"] for name in ("", "q1_", "q3_"))
    held = sum(row[name] for name in HELD_BYTES)
    return {
        "backend": backend if isinstance(backend, str) else "",
        "ms/step": f"{1000 * step_s:.2f}",
        "quartiles": f"{1000 * low:.3g}-{1000 * high:.3g}",
        "tok/s": f"{row['speed.tokens_per_s']:.1f}",
        "vs full": "" if full_s is None else f"{full_s / step_s:.2f}x",
        "error": number(row["speed.output_error"], ".1e"),
        "MB/step": f"{row['speed.read_bytes'] / 1e6:.1f}",
        "GB/s": f"{row['speed.read_gb_s']:.1f} of {row['speed.ceiling_gb_s']:.1f}",
        "hit": number(row["live.hit_ratio"], ".2f"),
        "hidden": number(row["live.fetch_hidden_frac"], ".2f"),
        "prefill tok/s": number(row["prefill_tokens_per_s"], ".0f"),
        "prefill s": number(row["prefill_s"], ".2f"),
        "build s": f"{row['seal_s']:.2f}",
        "MB held": f"{held / 1e6:.0f}",
    }


def full_step_s(row: dict[str, Any], frame: pd.DataFrame) -> float | None:
    """Fastest full attention at the row's model, context and batch."""
    same = (frame["method"] == "full") & (frame["status"] == OK)
    for name in ("model", "length", "meta.batch"):
        same &= frame[name] == row[name]
    return float(frame.loc[same, "speed.step_s"].min()) if same.any() else None
