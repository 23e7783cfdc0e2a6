"""Rows as columns: a cache beside the rows, so that a table over 100,000 rows opens at once.

Nested values become dotted columns (``live.hit_ratio``, ``footprint.device``, and from the cell's
options ``method.num_clusters``). ``columns.feather`` holds all cells of a store with the size and
time of the files it was made from; cells that changed since are read again. It may be deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from retrobench.store.results import ResultStore

_FILE = "columns.feather"
_FORMAT = "2"  # raise it when columns change their meaning
# kept as JSON text: these lists, and those by layer; others are left to the rows
_TEXT_LISTS = ("references", "layers", "sparse_layers")
_BY_LAYER = (".layer_mean.", ".layer_tail.")


def read_columns(
    store: ResultStore, names: Sequence[str] | None, keys: Sequence[str] | None
) -> pd.DataFrame:
    """Newest rows as a DataFrame of the named columns (absent ones are empty); None: all."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    table = _fresh(store)
    if table is None:
        return pd.DataFrame(columns=list(names or ["key"]))
    if keys is not None:
        table = table.filter(pc.is_in(table["key"], value_set=_strings(keys)))  # type: ignore
    if names is not None:
        table = table.select([name for name in names if name in table.column_names])
    for i, column in enumerate(table.schema):
        if pa.types.is_null(column.type):
            table = table.set_column(i, column.name, table[i].cast(pa.float64()))
    frame = table.to_pandas()
    return frame if names is None else frame.reindex(columns=list(names))


def _strings(values: Sequence[str]) -> pa.Array:
    import pyarrow as pa

    return pa.array(list(values), pa.string())


def _fresh(store: ResultStore) -> pa.Table | None:
    """The cached table, after reading again what changed since it was written."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import feather

    now = {key: _stamp(store.root / key) for key in store.cell_keys()}
    path = store.root / _FILE
    table, then = None, {}
    if path.exists():
        try:
            table = feather.read_table(path, memory_map=True)
            then = json.loads((table.schema.metadata or {}).get(_FORMAT.encode(), b"{}"))
        except (OSError, ValueError, pa.ArrowException):
            table, then = None, {}
    changed = [key for key, stamp in now.items() if then.get(key) != stamp]
    gone = [key for key in then if key not in now]
    if table is not None and not changed and not gone:
        return table
    parts = [_cell_table(store, key) for key in changed]
    if table is not None:
        keep = [key for key in then if key in now and key not in set(changed)]
        parts.insert(0, table.filter(pc.is_in(table["key"], value_set=_strings(keep))))  # type: ignore
    parts = [part for part in parts if part is not None and part.num_rows]
    if not parts:
        return None
    table = _concat(parts).replace_schema_metadata({_FORMAT: json.dumps(now)})
    _save(table, path)
    return table


def _stamp(folder: Path) -> list[int]:
    stamp = []
    for name in ("cell.json", "rows.jsonl"):
        try:
            facts = (folder / name).stat()
            stamp += [facts.st_size, facts.st_mtime_ns]
        except FileNotFoundError:
            stamp += [0, 0]
    return stamp


def _save(table: pa.Table, path: Path) -> None:
    """Replace the cache; a store that cannot be written to is read all the same."""
    from pyarrow import feather

    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        feather.write_feather(table, str(temporary), compression="lz4")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


def _cell_table(store: ResultStore, key: str) -> pa.Table | None:
    import pyarrow as pa

    fixed = cell_columns(key, store.cell(key))
    rows = [dict(_flat(row)) for row in store.read(key).rows.values()]
    if not rows:
        return None
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns: dict[str, pa.Array] = {}
    for name, value in fixed.items():
        if name not in names:
            columns[name] = _array([_scalar(value)] * len(rows))
    for name in names:
        columns[name] = _array([row.get(name) for row in rows])
    return pa.table(columns)


def cell_columns(key: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """What every row of a cell has in its columns; ``about`` as ``cell.json`` holds it."""
    fixed = {"key": key, **about.get("labels", {})}
    fixed |= {f"method.{k}": v for k, v in _flat(about["cell"].get("method", {})) if k != "name"}
    fixed |= {"engine.batch": about["cell"].get("engine", {}).get("batch", 1)}
    fixed |= {"weight_bytes": about.get("weight_bytes")}
    return fixed | {f"machine.{k}": about.get("provenance", {}).get(k) for k in ("cpu", "gpu")}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Scalars under dotted names; per-layer counts (digit keys) and lists are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            if name in _TEXT_LISTS or prefix.endswith(_BY_LAYER):
                yield prefix + name, json.dumps(value)
        elif not name.isdigit():
            yield prefix + name, value


def _scalar(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _array(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # whole and broken numbers, or numbers and words
        try:
            return pa.array(values, pa.float64())
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return pa.array([None if value is None else str(value) for value in values])


def _concat(parts: list[pa.Table]) -> pa.Table:
    """Stack tables; a column that is text in one and a number in another becomes text."""
    import pyarrow as pa

    texts: set[str] = set()
    kinds: dict[str, set[str]] = {}
    for part in parts:
        for column in part.schema:
            if not pa.types.is_null(column.type):
                kind = "text" if pa.types.is_string(column.type) else str(column.type)
                kinds.setdefault(column.name, set()).add(kind)
    for name, found in kinds.items():
        if len(found) > 1 and found - {"int64", "double"}:
            texts.add(name)
    for i, part in enumerate(parts):
        for name in texts.intersection(part.column_names):
            at = part.column_names.index(name)
            part = part.set_column(at, name, part[name].cast(pa.string()))
        parts[i] = part
    return pa.concat_tables(parts, promote_options="permissive").combine_chunks()
