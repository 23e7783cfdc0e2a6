"""Rows as columns: a cache beside the rows, so that a table over 100,000 rows opens at once.

Nested values become dotted columns (``live.hit_ratio``, ``footprint.device``, and from the cell's
options ``method.num_clusters``). ``columns.feather`` holds all cells of a store with the size and
time of the files it was made from; cells that changed since are read again. It may be deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrobench.store.flatten import flat, read_flat

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from retrobench.store.results import ResultStore

_FILE = "columns.feather"
_FORMAT = "2"  # raise it when columns change their meaning


def read_columns(
    store: ResultStore, names: Sequence[str] | None, keys: Sequence[str] | None
) -> pd.DataFrame:
    """Newest rows as a DataFrame of the named columns (absent ones are empty); None: all."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    table = _fresh(store, names)
    if table is None:
        return pd.DataFrame(columns=list(names or ["key"]))
    if keys is not None and not set(keys).issuperset(store.cell_keys()):
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


def _fresh(store: ResultStore, names: Sequence[str] | None) -> pa.Table | None:
    """The cached table, after reading again what changed since it was written.

    Of an unchanged cache only the named columns (and ``key``) are read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import feather

    now = {key: _stamp(store.root / key) for key in store.cell_keys()}
    path = store.root / _FILE
    then: dict[str, list[int]] = {}
    table = None
    try:
        with pa.memory_map(str(path)) as file:
            schema = pa.ipc.open_file(file).schema
        then = json.loads((schema.metadata or {}).get(_FORMAT.encode(), b"{}"))
        wanted = None if names is None else [n for n in schema.names if n in {"key", *names}]
        table = feather.read_table(path, wanted if then == now else None, memory_map=True)
    except (OSError, ValueError, pa.ArrowException):
        then = {}
    if table is not None and then == now:
        return table
    changed = [key for key, stamp in now.items() if then.get(key) != stamp]
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
    table = read_flat(store.root / key / "rows.jsonl")
    if table is None:
        rows = [dict(flat(row)) for row in store.read(key).rows.values()]
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = pa.table({name: _array([row.get(name) for row in rows]) for name in names})
    if not table.num_rows:
        return None
    same = {
        name: _array([_scalar(value)] * table.num_rows)
        for name, value in fixed.items()
        if name not in table.column_names
    }
    return pa.table({**same, **{name: table[name] for name in table.column_names}})


def cell_columns(key: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """What every row of a cell has in its columns; ``about`` as ``cell.json`` holds it."""
    fixed = {"key": key, **about.get("labels", {})}
    fixed |= {f"method.{k}": v for k, v in flat(about["cell"].get("method", {})) if k != "name"}
    fixed |= {"engine.batch": about["cell"].get("engine", {}).get("batch", 1)}
    fixed |= {"weight_bytes": about.get("weight_bytes")}
    return fixed | {f"machine.{k}": about.get("provenance", {}).get(k) for k in ("cpu", "gpu")}


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
