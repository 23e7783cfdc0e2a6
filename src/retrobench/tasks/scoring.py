"""Scores predictions from any source with the benchmarks' own scorers, line by line."""

import importlib
import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from retrobench.core.paths import replacing
from retrobench.core.spec import nearest
from retrobench.tasks.local_files import is_text_list, text_field
from retrobench.tasks.ruler.spec import TASKS as RULER_TASKS

# modules of retrobench.tasks.scorers
_BENCHMARKS = "ruler longbench longbench_v2 babilong infinitebench scbench text2json mrcr".split()


@dataclass(slots=True)
class ScoreReport:
    """Result of a file: bad lines, (count, mean) by benchmark and task, largest difference."""

    errors: list[tuple[int, str]] = field(default_factory=list)
    means: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    max_difference: float | None = None


def as_case(raw: Any) -> dict[str, Any]:
    """One line as a case. Lines of LongBench v2's own output (response, answer) are converted."""
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    case = dict(raw)
    if "response" in case and "prediction" not in case:
        given = {"benchmark": "longbench_v2", "prediction": case["response"]}
        case = {**given, "references": [case.get("answer")], **case}
        case.setdefault("score", case.get("judge"))
    if case.get("benchmark") == "longbench_v2":
        case["task"] = "longbench_v2"
    return case


def score_case(raw: Any) -> float:
    """Score in [0, 1] of one case; ValueError if a field is missing or wrong."""
    case = as_case(raw)
    for name in ("benchmark", "task", "prediction"):
        if not isinstance(case.get(name), str):
            raise ValueError(f"{name!r} is missing or not a string")
    references, classes = case.get("references"), case.get("all_classes")
    if not is_text_list(references) or not references:
        raise ValueError("'references' must be a list with at least one string, and strings only")
    if classes is not None and not is_text_list(classes):
        raise ValueError("'all_classes' must be a list of strings or null")
    scorers = _scorers(case["benchmark"], case["task"])
    options = {"all_classes": classes} if case["benchmark"] == "longbench" else {}
    fields = getattr(scorers, "FIELDS", ())  # further texts that the score takes from a case
    options |= {name: text_field(case, name) for name in fields}
    return scorers.score(case["task"], case["prediction"], references, **options)


def score_file(cases: Path, out: Path | None = None) -> ScoreReport:
    """Scores every line of a jsonl file. Bad lines are reported and the others scored.

    With ``out``, every good line is written there with its score ``ours``. The file appears when it
    is complete.
    """
    if not cases.exists():
        raise FileNotFoundError(f"{cases}: no such file")
    report = ScoreReport()
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    with cases.open("rb") as stream, ExitStack() as opened:
        sink = None
        if out is not None:
            temporary = opened.enter_context(replacing(out))
            # A lone surrogate, as JSON may escape one, is written as it came.
            sink = temporary.open("w", encoding="utf-8", errors="surrogatepass")
            opened.enter_context(sink)
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                raw = json.loads(line)
                ours, case = score_case(raw), as_case(raw)
            except (ValueError, RecursionError) as error:
                report.errors.append((number, str(error)))
                continue
            scores[case["benchmark"], case["task"]].append(ours)
            if isinstance(case.get("score"), (int, float)):
                difference = abs(ours - case["score"])
                report.max_difference = max(report.max_difference or 0.0, difference)
            if sink is not None:
                sink.write(json.dumps({**raw, "ours": ours}, ensure_ascii=False) + "\n")
    report.means = {key: (len(all_), sum(all_) / len(all_)) for key, all_ in scores.items()}
    return report


def _scorers(benchmark: str, task: str) -> ModuleType:
    """The module that scores a benchmark; ValueError if it is unknown, or has no such task."""
    if benchmark not in _BENCHMARKS:
        listed = ", ".join(_BENCHMARKS)
        raise ValueError(f"no benchmark {benchmark!r}{nearest(benchmark, _BENCHMARKS)} ({listed})")
    module = importlib.import_module(f"retrobench.tasks.scorers.{benchmark}")
    known: Sequence[str] = getattr(module, "TASKS", RULER_TASKS)
    if task not in known:
        raise ValueError(f"{benchmark} has no task {task!r}{nearest(task, known)}")
    return module
