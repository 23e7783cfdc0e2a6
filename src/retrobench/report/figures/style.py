"""One look for every figure: colour-blind-safe (Okabe-Ito), sized for one or two columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ONE_COLUMN, TWO_COLUMNS = 3.5, 7.2  # inches
COLORS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
ORDER = ("full", "retroinfer", "oracle_topk", "quest", "infinigen", "streaming", "random")
MARKERS = "os^DvPX*"
PUBLISHED = {"linestyle": "none", "fillstyle": "none", "markersize": 7}


class NotEnoughRows(ValueError):
    """A figure cannot be drawn; says which rows it wants and the command that makes them."""


def color(method: str) -> str:
    """The method's colour, the same in every figure."""
    return COLORS[_index(method)]


def marker(method: str) -> str:
    """The method's marker, so that grey prints stay readable."""
    return MARKERS[_index(method)]


def _index(method: str) -> int:
    return ORDER.index(method) if method in ORDER else len(ORDER)


def ordered(methods: Iterable[str]) -> list[str]:
    """Methods in the order of every legend."""
    found = set(methods)
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A styled figure and its axes, on the non-interactive backend."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "lines.markersize": 4,
            "pdf.fonttype": 42,
        }
    )
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained")


def plain_numbers() -> Any:
    """Ticks of a log axis as 20, 50, 100, not as powers; minor ones only where there are few."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    return Plain(minor_thresholds=(2, 0.5))


def close(drawing: Any) -> None:
    """Free a figure."""
    import matplotlib.pyplot as plt

    plt.close(drawing)


def note(drawing: Any, text: str) -> None:
    """The small line below a figure: model, samples, stand-in data."""
    drawing.supxlabel(text, fontsize=6, color="#555555")


def out_of_memory(axes: Any, places: Iterable[float], color: str, order: int = 0) -> None:
    """Write OOM where a value would stand, a line of text higher for each ``order``."""
    for place in sorted(set(places)):
        where = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 6}
        axes.annotate("OOM", (place, 0.02 + 0.07 * order), color=color, **where)


def few_per_decade() -> Any:
    """Ticks of a log axis at 1, 2 and 5, to be written as plain numbers."""
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=(1.0, 2.0, 5.0))


def batch_axis(axes: Any, batches: Iterable[float]) -> None:
    """Batch sizes on a log scale, each with its number; rates from zero."""
    batches = sorted(set(batches))
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.set_xticks(batches, [f"{batch:g}" for batch in batches])
    axes.set_xlabel("batch")
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)


def uses(drawing: Any, keys: Iterable[str]) -> Any:
    """Remember the cells that a figure shows; they are written into its files."""
    drawing.retrobench_cells = tuple(dict.fromkeys(keys))
    return drawing


def cells(drawing: Any) -> tuple[str, ...]:
    """The cells that ``uses`` remembered; empty if a figure shows all it was given."""
    return getattr(drawing, "retrobench_cells", ())


def tokens(count: float) -> str:
    """A token count for an axis: 512, 4K, 128K."""
    return f"{count / 1024:g}K" if count >= 1024 else f"{count:g}"
