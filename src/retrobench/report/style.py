"""One look for every figure: colour-blind-safe (Okabe-Ito), sized for one or two columns."""

from __future__ import annotations

from typing import Any

ONE_COLUMN, TWO_COLUMNS = 3.5, 7.2  # inches
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
ORDER = ("full", "retroinfer", "oracle_topk", "quest", "infinigen", "random", "streaming")
MARKERS = "osD^vPX*"


class NotEnoughRows(ValueError):
    """A figure cannot be drawn; says which rows it wants and the command that makes them."""


def ordered(methods: Any) -> list[str]:
    """Method names in the order of every table and figure, others behind."""
    known = [name for name in ORDER if name in set(methods)]
    return known + sorted(set(methods) - set(known))


def color(method: str) -> str:
    """The method's colour, the same in every figure."""
    index = ORDER.index(method) if method in ORDER else len(ORDER)
    return COLORS[index]


def marker(method: str) -> str:
    """The method's marker, so that grey prints stay readable."""
    index = ORDER.index(method) if method in ORDER else len(ORDER)
    return MARKERS[index]


def figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
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
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "pdf.fonttype": 42,
        }
    )
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained")
