"""The ``retrobench`` command: everything around the runs of run.py."""

import argparse
import sys
from pathlib import Path

import argcomplete
from rich.console import Console

from retrobench import __version__
from retrobench.cli import app as cli
from retrobench.cli import board, fetch, traces
from retrobench.core.paths import check_output
from retrobench.core.words import counted
from retrobench.report.tables.layout import print_line
from retrobench.store.results import ResultStore
from retrobench.store.row_file import MAX_ATTEMPTS
from retrobench.store.sweeps import going, sweep_entries, sweep_keys, sweep_names, sweep_problems

RESPONSES = "score, seal_s, step_s, step_mib, hit_ratio, recall"
DESCRIPTION = (
    "Works with the results of run.py: lists cells and sweeps, makes tables, pages and exports, "
    "checks them, and runs samples again. It also fetches models and data, records traces, scores "
    "predictions, and makes one leaderboard of several results folders."
)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 1 if something was reported as bad, 2 for a usage error."""
    parser = _parser()
    argcomplete.autocomplete(parser)
    options = parser.parse_args(arguments)
    with cli.one_line_errors():
        if "results" in options and not Path(options.results).is_dir():
            raise ValueError(f"--results {options.results}: no such folder; run.py makes it")
        return options.run(options)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="retrobench", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"retrobench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    score = commands.add_parser("score", help="score predictions with the benchmarks' own scorers")
    score.add_argument("cases", type=Path, help="jsonl: benchmark, task, prediction, references")
    score.add_argument("--out", type=Path, help="write the lines with our score (`ours`, 0 to 1)")
    score.set_defaults(run=_score)
    fetch.add(commands)
    traces.add(commands)
    board.add(commands)

    for name, (function, text) in {
        "ls": (_ls, "list the cells of a results folder"),
        "sweeps": (_sweeps, "list the sweeps of a results folder"),
        "table": (_table, "scores and costs of cells"),
        "effects": (_effects, "main effects and interactions of the options of a sweep"),
        "show": (_show, "options, versions and status of a cell"),
        "diff": (_diff, "fields in which two cells differ"),
        "retry": (_retry, "run the failed and quarantined samples of a cell again"),
        "verify": (_verify, "run samples of a cell again and compare; keep a receipt"),
        "export": (_export, "rows as csv or parquet"),
        "audit": (_audit, "check that the cells of a table have the same prompts and rules"),
        "report": (_report, "one self-contained HTML page about the cells"),
        "serve": (_serve, "the same page live, on this machine only, while a sweep runs"),
        "sources": (_sources, "the cells that a figure was made from"),
    }.items():
        aliases = {"diff": ["why"], "sources": ["trace"]}.get(name, [])
        description = " ".join([text, *(f"(also: {alias})" for alias in aliases)])
        command = commands.add_parser(name, aliases=aliases, help=text, description=description)
        folder = "results folder; default %(default)s"
        command.add_argument("--results", default="results/runs", help=folder)
        command.set_defaults(run=function)
        _arguments(command, name)
    return parser


def _arguments(command: argparse.ArgumentParser, name: str) -> None:
    if name in {"show", "diff", "retry", "verify"}:
        command.add_argument("key", help="cell key, or its beginning")
    if name == "diff":
        command.add_argument("other", help="the other cell")
    if name == "sources":
        command.add_argument("figure", type=Path, help="a PDF or PNG of scripts/plots.py")
    if name in {"table", "export", "audit", "effects", "report"}:
        command.add_argument("keys", nargs="*", help="cells; none: all")
        command.add_argument("--sweep", help="the cells of one sweep")
    if name == "serve":
        command.add_argument("--sweep", help="one sweep; none: all cells")
        text = "port of 127.0.0.1; 0: any free one; default %(default)s"
        command.add_argument("--port", type=int, default=8337, help=text)
    if name == "ls":
        command.add_argument("--failed", action="store_true", help="only cells that are not done")
    if name == "verify":
        command.add_argument("--samples", type=int, default=3, help="number; default %(default)s")
        text = "seed of the choice of samples; default %(default)s"
        command.add_argument("--seed", type=int, default=0, help=text)
    if name == "effects":
        command.add_argument("--of", default="score", help=f"{RESPONSES}; default %(default)s")
    if name in {"export", "report"}:
        what = "FILE.csv or FILE.parquet" if name == "export" else "FILE.html"
        command.add_argument("--out", type=Path, required=True, help=what)


def _chosen(store: ResultStore, options: argparse.Namespace) -> list[str]:
    """``_named``, without cells whose ``cell.json`` is damaged; a warning names those."""
    keys = _named(store, options)
    cli.complain(store.problems(keys))
    if not (sound := store.sound_keys(keys)):
        raise ValueError(f"{options.results}: none of these cells can be read (see above)")
    return sound


def _named(store: ResultStore, options: argparse.Namespace) -> list[str]:
    """Keys named on the command line, those of a sweep, or all; ValueError if there are none."""
    keys = [store.find(key) for key in options.keys]
    if options.sweep is not None:
        keys += sweep_keys(store, options.sweep)
        cli.complain(sweep_problems(store, options.sweep))
    keys = keys or store.cell_keys()
    if not keys:
        raise ValueError(f"{options.results} holds no cells; run `python run.py` first")
    return keys


def _score(options: argparse.Namespace) -> int:
    from retrobench.tasks.scoring import score_file

    if options.out is not None:
        check_output("--out", options.out)
    report = score_file(options.cases, options.out)
    for line, message in report.errors:
        _print(f"line {line}: {message}")
    for (benchmark, task), (count, mean) in sorted(report.means.items()):
        _print(f"{benchmark}/{task}: {count} cases, mean {100 * mean:.2f}")
    if report.max_difference is not None:
        _print(f"largest difference to the given scores: {report.max_difference:.3g}")
    return 1 if report.errors else 0


def _ls(options: argparse.Namespace) -> int:
    store = ResultStore(options.results)
    cli.complain(store.problems())
    if not store.cell_keys():
        _print(f"{options.results} holds no cells")
    for key in store.sound_keys():
        labels, status = store.cell(key)["labels"], store.status(key)
        if options.failed and status.get("state") == "done":
            continue
        words = [status.get("state"), *(value for value in labels.values() if value)]
        left_out = store.read(key).quarantined()
        if left_out or status.get("attempts", 0) >= MAX_ATTEMPTS:
            count = counted(len(left_out), "sample")
            words.append(f"quarantined ({count}); `retrobench retry {key[:6]}`")
        words += [f"({status['message']})"] if status.get("message") else []
        _print(" ".join(map(str, [key, *words])))
    return 0


def _sweeps(options: argparse.Namespace) -> int:
    store = ResultStore(options.results)
    cli.complain(sweep_problems(store))
    if not sweep_names(store):
        _print(f"{options.results} holds no sweeps")
    for name in sweep_names(store):
        entries = sweep_entries(store, name)
        failed = sum(map(cli.is_failure, entries))
        more = f"; {len(left)} began and have not ended" if (left := going(store, name)) else ""
        _print(f"{name}: {counted(len(entries), 'cell')}, {failed} failed{more}")
    return 0


def _table(options: argparse.Namespace) -> int:
    from retrobench.report.headroom import load
    from retrobench.report.tables.overview import COLUMNS, print_tables

    store = ResultStore(options.results)
    print_tables(load(store, COLUMNS, _chosen(store, options)), cli.console())
    return 0


def _effects(options: argparse.Namespace) -> int:
    from retrobench.report.headroom import load
    from retrobench.report.tables.effects import effects, print_effects

    store, console = ResultStore(options.results), cli.console()
    single, pairs = effects(load(store, None, _chosen(store, options)), options.of)
    print_effects(single, f"main effects on {options.of}", console)
    if pairs:
        print_effects(pairs, f"interactions on {options.of}", console)
    return 0


def _retry(options: argparse.Namespace) -> int:
    store = ResultStore(options.results)
    key = store.find(options.key)
    requested_config = store.cell(key).get("asked")
    if requested_config is None:
        raise ValueError(f"{key} was written without its configuration; run it with retry=true")
    outcome = cli.run_job({**requested_config, "results_dir": options.results, "retry": True})
    cli.show([outcome], options.results)
    return 1 if cli.is_failure(outcome) else 0


def _verify(options: argparse.Namespace) -> int:
    from retrobench.run.verify import verify

    store = ResultStore(options.results)
    receipt = verify(store, store.find(options.key), options.samples, options.seed)
    Console().print_json(data=receipt)
    good = receipt["verdict"] in {"identical", "answers equal"} and not receipt["problems"]
    return 0 if good else 1


def _report(options: argparse.Namespace) -> int:
    from retrobench.report.page.html import write_report

    check_output("--out", options.out)
    store = ResultStore(options.results)
    title = f"retrobench: {options.sweep or 'all cells'}"
    path = write_report(store, _chosen(store, options), title, options.out)
    _print(f"written: {path}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from retrobench.report.page.serve import serve

    serve(ResultStore(options.results), options.sweep, options.port, _print)
    return 0


def _sources(options: argparse.Namespace) -> int:
    from retrobench.report.figures.draw import check, figure_cells, figure_source

    store = ResultStore(options.results)
    _print(figure_source(options.figure))
    for key in figure_cells(options.figure):
        if key in store.sound_keys():
            labels = store.cell(key)["labels"].values()
            _print(" ".join([key, *(str(value) for value in labels if value)]))
    return _findings(check(store, [options.figure]), "rows agree")


def _show(options: argparse.Namespace) -> int:
    store = ResultStore(options.results)
    key = store.find(options.key)
    about = {**store.cell(key), "status": store.status(key)}
    if "hardware" not in about["labels"]:  # a replay's alone; all configurations name one
        about.get("asked", {}).pop("hardware", None)
    Console().print_json(data=about)
    return 0


def _diff(options: argparse.Namespace) -> int:
    from retrobench.core.cell import Cell

    store = ResultStore(options.results)
    ours, theirs = (store.cell(store.find(key))["cell"] for key in (options.key, options.other))
    differences = Cell(**{**ours, "measure": tuple(ours["measure"])}).why(theirs)
    _print("\n".join(differences) or "no difference")
    return 0


def _export(options: argparse.Namespace) -> int:
    from retrobench.report.export import without_formulas, write_parquet

    if options.out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--out {options.out}: write .csv or .parquet")
    check_output("--out", options.out)
    store = ResultStore(options.results)
    frame = store.columns(None, _chosen(store, options)).dropna(axis="columns", how="all")
    if options.out.suffix == ".csv":
        without_formulas(frame).to_csv(options.out, index=False)
    else:
        write_parquet(frame, options.out)
    return 0


def _audit(options: argparse.Namespace) -> int:
    from retrobench.report.checks.audit import audit, unchecked

    store = ResultStore(options.results)
    keys = _named(store, options)
    for line in unchecked(store, keys):
        _print(line)
    return _findings(audit(store, keys), f"{len(keys)} cells agree")


def _findings(findings: list[str], fine: str) -> int:
    _print("\n".join(findings) or fine)
    return 1 if findings else 0


def _print(text: str) -> None:
    print_line(Console(), text)


if __name__ == "__main__":
    sys.exit(main())
