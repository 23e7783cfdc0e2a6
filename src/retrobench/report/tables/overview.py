"""All tables of a selection of rows, printed with what every reader must know about them."""

import pandas as pd
from rich.console import Console
from rich.table import Table

from retrobench.report.benchmarks import averages, is_timed
from retrobench.report.checks.published import compare_published
from retrobench.report.checks.significance import significance
from retrobench.report.rows import HELD_BYTES
from retrobench.report.tables import fidelity, machine, speed
from retrobench.report.tables.cost import NOTE as COST_NOTE
from retrobench.report.tables.cost import cost_matrix
from retrobench.report.tables.labels import LABELS
from retrobench.report.tables.layout import print_line, rich_table
from retrobench.report.tables.scores import caption, score_matrix

# what the tables read of a row (see store.columns)
COLUMNS = (
    "key model method changed benchmark protocol budget engine.batch sample task length status "
    "prompt_tokens "
    "score prompt_hash prefill_s seal_s decode_s decode_steps meta.stand_in meta.* "
    "live.attended_tokens live.estimated_tokens live.hit_ratio live.bytes_per_step.*"
).split()
COLUMNS += [*HELD_BYTES, *fidelity.COLUMNS, *speed.COLUMNS, *machine.COLUMNS]
_MAX_COLUMNS = 12  # cells side by side in a turned table


def print_tables(frame: pd.DataFrame, console: Console) -> None:
    """Speed, scores, costs, fidelity, averages, published scores, significance."""
    if frame.empty:
        console.print("no rows yet")
        return
    of_machine = frame["benchmark"] == "machine"
    if of_machine.any():
        matrix = machine.machine_matrix(frame[of_machine])
        console.print(_rich("what this machine reaches (medians)", matrix))
        frame = frame[~of_machine]
    timed = is_timed(frame)
    if timed.any():
        title = "decode speed (medians over steps)"
        console.print(_rich(title, _trimmed(speed.speed_matrix(frame[timed]))))
    if timed.all():
        return
    frame = frame[~timed]
    _print_matrices(frame, console)
    for title, matrix in averages(frame):
        console.print(_rich(title, matrix))
    published = compare_published(frame)
    if not published.empty:
        console.print(_rich("published scores beside ours", published))
    for line in significance(frame):
        print_line(console, line, "bold red" if "ALARM" in line else None)
    notes = [caption(frame), COST_NOTE]
    notes += [fidelity.NOTE] if frame["fidelity.steps"].notna().any() else []
    print_line(console, "\n".join(notes), "dim")


def _print_matrices(frame: pd.DataFrame, console: Console) -> None:
    """Tables with a row per cell; the model is in the title where there is but one."""
    models = sorted(set(frame["model"]))
    for title, matrix in (
        ("scores (x100)", score_matrix(frame)),
        ("cost (medians)", cost_matrix(frame)),
        ("attention and logits against full", fidelity.fidelity_matrix(frame, fidelity.ATTENTION)),
        ("relative output error", fidelity.fidelity_matrix(frame, fidelity.OUTPUT)),
    ):
        if matrix.empty:
            continue
        if len(models) == 1:
            title, matrix = f"{models[0]}: {title}", matrix.drop(columns="model")
        _print_fitting(title, _trimmed(matrix), console)


def _print_fitting(title: str, matrix: pd.DataFrame, console: Console) -> None:
    """Print a table; one that is too wide is turned (a column per cell), where that fits."""
    table = _rich(title, matrix)
    if len(matrix) <= _MAX_COLUMNS and _width(table, console) > console.width:
        turned = _rich(title, _turned(matrix))
        if _width(turned, console) < _width(table, console):
            table = turned
    console.print(table)


def _width(table: Table, console: Console) -> int:
    """Columns that a table takes without folding any text."""
    free = console.options.update(width=10_000)
    return console.measure(table, options=free).maximum


def _turned(matrix: pd.DataFrame) -> pd.DataFrame:
    names = [name for name in ("method", "key", "context") if name in matrix]
    heads = matrix[names].agg("\n".join, axis=1)
    turned = matrix.drop(columns=names).T
    turned.columns = list(heads)
    turned.insert(0, "", [str(name) for name in turned.index])
    return turned


def _trimmed(matrix: pd.DataFrame) -> pd.DataFrame:
    """Without columns that say nothing."""
    optional = "changed attended context backend hit hidden".split() + ["hit ratio", "prefill s"]
    silent = [c for c in optional if c in matrix and not matrix[c].any()]
    return matrix.drop(columns=silent)


def _rich(title: str, matrix: pd.DataFrame) -> Table:
    """A matrix as a table; a length that all its columns share goes to the title."""
    if "context" in matrix and matrix["context"].nunique() == 1:
        title, matrix = f"{title} at {matrix['context'].iloc[0]}", matrix.drop(columns="context")
    columns = [str(column) for column in matrix.columns]
    lengths = {column.split("@")[1] for column in columns if "@" in column}
    if len(lengths) == 1:
        title, columns = f"{title} at {lengths.pop()}", [c.split("@")[0] for c in columns]
    rows = matrix.fillna("").itertuples(index=False)
    return rich_table(title, columns, rows, left=[*LABELS, "batch", ""])
