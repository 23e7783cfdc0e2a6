"""The table of ``task=machine``: ceilings and kernels, one line per case and size."""

import pandas as pd

from retrobench.report.tables.layout import number
from retrobench.store.row_file import OK

COLUMNS = (
    "meta.case meta.pool_gib machine.time_s machine.gb_s machine.tflop_s machine.parity_error "
    "machine.mode"
).split()


def machine_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Median time, rate, and the kernel's difference from its naive form; a failure's status."""
    rows = []
    for row in frame.to_dict("records"):
        line = {"case": row["meta.case"], "context": number(row["length"] or None, "d")}
        line |= {
            "batch": number(row["meta.batch"], ".0f"),
            "GiB": number(row["meta.pool_gib"], "g"),
        }
        if row["status"] == OK:
            line |= {
                "us": number(1e6 * row["machine.time_s"], ".1f"),
                "GB/s": number(row["machine.gb_s"], ".1f"),
                "TFLOP/s": number(row["machine.tflop_s"], ".2f"),
                "parity error": number(row["machine.parity_error"], ".1e"),
                "run by": row["machine.mode"],
            }
        rows.append({**line, "status": row["status"]})
    return pd.DataFrame(rows)
