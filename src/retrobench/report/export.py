"""Rows as files for other programs."""

from pathlib import Path
from typing import Any

import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """Texts that a spreadsheet takes for formulas get an apostrophe in front; numbers stay."""
    return frame.rename(columns=_plain).map(_plain)


def _plain(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Small files: with some 160 columns, copies of the schema would outweigh the rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    settings = {"compression": "zstd", "compression_level": 19, "use_dictionary": False}
    pq.write_table(table, path, store_schema=False, write_statistics=False, **settings)
