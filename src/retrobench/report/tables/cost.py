"""The table of costs: a row per cell."""

from __future__ import annotations

import pandas as pd

from retrobench.report.rows import HELD_BYTES, moved_bytes, step_seconds
from retrobench.report.tables.labels import each_label
from retrobench.report.tables.layout import number
from retrobench.store.row_file import OK

# column -> (what it shows of answered rows, format)
_COLUMNS = {
    "attended": (lambda rows: rows["live.attended_tokens"], ".0f"),
    "estimated": (lambda rows: rows["live.estimated_tokens"], ".0f"),
    "prefill s": (lambda rows: rows["prefill_s"], ".2f"),
    "seal s": (lambda rows: rows["seal_s"], ".3f"),
    "ms/step": (lambda rows: 1000 * step_seconds(rows), ".1f"),
    "MiB held": (lambda rows: rows[HELD_BYTES].sum(axis=1) / 2**20, ".1f"),
    "MiB/step": (lambda rows: moved_bytes(rows) / 2**20, ".2f"),
    "hit": (lambda rows: rows["live.hit_ratio"], ".2f"),
}


def cost_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians per cell: tokens attended and estimated, seconds, bytes, hit ratio."""
    good = frame[frame["status"] == OK]
    values = {name: values(good) for name, (values, _) in _COLUMNS.items()}
    medians = pd.DataFrame(values, dtype=float).groupby(good["key"], sort=False).median()
    rows = []
    for key, labels in each_label(good):
        own = medians.loc[key]
        texts = {name: number(own[name], form) for name, (_, form) in _COLUMNS.items()}
        rows.append({**labels, **texts})
    return pd.DataFrame(rows)
