"""Draw the figures that the rows on disk allow: ``python scripts/plots.py [figure ...]``."""

import argparse
import sys
from pathlib import Path

from retrobench.cli import app as cli
from retrobench.core.paths import check_output
from retrobench.report.figures.draw import FIGURES, check, draw
from retrobench.store.results import ResultStore
from retrobench.store.sweeps import sweep_keys


def main() -> int:
    """Exit code 1 if ``--check`` finds a figure with rows missing, changed, failed or stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="figure", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--results", default="results/runs", help="results folder")
    parser.add_argument("--sweep", help="draw from the cells of one sweep")
    parser.add_argument("--out", type=Path, default=Path("results/figures"), help="output folder")
    parser.add_argument(
        "--check", action="store_true", help="check the figures in --out, draw none"
    )
    options = parser.parse_args()
    with cli.one_line_errors():
        return _run(parser, options)
    return 2


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(unknown)} (choose from {', '.join(FIGURES)})")
    store = ResultStore(options.results)
    if options.check:
        return _check(store, options.out, options.figures)
    check_output("--out", options.out / "figure.pdf")
    keys = sweep_keys(store, options.sweep) if options.sweep else None
    for name, path, reason in draw(store, options.out, options.figures or None, keys):
        print(f"{name}: {path if path else 'not drawn, ' + reason}")
    return 0


def _check(store: ResultStore, out: Path, names: list[str]) -> int:
    paths = sorted(
        path for path in out.glob("*.pdf") if not names or path.stem.startswith(tuple(names))
    )
    if not paths:
        print(f"{out}: no figures to check")
        return 1
    findings = check(store, paths)
    print("\n".join(findings) or f"{len(paths)} figures agree with the rows")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
