"""Draw the figures that the rows on disk allow: ``python scripts/plots.py [figure ...]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from retrobench.report.plots import FIGURES, draw, load
from retrobench.store.results import OK, ResultStore


def main() -> int:
    """Exit code 1 if ``--check`` finds rows that a figure must not be drawn from."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="figure", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--results", default="results/runs", help="results folder")
    parser.add_argument("--out", type=Path, default=Path("results/figures"), help="output folder")
    parser.add_argument("--check", action="store_true", help="fail on failed or missing rows")
    options = parser.parse_args()
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(unknown)} (choose from {', '.join(FIGURES)})")
    store = ResultStore(options.results)
    if options.check:
        return _check(store)
    for name, path, reason in draw(store, options.out, options.figures or None):
        print(f"{name}: {path if path else 'not drawn, ' + reason}")
    return 0


def _check(store: ResultStore) -> int:
    frame = load(store)
    bad = frame[~frame["status"].isin([OK, "unsupported_by_model"])] if len(frame) else frame
    for row in bad.itertuples():
        print(f"{row.key} {row.sample}: {row.status}")
    unfinished = [k for k in store.cell_keys() if store.status(k).get("state") != "done"]
    for key in unfinished:
        print(f"{key}: {store.status(key).get('state')}")
    return 1 if len(bad) or unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
