"""``retrobench fetch``: the one command that downloads."""

from __future__ import annotations

import argparse
from pathlib import Path

from retrobench.fetch.catalogue import MODELS
from retrobench.fetch.models import fetch_model


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The sub-command's options."""
    command = commands.add_parser("fetch", help="bring models; nothing else downloads")
    command.add_argument("names", nargs="+", choices=MODELS, metavar="NAME", help=", ".join(MODELS))
    command.add_argument(
        "--from", dest="given", type=Path, help="folder of downloaded files: no network"
    )
    command.set_defaults(run=_fetch)


def _fetch(options: argparse.Namespace) -> int:
    for name in options.names:
        fetch_model(MODELS[name], options.given, _say)
    return 0


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201
