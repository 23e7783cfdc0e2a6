"""A cell's row file as a flat Arrow table, read natively where its rows allow it.

Dicts become dotted columns, some lists JSON text (``_is_text``); other lists and per-layer counts
(digit keys) are left to the rows.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as arrow_json

from retrobench.store.row_file import COUNTED, NUMBERS, OBJECTS

_LISTS = ("references", "layers", "sparse_layers")
_BY_LAYER = (".layer_mean.", ".layer_tail.")
# said in advance, because a column of dates would otherwise be read as times
_TEXT = (
    "sample task status message prediction prompt_hash prompt_tail stop_reason code commit time"
).split()
_SCHEMA = pa.schema([(name, pa.string()) for name in _TEXT]).append(
    pa.field("references", pa.list_(pa.string()))
)
_BLOCK_BYTES = 16 * 2**20  # a longer line goes the slow way


def read_flat(path: Path) -> pa.Table | None:
    """All lines of a row file, many times faster than line by line.

    None where only the slow way keeps every rule: no file, torn or odd lines, a sample written
    more than once, values of mixed types.
    """
    try:
        table = arrow_json.read_json(
            path,
            arrow_json.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            arrow_json.ParseOptions(explicit_schema=_SCHEMA),
        )
        table.validate(full=True)
    except (pa.ArrowInvalid, FileNotFoundError):
        return None
    complete = not table["sample"].null_count and not table["status"].null_count
    if not complete or len(table["sample"].unique()) < table.num_rows:
        return None
    lists = {field.name for field in table.schema if pa.types.is_list(field.type)}
    if lists & {*NUMBERS, *OBJECTS}:
        return None
    columns = dict(_columns(table))
    columns.pop("digest", None)
    odd = any(_is_odd(name, column) for name, column in columns.items())
    return None if odd else pa.table(columns)


def _is_odd(name: str, column: pa.ChunkedArray) -> bool:
    """Whether a column is not what rows hold there."""
    kind = column.type
    if name in NUMBERS or name.partition(".")[0] in COUNTED:
        if pa.types.is_floating(kind):  # a number beyond all floats is read as infinite
            return not pc.all(pc.is_finite(column.drop_null()), min_count=0).as_py()
        return not (pa.types.is_integer(kind) or pa.types.is_null(kind))
    return pa.types.is_temporal(kind) or (name in OBJECTS and not pa.types.is_null(kind))


def _columns(table: pa.Table) -> Iterator[tuple[str, Any]]:
    while any(pa.types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    for name, column in zip(table.column_names, table.columns, strict=True):
        prefix, _, last = name.rpartition(".")
        if pa.types.is_list(column.type):
            if _is_text(last, f"{prefix}."):
                texts = [None if v is None else json.dumps(v) for v in column.to_pylist()]
                yield name, pa.array(texts, pa.string())
        elif not last.isdigit():
            yield name, column


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """One row's columns: the rules of this file, value by value."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            if _is_text(name, prefix):
                yield prefix + name, json.dumps(value)
        elif not name.isdigit():
            yield prefix + name, value


def _is_text(name: str, prefix: str) -> bool:
    return name in _LISTS or prefix.endswith(_BY_LAYER)
