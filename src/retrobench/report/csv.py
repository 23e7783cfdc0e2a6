"""Rows for a spreadsheet, which takes some texts of a CSV file for formulas."""

from typing import Any

import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """Texts that begin like a formula get an apostrophe in front; numbers stay as they are."""
    return frame.rename(columns=_plain).map(_plain)


def _plain(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
