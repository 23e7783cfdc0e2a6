"""Draw the figures of docs/hardware.md that need no rows: cost models alone."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from retrobench.evaluate.papers import chime
from retrobench.evaluate.papers.beside import hardware
from retrobench.report.figures import parts, style
from retrobench.serving.dims import DIMS
from retrobench.serving.hardware.gpu import Gpu
from retrobench.serving.traffic import full_attention

OUT = Path(__file__).resolve().parent.parent / "docs" / "figures"
TB = 1e12


def plane() -> None:
    """Tokens per second over capacity and bandwidth of a machine for attention."""
    config = hardware("dimm_pim").config
    model = chime.plane(config, reserved_tokens=chime.WHOLE)
    capacity, bandwidth = np.geomspace(0.125, 16, 85), np.geomspace(0.125, 512, 121)
    rate = np.array([[model.rate(c * TB, b * TB) for b in bandwidth] for c in capacity])
    drawing, (axes,) = style.figure(3.2, width=5.0)
    shades = axes.pcolormesh(bandwidth, capacity, rate, norm="log", cmap="cividis", rasterized=True)
    drawing.colorbar(shades, ax=axes, label="tokens per second")
    ranks = config.ranks * config.rank_bytes_per_s / TB
    hbm = config.gpus * config.hbm_bytes_per_s / TB
    room = (config.gpus * config.hbm_bytes - model.dims.weight_bytes) / TB
    for name, x, y in (
        ("host", 0.406, 2), ("ranks", ranks, 2),
        ("banks (CHIME)", ranks * config.bank_factor, 2), ("HBM-PIM", 16 * hbm, room),
    ):  # fmt: skip
        axes.plot(x, y, "o", color="white", markeredgecolor="black")
        parts.beside_point(axes, name, (x, y), xytext=(0, 6), ha="center", color="white")
    axes.set(xscale="log", yscale="log", xlabel="bandwidth of attention (TB/s)")
    axes.set(ylabel="memory for K and V (TB)")
    axes.grid(visible=False)
    _save(drawing, "capacity_bandwidth", "cost model: GPT-175B on 8 A100, OpenR1-Math lengths")


def crossover() -> None:
    """Seconds to have the keys and values of a context: computed anew, or read over a link."""
    drawing, panels = style.figure(2.8, 2)
    contexts = np.geomspace(64, 262144, 200)
    for panel, shape in zip(panels, ("llama31_8b", "llama2_13b"), strict=True):
        dims = DIMS[shape]
        for index, name in enumerate(("gpu", "gpu_a100", "gpu_rtx4090")):
            config = hardware(name, hbm_bytes=1e12).config  # whether it fits is another question
            model = Gpu(config, dims, full_attention(dims.kv_token_bytes, 1))
            seconds = [model.step_s(0, 0, round(n)) for n in contexts]
            label = {"gpu": "H200", "gpu_a100": "A100", "gpu_rtx4090": "RTX 4090"}[name]
            color = style.option_look(index)["color"]
            panel.plot(contexts, seconds, color=color, label=f"computed anew, {label}")
        for rate, dash in ((64e9, "--"), (32e9, "-."), (7e9, ":")):
            seconds = contexts * dims.kv_token_bytes / rate
            panel.plot(contexts, seconds, dash, color="black", label=f"read at {rate / 1e9:g} GB/s")
        parts.token_axis(panel, (64, 1024, 16384, 262144))
        panel.set(yscale="log", title=shape)
    panels[0].set_ylabel("seconds")
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    _save(drawing, "offload_crossover", "cost model: reading hides behind nothing; rooflines")


def _save(drawing: Any, name: str, note: str) -> None:
    style.plain_log_axes(drawing)
    drawing.supxlabel(note, fontsize=style.SMALL, color="#555555")
    style.save(drawing, OUT / f"{name}.png", name, note)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    plane()
    crossover()
