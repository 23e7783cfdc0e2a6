"""The table of `measure=search`: how many keys a structure looks at, and what it finds."""

import pandas as pd

from retrobench.report.tables.labels import each_label
from retrobench.report.tables.layout import number
from retrobench.store.row_file import OK

ASKED = ("queries", "keys")
COLUMNS = ["search.keys", "search.build_s"]
COLUMNS += [f"search.of.{kind}.recall_5" for kind in ASKED]
COLUMNS += [f"search.of.{kind}.scanned_95" for kind in ASKED]
NOTE = (
    "search: keys scanned (%) for 0.95 of the 100 best keys, and recall at 5 % of the keys, of "
    "decode queries and of held-out keys; none: not reached, or the least beam scans more keys"
)


def search_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """A line per cell, means over samples ("none" if one has none); empty without a search."""
    if "search.keys" not in frame or frame["search.keys"].isna().all():
        return pd.DataFrame()
    measured = frame[(frame["status"] == OK) & frame["search.keys"].notna()]
    rows = []
    for (key,), labels in each_label(measured):
        own = measured[measured["key"] == key].mean(numeric_only=True, skipna=False)
        labels.pop("attended")
        line = {**labels, "keys": number(own["search.keys"], ".0f")}
        line["build s"] = number(own["search.build_s"], ".1f")
        for kind in ASKED:
            scanned = own.get(f"search.of.{kind}.scanned_95")
            recall = own.get(f"search.of.{kind}.recall_5")
            line[f"{kind}: % scanned"] = _text(scanned, 100, ".1f")
            line[f"{kind}: recall at 5%"] = _text(recall, 1, ".3f")
        rows.append(line)
    return pd.DataFrame(rows)


def _text(value: float | None, scale: float, form: str) -> str:
    return "none" if value is None or pd.isna(value) else number(scale * value, form)
