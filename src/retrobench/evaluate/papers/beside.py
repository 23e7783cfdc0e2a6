"""A quantity as a model gives it, as a paper states it, and how far the two are apart."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from retrobench.serving.hardware import Hardware, parse_hardware

CONF = Path(__file__).resolve().parents[4] / "conf" / "hardware"


class Row(NamedTuple):
    """``note``: where the paper says it, and which reading the model takes."""

    what: str
    model: float
    paper: float | None
    note: str


def hardware(name: str, **changes: Any) -> Hardware:
    """A machine of conf/hardware."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(values, dict)
    return parse_hardware({**{str(key): value for key, value in values.items()}, **changes})


def table(rows: Iterable[Row]) -> str:
    """Markdown, with the relative error."""
    lines = ["| what | model | paper | error | where, and remarks |", "|---|---|---|---|---|"]
    for what, model, paper, note in rows:
        error = "" if paper is None else f"{model / paper - 1:+.0%}"
        shown = "" if paper is None else f"{paper:.4g}"
        lines.append(f"| {what} | {model:.3g} | {shown} | {error} | {note} |")
    return "\n".join(lines)
