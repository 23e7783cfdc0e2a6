"""All tables of a selection of rows, printed with what every reader must know about them."""

import pandas as pd
from rich.console import Console

from retrobench.report.benchmarks import averages, is_replayed, is_timed
from retrobench.report.checks.published import compare_published
from retrobench.report.checks.significance import significance
from retrobench.report.rows import HELD_BYTES
from retrobench.report.tables import fidelity, machine, replay, search, speed
from retrobench.report.tables.cost import NOTE as COST_NOTE
from retrobench.report.tables.cost import UPDATE_SPAN, cost_matrix
from retrobench.report.tables.labels import LABELS
from retrobench.report.tables.layout import print_line, print_table
from retrobench.report.tables.scores import caption, score_matrix

# what the tables read of a row (see store.columns)
COLUMNS = (
    "key model method changed benchmark protocol budget engine.batch sample task length status "
    "prompt_tokens prefill_computed_frac prefill_tokens_per_s prefill_attention "
    "score prompt_hash prefill_s seal_s decode_s decode_steps meta.stand_in meta.* "
    "live.attended_tokens live.estimated_tokens live.hit_ratio live.bytes_per_step.*"
).split()
COLUMNS += [
    *HELD_BYTES,
    UPDATE_SPAN,
    *fidelity.COLUMNS,
    *search.COLUMNS,
    *speed.COLUMNS,
    *machine.COLUMNS,
    *replay.COLUMNS,
]


def print_tables(frame: pd.DataFrame, console: Console) -> None:
    """Speed, scores, costs, fidelity, averages, published scores, significance."""
    if frame.empty:
        console.print("no rows yet")
        return
    of_machine = frame["benchmark"] == "machine"
    if of_machine.any():
        matrix = machine.machine_matrix(frame[of_machine])
        _print("what this machine reaches (medians)", matrix, console)
        frame = frame[~of_machine]
    replayed = is_replayed(frame)
    if replayed.any():
        _print("serving, replayed: median (p99)", replay.replay_matrix(frame[replayed]), console)
        print_line(console, replay.NOTE, "dim")
        frame = frame[~replayed]
    timed = is_timed(frame)
    if timed.any():
        _print("decode speed (medians over steps)", speed.speed_matrix(frame[timed]), console)
    if timed.all():
        return
    frame = frame[~timed]
    _print_matrices(frame, console)
    for title, matrix in averages(frame):
        _print(title, matrix, console)
    published = compare_published(frame)
    if not published.empty:
        _print("published scores beside ours", published, console)
    for line in significance(frame):
        print_line(console, line, "bold red" if "ALARM" in line else None)
    notes = [caption(frame), COST_NOTE]
    notes += [fidelity.NOTE] if frame["fidelity.steps"].notna().any() else []
    notes += [search.NOTE] if frame["search.keys"].notna().any() else []
    print_line(console, "\n".join(notes), "dim")


def _print_matrices(frame: pd.DataFrame, console: Console) -> None:
    """Tables with a row per cell."""
    for title, matrix in (
        ("scores (x100)", score_matrix(frame)),
        ("cost (medians)", cost_matrix(frame)),
        ("attention and logits against full", fidelity.fidelity_matrix(frame, fidelity.ATTENTION)),
        ("relative output error", fidelity.fidelity_matrix(frame, fidelity.OUTPUT)),
        ("search of keys", search.search_matrix(frame)),
    ):
        if not matrix.empty:
            _print(title, matrix, console)


def _trimmed(matrix: pd.DataFrame) -> pd.DataFrame:
    """Without columns that say nothing."""
    optional = "changed attended context backend hit hidden".split() + ["hit ratio", "prefill s"]
    optional += ["prefill frac", "prefill tok/s", "prefill by", "update %"]
    silent = [c for c in optional if c in matrix and not matrix[c].any()]
    return matrix.drop(columns=silent)


def _print(title: str, matrix: pd.DataFrame, console: Console) -> None:
    """Print a matrix; a model or a length that all of it shares goes to the title."""
    matrix = _trimmed(matrix)
    if "model" in matrix and matrix["model"].nunique() == 1:
        title, matrix = f"{matrix['model'].iloc[0]}: {title}", matrix.drop(columns="model")
    if "context" in matrix and matrix["context"].nunique() == 1:
        title, matrix = f"{title} at {matrix['context'].iloc[0]}", matrix.drop(columns="context")
    columns = [str(column) for column in matrix.columns]
    lengths = {column.split("@")[1] for column in columns if "@" in column}
    if len(lengths) == 1:
        title, columns = f"{title} at {lengths.pop()}", [c.split("@")[0] for c in columns]
    rows = matrix.fillna("").itertuples(index=False)
    print_table(console, title, columns, rows, left=[*LABELS, "batch"])
