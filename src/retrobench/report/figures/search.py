"""Figures of `measure=search`: recall of the true best keys by the share of keys looked at."""

from typing import Any

import pandas as pd

from retrobench.report.figures import style
from retrobench.report.rows import require
from retrobench.store.row_file import OK

COMMAND = "python run.py -m experiment=ann_recall"
ASKED = {"queries": "decode queries", "keys": "held-out keys"}


def ann_recall(frame: pd.DataFrame) -> Any:
    """Recall by keys scanned for queries and for keys, and how far both lie from the keys.

    Of each cell's first sample.
    """
    require("search" in frame, "no rows of measure=search", COMMAND)
    rows = frame[(frame["status"] == OK) & frame["search"].map(bool)]
    require(len(rows), "no rows of measure=search", COMMAND)
    rows = rows[rows["length"] == rows["length"].max()].drop_duplicates("key")
    drawing, panels = style.figure(2.9, 3)
    for panel, (kind, title) in zip(panels, ASKED.items(), strict=False):
        for i, name, curves, is_library in _structures(rows):
            look = style.option_look(i)
            look |= {"linestyle": ":", "fillstyle": "none"} if is_library else {}
            percent = [100 * share for share in curves[kind]["scanned"]]
            panel.plot(percent, curves[kind]["recall"], label=name, lw=1, **look)
        panel.axhline(0.95, color="black", lw=0.6, ls="--")
        panel.axvline(5, color="black", lw=0.6, ls="--")
        panel.set(title=title, xlabel="keys scanned (%)", xscale="log", ylim=(0, 1.02))
    panels[0].set_ylabel("recall of the 100 best keys")
    distance = rows["search"].iloc[0]["distance"]
    for i, (kind, title) in enumerate({"keys": "keys", "queries": "queries"}.items()):
        panels[2].plot(distance[kind], distance["percent"], label=title, **style.option_look(i))
    panels[2].set(title="distance from the keys", xlabel="Mahalanobis distance", xscale="log")
    panels[2].set_ylabel("% of the prompt's tokens")
    panels[2].legend(fontsize=style.SMALL)
    keys = int(rows["search"].iloc[0]["keys"])
    note = f"; {keys} keys indexed; mean over layers, heads and queries; dashed: 95 % and 5 %"
    return style.finish(drawing, rows, ["key"], note, columns=4)


def _structures(rows: pd.DataFrame) -> list[tuple[int, str, dict[str, Any], bool]]:
    """(Number, name, curves, whether it is a library's) of all that look at some keys.

    A library's structure has the number of ours.
    """
    found = []
    cells = rows.sort_values("changed", key=lambda names: names.fillna(""))
    for about, changed in zip(cells["search"], cells["changed"].fillna(""), strict=True):
        if len(about["of"]["queries"]["effort"]) < 2:  # index=flat
            continue
        words = changed.split() if "index=" in changed else ["index=roar", *changed.split()]
        kind, tuned = words[0].removeprefix("index="), " ".join(words[1:])
        number = len({i for i, *_ in found})
        found.append((number, f"{kind} {tuned}".strip(), about["of"], False))
        for control, curves in about["controls"].items():
            found.append((number, f"{control} {tuned}".strip(), curves, True))
    return found


FIGURES = {"ann_recall": ann_recall}
