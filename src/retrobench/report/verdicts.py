"""Each cell against full attention on the same samples, with alarms.

An approximation that beats full attention significantly is rather a fault than a gift.
"""

from __future__ import annotations

import pandas as pd

from retrobench.stats.paired import compare, holm
from retrobench.store.results import OK

ALPHA = 0.05


def verdicts(frame: pd.DataFrame) -> list[str]:
    """One line per cell that shares answered samples with a `full` cell of its setting."""
    scored = frame[(frame["status"] == OK) & frame["score"].notna()]
    setting = ["model", "benchmark", "protocol"]
    found = []
    for names, group in scored.groupby(setting, sort=False):
        base = group[group["method"] == "full"].drop_duplicates("sample").set_index("sample")
        for key, cell in group[group["method"] != "full"].groupby("key", sort=False):
            ours = cell.set_index("sample")
            both = ours.index.intersection(base.index)
            same = ours.loc[both, "prompt_hash"] == base.loc[both, "prompt_hash"]
            both = both[same.to_numpy()]
            if len(both):
                label = f"{' '.join(names)}: {cell['method'].iloc[0]} {key[:6]}"
                found.append((label, compare(ours.loc[both, "score"], base.loc[both, "score"])))
    lines = []
    adjusted = holm([verdict.p_value for _, verdict in found])
    for (label, verdict), p in zip(found, adjusted, strict=True):
        line = (
            f"{label}: {100 * verdict.difference:+.1f} points "
            f"[{100 * verdict.low:+.1f}, {100 * verdict.high:+.1f}], "
            f"{verdict.wins} wins {verdict.losses} losses {verdict.ties} ties, p={p:.3g}"
        )
        if p < ALPHA and verdict.difference > 0:
            line += "  ALARM: an approximation beats full attention"
        lines.append(line)
    return lines
