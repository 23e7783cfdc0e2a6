"""Draw docs/retroinfer.svg: ``python scripts/draw_retroinfer.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

OUT = Path(__file__).resolve().parents[1] / "docs" / "retroinfer.svg"
STEADY, EXACT, ESTIMATE, IGNORED = "#0072B2", "#D55E00", "#009E73", "#BBBBBB"


def box(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    color: str,
    text: str = "",
    size: float = 9,
) -> None:
    """A labelled rectangle."""
    axes.add_patch(
        plt.Rectangle((x, y), width, height, facecolor=color, edgecolor="white", linewidth=1)
    )
    color = "white" if color in (STEADY, EXACT, ESTIMATE) else "black"
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=color, size=size)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """An arrow with its label beside the middle."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#333333"})
    middle = (start[0] + end[0]) / 2 + 0.1, (start[1] + end[1]) / 2
    axes.text(*middle, text, size=8, va="center", color="#333333")


def context(axes: Axes) -> None:
    """The context as it came, with the three zones that a step makes of it."""
    axes.text(0, 7.75, "context of one KV head, in order", size=10, weight="bold")
    box(axes, 0, 7.0, 0.7, 0.5, STEADY, "sinks")
    for i in range(4):
        box(axes, 0.7 + i * 2.1, 7.0, 2.1, 0.5, "#DDDDDD", f"segment {i + 1} (8K tokens)", 8)
    box(axes, 9.1, 7.0, 2.9, 0.5, STEADY, "local window, waiting tokens", 8)
    axes.text(5.05, 6.5, "k-means of the keys of each segment", size=8)
    arrow(axes, (4.9, 6.95), (4.9, 5.95))


def clusters(axes: Axes) -> None:
    """Meta index above, pool in cluster order below."""
    kinds = [IGNORED, ESTIMATE, IGNORED, EXACT, ESTIMATE, IGNORED, ESTIMATE, EXACT, IGNORED]
    kinds += [IGNORED, ESTIMATE, IGNORED]
    widths = [0.7, 0.5, 0.9, 0.7, 0.6, 0.8, 0.5, 0.9, 0.6, 0.7, 0.8, 0.7]
    axes.text(-0.25, 5.6, "wave index", size=10, weight="bold")
    axes.text(-0.25, 5.32, "on the device", size=8)
    axes.text(-0.25, 4.0, "wave buffer", size=10, weight="bold")
    axes.text(-0.25, 3.72, "KV once, in\ncluster order", size=8, va="top")
    x = 1.6
    for kind, width in zip(kinds, widths, strict=True):
        box(axes, x + width / 2 - 0.2, 5.3, 0.4, 0.5, kind)
        axes.plot([x + width / 2] * 2, [5.3, 4.15], color="#999999", linewidth=0.8)
        box(axes, x, 3.55, width, 0.6, kind)
        if kind == EXACT:
            arrow(axes, (x + width / 2, 3.5), (x + width / 2, 2.75))
        x += width
    note = "a cluster: centroid,\nvalue sum, size"
    axes.text(x + 0.15, 5.55, note, size=8, va="center")
    axes.text(
        x + 0.15, 3.85, "a cluster: pages of keys\nand values (host or device)", size=8, va="center"
    )
    axes.text(6.9, 2.98, "its pages: from the cache, else from the pool", size=8)


def attention(axes: Axes) -> None:
    """The parts that one pass merges."""
    box(
        axes,
        1.6,
        2.0,
        6.6,
        0.7,
        "#F2E2D5",
        "cache of recently used pages (5%), exact batch LRU",
        8.5,
    )
    arrow(axes, (8.25, 2.35), (9.3, 2.35))
    axes.text(1.6, 1.7, "a missed page is admitted after the attention that needed it", size=8)
    box(axes, 9.35, 1.95, 2.65, 0.8, "#EEEEEE", "one softmax, merged\nby log-sum-exp", 8.5)
    rows = (
        (STEADY, "steady zone: 4 + 64 tokens and the tail, exact"),
        (EXACT, "retrieval zone: best 1.8% of clusters, every token exact"),
        (ESTIMATE, "estimation zone: next 23.2%, size x exp(q.centroid), value sum"),
        (IGNORED, "ignored: the other 75% (option tail: one mean value for all of them)"),
    )
    for i, (color, text) in enumerate(rows):
        y = 1.15 - 0.36 * i
        box(axes, 1.6, y, 0.35, 0.25, color)
        axes.text(2.1, y + 0.125, text, size=8.5, va="center")


def main() -> None:
    """Draw."""
    plt.rcParams["svg.hashsalt"] = "retroinfer"  # the same file for the same picture
    figure, axes = plt.subplots(figsize=(10.5, 6.6))
    for part in (context, clusters, attention):
        part(axes)
    axes.set_xlim(-0.3, 13.2)
    axes.set_ylim(0, 8.1)
    axes.axis("off")
    figure.savefig(OUT, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
