"""All tables of a selection of rows, printed with what every reader must know about them."""

from collections.abc import Iterator

import pandas as pd
from rich.console import Console

from retrobench.report.benchmarks import averages, is_replayed, is_timed, is_unscored
from retrobench.report.checks.published import compare_published
from retrobench.report.checks.significance import significance
from retrobench.report.rows import HELD_BYTES
from retrobench.report.tables import fidelity, search, timed
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
    "live.attended_tokens live.context_tokens live.estimated_tokens live.hit_ratio "
    "live.bytes_per_step.*"
).split()
COLUMNS += [
    *HELD_BYTES,
    UPDATE_SPAN,
    *fidelity.COLUMNS,
    *search.COLUMNS,
    *timed.COLUMNS,
]


Titled = tuple[str, pd.DataFrame, str]  # title, table as text, the note below


def unscored_tables(frame: pd.DataFrame) -> Iterator[Titled]:
    """Tables of rows that are timed or simulated, and not answered."""
    of_machine, of_clock = frame["benchmark"] == "machine", is_timed(frame)
    replayed = is_replayed(frame)
    timed_rows = of_clock & ~of_machine
    for rows, title, matrix, note in (
        (of_machine, "what this machine reaches (medians)", timed.machine_matrix, ""),
        (replayed, "serving, replayed: median (p99)", timed.replay_matrix, timed.REPLAY_NOTE),
        (timed_rows, "decode speed (medians over steps)", timed.speed_matrix, timed.SPEED_NOTE),
    ):
        if rows.any():
            yield title, matrix(frame[rows]), note


def further_tables(frame: pd.DataFrame) -> Iterator[Titled]:
    """What answered rows tell beside scores and costs, where they tell it."""
    found = [
        ("attention and logits against full", fidelity.ATTENTION),
        ("relative output error", fidelity.OUTPUT),
    ]
    tables = [(name, fidelity.fidelity_matrix(frame, part), fidelity.NOTE) for name, part in found]
    tables += [("search of keys", search.search_matrix(frame), search.NOTE)]
    tables += [(title, table, "") for title, table in averages(frame)]
    tables += [("published scores beside ours", compare_published(frame), "")]
    yield from (table for table in tables if not table[1].empty)


def print_tables(frame: pd.DataFrame, console: Console) -> None:
    """Speed, scores, costs, fidelity, averages, published scores, significance."""
    if frame.empty:
        console.print("no rows yet")
        return
    for title, matrix, note in unscored_tables(frame):
        _print(title, matrix, console)
        if note:
            print_line(console, note, "dim")
    frame = frame[~is_unscored(frame)]
    if frame.empty:
        return
    _print("scores (x100)", score_matrix(frame), console)
    if not (costs := cost_matrix(frame)).empty:
        _print("cost (medians)", costs, console)
    notes = [caption(frame), COST_NOTE]
    for title, matrix, note in further_tables(frame):
        _print(title, matrix, console)
        notes.append(note)
    for line in significance(frame):
        print_line(console, line, "bold red" if "ALARM" in line else None)
    print_line(console, "\n".join(filter(None, dict.fromkeys(notes))), "dim")


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
