"""Send the comparison of a sweep to W&B: ``python scripts/wandb_report.py --sweep NAME``.

One run (id ``report-NAME``) in the sweep's group holds the tables, the comparisons, the figures,
the HTML report and the rows. Without a key it is written offline, for ``wandb sync``.
"""

import argparse
import re
import sys
from pathlib import Path

import wandb

from retrobench.core.paths import check_output
from retrobench.report.checks.significance import significance
from retrobench.report.figures.draw import draw
from retrobench.report.headroom import load
from retrobench.report.page.html import write_report
from retrobench.report.tables.cost import cost_matrix
from retrobench.report.tables.overview import COLUMNS
from retrobench.report.tables.scores import score_matrix
from retrobench.store.results import ResultStore
from retrobench.store.sweeps import sweep_keys
from retrobench.track.wandb import chosen_mode


def main() -> int:
    """Build everything from the store, then write one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", required=True, help="name of the sweep (`retrobench sweeps`)")
    parser.add_argument("--results", default="results/runs", help="results folder")
    parser.add_argument("--project", default="retrobench", help="W&B project")
    parser.add_argument("--dir", type=Path, default=Path("results"), help="holds the wandb/ files")
    parser.add_argument("--mode", default="auto", help="auto, online or offline")
    options = parser.parse_args()
    store = ResultStore(options.results)
    try:
        keys = sweep_keys(store, options.sweep)
        check_output("--dir", options.dir / "reports" / options.sweep / "report.html")
    except ValueError as error:
        parser.error(str(error))
    frame, folder = load(store, COLUMNS, keys), options.dir / "reports" / options.sweep
    page = write_report(store, keys, f"retrobench: {options.sweep}", folder / "report.html")
    name = re.sub(r"[^A-Za-z0-9_-]", "-", options.sweep)
    with wandb.init(
        project=options.project,
        group=options.sweep,
        job_type="report",
        id=f"report-{name}",
        name=f"report {options.sweep}",
        dir=str(options.dir),
        mode=chosen_mode(options.mode),
    ) as run:
        logged = {"report": wandb.Html(page.read_text())}
        logged["scores"] = wandb.Table(dataframe=score_matrix(frame).astype(str))
        logged["cost"] = wandb.Table(dataframe=cost_matrix(frame).astype(str))
        lines = [[line] for line in significance(frame)]
        logged["significance"] = wandb.Table(columns=["comparison"], data=lines)
        for figure, path, _ in draw(store, folder, keys=keys):
            if path is not None:
                logged[f"figures/{figure}"] = wandb.Image(str(path))
        run.log(logged)
        artifact = wandb.Artifact(f"rows-{name}", type="rows")
        store.columns(None, keys).to_parquet(folder / "rows.parquet")
        artifact.add_file(str(folder / "rows.parquet"))
        run.log_artifact(artifact)
    print(f"report-{name}: {len(keys)} cells; {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
