"""Make the tables of docs/hardware.md: constants of machines, and models beside papers."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from retrobench.evaluate.papers import attacc, chime, chime_served, instinfer
from retrobench.evaluate.papers.beside import CONF, hardware, table
from retrobench.serving.hardware import MEASURED

DOC = Path(__file__).resolve().parent.parent / "docs" / "hardware.md"
PARTS: dict[str, Callable[[], str]] = {
    "instinfer": lambda: table(instinfer.rows()),
    "chime": lambda: table(chime.rows()),
    "chime_served": lambda: f"{table(chime_served.rows())}\n\n{chime_served.matrix()}",
    "attacc": lambda: table(attacc.rows()),
    "constants": lambda: "\n\n".join(map(constants, names())),
}


def names() -> list[str]:
    """Machines that have constants."""
    return sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != MEASURED)


def constants(name: str) -> str:
    """A machine's constants with their sources."""
    machine = hardware(name)
    lines = [f"### `hardware={name}`\n", "| constant | value | meaning | source |"]
    lines.append("|---|---|---|---|")
    for field in fields(machine.config):
        value = getattr(machine.config, field.name)
        shown = f"{value:.4g}" if isinstance(value, float) else str(value).lower()
        text = f"{field.metadata['help']} | {machine.sources[field.name]}"
        lines.append(f"| `{field.name}` | {shown} | {text} |")
    return "\n".join(lines)


def render() -> str:
    """The page with its tables made anew; the text between them stays."""
    text = DOC.read_text()
    for name, make in PARTS.items():
        begin, end = (f"<!-- {word} {name} -->" for word in ("begin", "end"))
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n\n{make()}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it is stale")
    asked, made = parser.parse_args(), render()
    if asked.check:
        stale = "docs/hardware.md is stale: run make hardware"
        sys.exit(stale if DOC.read_text() != made else 0)
    DOC.write_text(made)
