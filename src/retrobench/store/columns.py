"""Rows as columns: a cache beside the rows, so that a table over 100,000 rows opens at once.

Nested values become dotted columns (``live.hit_ratio``, ``footprint.device``, and from the cell's
options ``method.num_clusters``). ``columns.feather`` holds all cells of a store with the size and
times of the files it was made from; cells that changed since are read again. It may be deleted.
A cell whose files are damaged is left out, as far as it is damaged, and named (``read_problems``).
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import feather

from retrobench.core.paths import regular, replacing
from retrobench.store import cell_files
from retrobench.store.flatten import flat, read_flat
from retrobench.store.row_file import NOT_ASKED, all_intact, read_rows

_FILE = "columns.feather"
_FORMAT = b"6"  # raise it when columns change their meaning
_DIGEST_BYTES = 32  # at the end of the file


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


def read_problems(root: Path, keys: Sequence[str] | None) -> list[str]:
    """What is wrong with the files of all cells, or of those in ``keys``: a line each."""
    known = json.loads(_fresh(root).schema.metadata[_FORMAT])["problems"]
    return [line for key in (known if keys is None else keys) for line in known.get(key, ())]


def _is_in(keys: Sequence[str]) -> pc.Expression:
    return pc.field("key").isin(pa.array(list(keys), pa.string()))


def _number_if_null(column: pa.Field) -> pa.Field:
    return column.with_type(pa.float64()) if pa.types.is_null(column.type) else column


def _fresh(root: Path) -> pa.Table:
    """The cached table, after reading again what changed since it was written."""
    now = {path.parent.name: stamp(path.parent) for path in sorted(root.glob("*/cell.json"))}
    parts, problems, same = [pa.table({"key": pa.array([], pa.string())})], {}, set()
    try:
        cached = _load(root / _FILE)
        then = json.loads((cached.schema.metadata or {})[_FORMAT])
        if then["stamps"] == now:
            return cached
        same = {key for key in now if then["stamps"].get(key) == now[key]}
        parts += [cached.filter(_is_in(sorted(same)))] if same else []
        problems = {key: lines for key, lines in then["problems"].items() if key in same}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        parts, problems, same = parts[:1], {}, set()  # none yet, or damaged
    for key in now:
        if key not in same:
            table, found = _cell_table(root / key)
            parts.append(table)
            problems |= {key: found} if found else {}
    about = json.dumps({"stamps": now, "problems": problems})
    table = _stack(parts).replace_schema_metadata({_FORMAT: about})
    if now:
        _save(table, root / _FILE)
    return table


def stamp(folder: Path) -> list[int]:
    """Size and times of a cell's files. The time of the last change cannot be set back."""
    stamp = []
    for name in ("cell.json", cell_files.ROWS, "status.json"):
        path = folder / name
        if path.exists():
            about = path.stat()
            stamp += [about.st_size, about.st_mtime_ns, about.st_ctime_ns]
    return stamp


def _load(path: Path) -> pa.Table:
    """The cached table; ValueError if the file is not what was written."""
    whole = regular(path).read_bytes()
    content, mark = whole[:-_DIGEST_BYTES], whole[-_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != mark:
        raise ValueError("it is not what its digest says")
    return feather.read_table(pa.BufferReader(content))


def _save(table: pa.Table, path: Path) -> None:
    """Replace the cache; a store that cannot be written to is read all the same."""
    sink = pa.BufferOutputStream()
    feather.write_feather(table, sink, compression="lz4")
    content = sink.getvalue().to_pybytes()
    with contextlib.suppress(OSError), replacing(path) as temporary:
        temporary.write_bytes(content + hashlib.sha256(content).digest())


def _cell_table(folder: Path) -> tuple[pa.Table, list[str]]:
    """Flat rows of one cell beside what its ``cell.json`` says, and what is wrong with its files.

    No columns without rows, or if ``cell.json`` cannot be trusted.
    """
    path, damaged = folder / cell_files.ROWS, []
    try:
        about = cell_files.read_about(folder)
    except ValueError as error:
        return pa.table({}), [str(error)]
    table = read_flat(path) if all_intact(path) else None
    if table is None:
        found = read_rows(path)
        damaged, rows = found.damaged, [dict(flat(row)) for row in found.rows.values()]
        names = dict.fromkeys(name for row in rows for name in row)
        table = pa.table({name: _array([row.get(name) for row in rows]) for name in names})
    problems = _problems(folder, damaged)
    if table.num_rows:
        table = table.filter(pc.field("status") != NOT_ASKED)
    if not table.num_rows:
        return pa.table({}), problems
    fixed = cell_columns(folder.name, about)
    same = {name: _array([value] * table.num_rows) for name, value in fixed.items()}
    columns = zip(table.column_names, table.columns, strict=True)
    return pa.table({**same, **dict(columns)}), problems


def _problems(folder: Path, damaged: Sequence[str]) -> list[str]:
    """Of status and rows. Lines that were damaged when the cell last ended have been made good."""
    status, path, problems = cell_files.read_status(folder), folder / cell_files.ROWS, []
    if status["state"] == "unreadable":
        problems.append(status["message"])
    known = status.get("content")
    changed = known is not None and not cell_files.still_has(folder, known)
    if changed:
        problems.append(f"{path}: changed since the cell ended; its command runs what is missing")
    if len(damaged) > (0 if changed or known is None else status.get("recovered_lines", 0)):
        what = f"{len(damaged)} damaged line(s) left out ({damaged[0]})"
        problems.append(f"{path}: {what}; its command runs these samples again")
    return problems


def cell_columns(key: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """What every row of a cell has in its columns; ``about`` as ``cell.json`` holds it."""
    fixed = {"key": key, **about.get("labels", {})}
    fixed |= {f"method.{k}": v for k, v in flat(about["cell"].get("method", {})) if k != "name"}
    for part, names in {"model": ("dtype",), "task": ("dtype", "layers", "cold")}.items():
        fixed |= {f"{part}.{name}": about["cell"].get(part, {}).get(name) for name in names}
    fixed |= {"engine.batch": about["cell"].get("engine", {}).get("batch", 1)}
    fixed |= {"weight_bytes": about.get("weight_bytes")}
    fixed |= {f"machine.{k}": about.get("provenance", {}).get(k) for k in ("cpu", "gpu")}
    return {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in fixed.items()}


def _array(values: list[Any]) -> pa.Array:
    """One column: numbers of two kinds, or beyond 64 bits, become float; beside words, text.

    Half a character, which JSON can hold and Arrow cannot, becomes a question mark.
    """
    for kind in (None, pa.float64()):
        try:
            return pa.array(values, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
            continue
    texts = [None if value is None else str(value) for value in values]
    return pa.array([text and text.encode("utf-8", "replace") for text in texts]).cast(pa.string())


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
