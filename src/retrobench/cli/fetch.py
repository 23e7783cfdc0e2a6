"""``retrobench fetch``: the one command that downloads."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from retrobench.cli.app import console, say
from retrobench.core.spec import unknown
from retrobench.fetch import data, hub, models
from retrobench.fetch.benchmarks import BENCHMARKS, DataFile
from retrobench.fetch.catalogue import MODELS

MANY_FILES = 4  # more of one benchmark are one row of the list
EPILOG = """NAME is one of the list, `data` for the data of all benchmarks, or ORG/NAME[@REVISION]
for a model of the Hugging Face Hub (kept in the Hub's own cache). Complete files are kept, and a
stopped fetch continues. Data of the Hub need retrobench[data]; some of it needs `hf auth login`."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The sub-command's options."""
    text = "download models and data, or list them; no other command downloads"
    command = commands.add_parser("fetch", help=text, description=text, epilog=EPILOG)
    command.add_argument("names", nargs="*", metavar="NAME", help="none: show the list")
    command.add_argument("--list", action="store_true", help="what can be fetched, what is here")
    command.add_argument("--root", type=Path, default=Path("data"), help="the data.root of run.py")
    command.add_argument(
        "--from", dest="given", type=Path, help="folder of files downloaded before: no network"
    )
    command.add_argument(
        "--accept-license", action="store_true", help="accept the terms of a model that has some"
    )
    command.add_argument("--verify", action="store_true", help="only check; no NAME: check all")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    names = [
        name for asked in options.names for name in (BENCHMARKS if asked == "data" else [asked])
    ]
    for name in names:
        if name not in MODELS and name not in BENCHMARKS and "/" not in name:
            raise unknown(name, "name", [*MODELS, *BENCHMARKS, "data"])
    if options.given is not None and not options.given.is_dir():
        raise ValueError(f"--from {options.given}: no such folder")
    if options.verify:
        return _verify(names, options.root)
    if options.list or not names:
        console().print(listing(options.root))
        return 0
    for name in names:
        _fetch(name, options)
    return 0


def _fetch(name: str, options: argparse.Namespace) -> None:
    """Download one model or benchmark; ValueError saying what went wrong."""
    try:
        if name in MODELS:
            models.fetch_model(MODELS[name], options.given, say, options.accept_license)
        elif name in BENCHMARKS:
            data.fetch_benchmark(options.root, name, hub.Hub(), options.given, say)
        elif options.given is not None:
            raise ValueError(f"{name} is already a folder there: model=local model.path=FOLDER")
        else:
            say(f"{name}: {hub.fetch_model(name)}")
    except ImportError as error:
        raise ValueError(f"{name} needs {error.name}: pip install 'retrobench[data]'") from error
    except ValueError:
        raise
    except Exception as error:  # the libraries raise many kinds for a missing network
        raise ValueError(f"{name} not fetched: {type(error).__name__}: {error}") from error


def _verify(names: list[str], root: Path) -> int:
    """Check what was named, or all that is here; exit code 1 if anything is wrong."""
    if not names:
        names = [name for name in MODELS if models.read_manifest(models.models_root() / name)]
        fetched = data.read_manifest(root)
        names += [name for name, files in BENCHMARKS.items() if any(f in fetched for f in files)]
    wrong = []
    for name in names:
        found = models.verify(name) if name in MODELS else data.verify(root, name)
        wrong += found
        say("\n".join(found) or f"{name}: whole")
    if not names:
        say("nothing is here")
    return 1 if wrong else 0


def listing(root: Path) -> Table:
    """What can be fetched, its size and terms, and what is here."""
    folder = models.models_root()
    caption = f"models in {folder}, data in {root}; MB of the download, or of the file that is here"
    table = Table(title="retrobench fetch NAME", caption=escape(caption))
    for name in ("name", "what", "MB", "licence", "here"):
        table.add_column(name, justify="right" if name == "MB" else "left")
    for model in MODELS.values():
        here = "yes" if models.read_manifest(folder / model.name) else ""
        size = f"{model.download_bytes / 1e6:.0f}"
        table.add_row(model.name, model.about, size, model.licence, here)
    for name, made, size_bytes in models.own_files():
        what = escape(f"your {name}, converted in {made.name} (delete the folder to free it)")
        table.add_row("", what, f"{size_bytes / 1e6:.0f}", "", "yes")
    for benchmark, files in BENCHMARKS.items():
        for row in _data_rows(root, files):
            table.add_row(benchmark, *row)
    return table


def _data_rows(root: Path, files: Mapping[str, DataFile]) -> Iterator[tuple[str, ...]]:
    """A row for each file of a benchmark, or one for all if they are many."""
    sizes = {
        name: path.stat().st_size / 1e6 if (path := root / name).exists() else source.about_mb
        for name, source in files.items()
    }
    present = [name for name in files if (root / name).exists()]
    if len(files) > MANY_FILES:
        source = next(iter(files.values()))
        here = "yes" if len(present) == len(files) else str(len(present) or "")
        size = f"{sum(sizes.values()):.0f}" if all(sizes.values()) else "?"
        yield f"{len(files)} files from {source.repo}", size, source.licence, here
        return
    for name, source in files.items():
        what, size = f"{Path(name).name} from {source.repo}", sizes[name]
        here = "yes" if name in present else ""
        yield what, f"{size:.0f}" if size else "?", source.licence, here
