"""One look for every figure, sized for columns of a page; colour-blind-safe (Okabe-Ito, Tol)."""

import io
import textwrap
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from retrobench.report.rows import ORDER, describe

ONE_COLUMN, TWO_COLUMNS = 3.5, 7.2  # inches
COLORS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = "os^DvPX*"
# of methods beyond the first seven
_MORE_COLORS = "#332288 #882255 #117733 #88CCEE #CC6677 #999933 #AA4499 #44AA99 #DDCC77".split()
_MORE_COLORS += "#661100 #777777 #6699CC".split()
_MORE_MARKERS = "<>phd8HsD^ov"
PUBLISHED = {"linestyle": "none", "fillstyle": "none", "markersize": 7}
_FEW_LABELS = 8
_PNG_DPI, _PNG_COLORS = 200, 128
SMALL = 6  # font size of notes inside a panel
_NOTE_CHARACTERS = 21  # of the line below a figure, for an inch
_SETTINGS = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names of models may hold dollar signs
}


def _look(method: str) -> tuple[str, str]:
    if method not in ORDER:
        return COLORS[-1], MARKERS[-1]
    index, few = ORDER.index(method), len(COLORS) - 1
    if index < few:
        return COLORS[index], MARKERS[index]
    return _MORE_COLORS[index - few], _MORE_MARKERS[index - few]


def color(method: str) -> str:
    """The method's colour, the same in every figure."""
    return _look(method)[0]


def look(method: str) -> dict[str, Any]:
    """Colour, marker (so that grey prints stay readable) and label of a method's line."""
    return {"color": color(method), "marker": _look(method)[1], "label": method}


def option_look(index: int) -> dict[str, Any]:
    """Colour and marker of the lines of an option's values."""
    return {"color": COLORS[1:][index % 7], "marker": MARKERS[1:][index % 7]}


def ordered(methods: Iterable[str]) -> list[str]:
    """Methods in the order of every legend."""
    found = set(methods)
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def figure(
    height: float, panels: int = 1, *, rows: int = 1, width: float | None = None
) -> tuple[Any, list[Any]]:
    """A styled figure and its panels, row by row, on the non-interactive backend.

    ``width``: by default one column of a page for one panel, and two columns for several.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(_SETTINGS)
    width = width or (ONE_COLUMN if panels == 1 else TWO_COLUMNS)
    columns = -(-panels // rows)
    drawing, axes = plt.subplots(
        rows, columns, figsize=(width, height), layout="constrained", squeeze=False
    )
    for spare in axes.flat[panels:]:
        spare.set_axis_off()
    return drawing, list(axes.flat[:panels])


def by_method(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each method, in the order of every legend."""
    return {name: rows[rows["method"] == name] for name in ordered(rows["method"].unique())}


def finish(
    drawing: Any,
    rows: pd.DataFrame,
    points: list[str] | None,
    note: str = "",
    *,
    legend: str = "above",
    columns: int | None = None,
) -> Any:
    """Add the legend and the small line below; returns the figure.

    ``rows`` are what the figure shows: their cells are written into its files. ``points``: columns
    whose values make a point, for the line's number of samples; None: the line is ``note`` alone.
    ``legend``, of the first panel: above the panels, inside the first one, or none.
    """
    plain_log_axes(drawing)
    handles, labels = drawing.axes[0].get_legend_handles_labels()
    if legend == "above":
        _legend_above(drawing, handles, labels, columns or len(labels))
    if legend == "inside":
        drawing.axes[0].legend(fontsize=SMALL)
    text = note if points is None else describe(rows, points) + note
    wrap = partial(textwrap.fill, width=int(_NOTE_CHARACTERS * drawing.get_figwidth()))
    text = "\n".join(map(wrap, text.splitlines()))
    drawing.supxlabel(text, fontsize=SMALL, color="#555555")
    drawing.retrobench_cells = tuple(rows["key"].unique())
    return drawing


def _legend_above(drawing: Any, handles: list[Any], labels: list[str], columns: int) -> None:
    """A legend as wide as the figure allows; many labels are small, and the figure grows."""
    many = len(labels) > _FEW_LABELS
    font = {"fontsize": SMALL, "columnspacing": 1, "handlelength": 1.5} if many else {}
    for ncols in range(columns, 0, -1):
        legend = drawing.legend(handles, labels, loc="outside upper center", ncols=ncols, **font)
        if ncols == 1 or legend.get_window_extent().width <= drawing.bbox.width:
            break
        legend.remove()
    if many:
        drawing.set_figheight(
            drawing.get_figheight() + legend.get_window_extent().height / drawing.dpi
        )


def plain_log_axes(drawing: Any) -> None:
    """Numbers of log axes as 20, 50, 100, not as powers, which need math text."""
    from matplotlib.ticker import LogFormatter, LogFormatterMathtext

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    for axis in (axis for axes in drawing.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
            # minor ticks only where there are few others
            axis.set_major_formatter(Plain(minor_thresholds=(2, 0.5)))
            axis.set_minor_formatter(Plain(minor_thresholds=(2, 0.5)))


def save(drawing: Any, path: Path, title: str, source: str) -> None:
    """Write the figure as PDF and, under ``path``, as PNG, with ``source`` in both, and close it.

    Equal figures give equal files: no date is written. A palette makes the PNG three times smaller.
    """
    import matplotlib.pyplot as plt
    from PIL import Image, PngImagePlugin

    no_date = dict.fromkeys(("Creator", "Producer", "CreationDate"))
    pdf = {"Title": title, "Keywords": source, **no_date}
    drawing.savefig(path.with_suffix(".pdf"), metadata=pdf)
    pixels = io.BytesIO()
    drawing.savefig(pixels, dpi=_PNG_DPI)
    plt.close(drawing)
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("Title", title)
    texts.add_itxt("Comment", source)
    with Image.open(pixels) as image:
        palette = image.convert("RGB").quantize(_PNG_COLORS, dither=Image.Dither.NONE)
    palette.save(path, optimize=True, pnginfo=texts, dpi=(_PNG_DPI, _PNG_DPI))
