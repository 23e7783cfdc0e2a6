"""Rows as columns: a cache beside the rows, so that a table over 100,000 rows opens at once.

Nested values become dotted columns (``live.hit_ratio``, ``footprint.device``, and from the cell's
options ``method.num_clusters``). ``columns.feather`` holds all cells of a store with the size and
time of the files it was made from; cells that changed since are read again. It may be deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import feather

from retrobench.store.flatten import flat, read_flat
from retrobench.store.row_file import read_rows

_FILE = "columns.feather"
_FORMAT = b"2"  # raise it when columns change their meaning


def read_columns(
    root: Path, names: Sequence[str] | None, keys: Sequence[str] | None
) -> pd.DataFrame:
    """Newest rows of the results folder ``root``, of all cells or of those in ``keys``.

    ``names``: columns and patterns (``meta.*``); a column that no row has is empty. None: all.
    """
    table = _fresh(root)
    if names is not None:
        found = [n for n in table.column_names if any(fnmatchcase(n, name) for name in names)]
        table = table.select(list(dict.fromkeys(["key", *found])))
    if keys is not None:
        table = table.filter(_is_in(keys))
    frame = table.cast(pa.schema(map(_number_if_null, table.schema))).to_pandas()
    if names is None:
        return frame
    plain = [name for name in names if "*" not in name]
    return frame.reindex(columns=list(dict.fromkeys([*plain, *found])))


def _is_in(keys: Sequence[str]) -> pc.Expression:
    return pc.field("key").isin(pa.array(list(keys), pa.string()))


def _number_if_null(column: pa.Field) -> pa.Field:
    return column.with_type(pa.float64()) if pa.types.is_null(column.type) else column


def _fresh(root: Path) -> pa.Table:
    """The cached table, after reading again what changed since it was written."""
    now = {path.parent.name: _stamp(path.parent) for path in sorted(root.glob("*/cell.json"))}
    parts, then = [pa.table({"key": pa.array([], pa.string())})], {}
    try:
        cached = feather.read_table(root / _FILE)
        then = json.loads((cached.schema.metadata or {}).get(_FORMAT, b"{}"))
        if then == now:
            return cached
        same = [key for key in now if then.get(key) == now[key]]
        parts += [cached.filter(_is_in(same))] if same else []
    except (OSError, ValueError, pa.ArrowException):  # none yet, or damaged
        same = []
    parts += [_cell_table(root / key) for key in now if key not in set(same)]
    table = _stack(parts).replace_schema_metadata({_FORMAT: json.dumps(now)})
    if now:
        _save(table, root / _FILE)
    return table


def _stamp(folder: Path) -> list[int]:
    """Size and time of the files that a cell's columns come from."""
    stamp = []
    for path in (folder / "cell.json", folder / "rows.jsonl"):
        if path.exists():
            about = path.stat()
            stamp += [about.st_size, about.st_mtime_ns]
    return stamp


def _save(table: pa.Table, path: Path) -> None:
    """Replace the cache; a store that cannot be written to is read all the same."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        feather.write_feather(table, str(temporary), compression="lz4")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


def _cell_table(folder: Path) -> pa.Table:
    """Flat rows of one cell beside what its ``cell.json`` says; no columns without rows."""
    table = read_flat(folder / "rows.jsonl")
    if table is None:
        rows = [dict(flat(row)) for row in read_rows(folder / "rows.jsonl").rows.values()]
        names = dict.fromkeys(name for row in rows for name in row)
        table = pa.table({name: _array([row.get(name) for row in rows]) for name in names})
    if not table.num_rows:
        return pa.table({})
    fixed = cell_columns(folder.name, json.loads((folder / "cell.json").read_text()))
    same = {name: _array([value] * table.num_rows) for name, value in fixed.items()}
    return pa.table({**same, **dict(zip(table.column_names, table.columns, strict=True))})


def cell_columns(key: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """What every row of a cell has in its columns; ``about`` as ``cell.json`` holds it."""
    fixed = {"key": key, **about.get("labels", {})}
    fixed |= {f"method.{k}": v for k, v in flat(about["cell"].get("method", {})) if k != "name"}
    fixed |= {"engine.batch": about["cell"].get("engine", {}).get("batch", 1)}
    fixed |= {"weight_bytes": about.get("weight_bytes")}
    fixed |= {f"machine.{k}": about.get("provenance", {}).get(k) for k in ("cpu", "gpu")}
    return {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in fixed.items()}


def _array(values: list[Any]) -> pa.Array:
    """Values of one column: numbers of two kinds become float, numbers beside words text."""
    for kind in (None, pa.float64()):
        try:
            return pa.array(values, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            continue
    return pa.array([None if value is None else str(value) for value in values])


def _stack(parts: list[pa.Table]) -> pa.Table:
    """Stack tables; a column that is text in one and a number in another becomes text."""
    kinds: dict[str, set[str]] = {}
    for column in (column for part in parts for column in part.schema):
        if not pa.types.is_null(column.type):
            kinds.setdefault(column.name, set()).add(str(column.type))
    texts = {n for n, found in kinds.items() if len(found) > 1 and found - {"int64", "double"}}

    def cast(part: pa.Table) -> pa.Table:
        fields = [f.with_type(pa.string()) if f.name in texts else f for f in part.schema]
        return part.cast(pa.schema(fields))

    return pa.concat_tables(map(cast, parts), promote_options="permissive").combine_chunks()
