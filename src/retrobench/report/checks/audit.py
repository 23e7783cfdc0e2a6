"""Audit: cells side by side must have seen the same prompts under the same rules, untouched.

Stored answers are scored again: a score that was changed, or an answer that was swapped, shows.
"""

import math
from collections import defaultdict
from typing import Any

from retrobench.core.cell import canonical
from retrobench.core.spec import parse
from retrobench.core.task import Sample, Task
from retrobench.core.words import counted
from retrobench.store.results import ResultStore
from retrobench.store.row_file import OK
from retrobench.tasks import task_class


def rescore(store: ResultStore, keys: list[str]) -> list[str]:
    """One line for each cell whose answers do not have the scores that its rows tell."""
    findings = []
    for key in keys:
        rows = [row for row in store.read(key).rows.values() if _is_scored(row)]
        if not rows:
            continue
        try:
            task = _task(store.cell(key)["cell"]["task"])
            wrong = [why for row in rows if (why := _difference(task, row))]
        except (ValueError, KeyError) as error:
            findings.append(f"{key[:6]}: its answers cannot be scored again: {error}")
            continue
        if wrong:
            what = f"{len(wrong)} of {len(rows)} scores are not those of the answers"
            findings.append(f"{key[:6]}: {what} (first: {wrong[0]})")
    return findings


def _is_scored(row: dict[str, Any]) -> bool:
    return row["status"] == OK and row.get("score") is not None and "prediction" in row


def _task(asked: dict[str, Any]) -> Task:
    """The benchmark of a cell; no data are read."""
    values = {name: value for name, value in asked.items() if name not in ("name", "fingerprint")}
    task = task_class(asked["name"])
    return task(parse(task.Config, values, "task"))


def _difference(task: Task, row: dict[str, Any]) -> str:
    """How a row's score differs from its answer's; empty if it does not."""
    sample = Sample(
        id=row["sample"],
        task=row["task"],
        references=tuple(row["references"]),
        max_new_tokens=1,
        length=row.get("length") or 0,
        meta=row.get("meta") or {},
    )
    score = task.score(sample, row["prediction"])
    if math.isclose(score, row["score"], abs_tol=1e-9):
        return ""
    return f"{row['sample']}: {row['score']:g}, its answer has {score:g}"


# Fields of a cell, and of the machine that ran it, that must be equal side by side. The last
# decide which attention code the model's own layers and the prefill use.
_RULES = (
    "cell.protocol",
    "cell.engine.temperature",
    "cell.engine.top_p",
    "cell.engine.seed",
    "cell.model.revision",
    "cell.model.dtype",
    "cell.model.chat",
    "cell.model.chat_template",
    "cell.model.chat_date",
    "cell.model.thinking",
    "cell.model.weights",
    "provenance.gpu",
    "provenance.versions.torch",
    "provenance.versions.transformers",
    "provenance.versions.triton",
    "provenance.versions.flash-attn",
    "provenance.versions.flashinfer-python",
)


def audit(store: ResultStore, keys: list[str]) -> list[str]:
    """One line per disagreement among cells of the same model and benchmark.

    Compared per sample: prompt hash, truncation, chat template, stop rules, answer room. Compared
    per cell: sampling, protocol, revision, dtype, device and the versions that decide the attention
    backend. Named are also failed rows, cells of one task with unequal samples, substitute data
    beside real data, files that were changed, and scores that are not those of the answers.
    """
    findings = [*store.problems(keys), *_altered(store, keys)]
    keys = store.sound_keys(keys)
    findings += rescore(store, keys)
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key in keys:
        labels = store.cell(key)["labels"]
        groups[str(labels.get("model")), str(labels.get("benchmark"))].append(key)
    for (model, benchmark), members in sorted(groups.items()):
        where = f"{model} {benchmark}"
        findings += _rules(store, members, where) + _prompts(store, members, where)
    return findings


def unchecked(store: ResultStore, keys: list[str]) -> list[str]:
    """One line for each cell with rows of an older version, which nothing protects."""
    counts = {key: store.read(key).unchecked for key in keys}
    text = "rows without a digest, unchecked (written by an older version)"
    return [f"{key[:6]}: {count} {text}" for key, count in counts.items() if count]


def _altered(store: ResultStore, keys: list[str]) -> list[str]:
    counts = {key: store.status(key).get("altered", 0) for key in keys}
    text = "its files were changed between runs"
    return [f"{key[:6]}: {text} ({count} times)" for key, count in counts.items() if count]


def _rules(store: ResultStore, keys: list[str], where: str) -> list[str]:
    findings = []
    for rule in _RULES:
        values: dict[str, list[str]] = defaultdict(list)
        for key in keys:
            values[str(_get(store.cell(key), rule))].append(key[:6])
        if len(values) > 1:
            name = rule.split(".", 1)[1]
            findings.append(f"{where}: {name} differs ({_listed(values)})")
    return findings


def _listed(cells: dict[str, list[str]]) -> str:
    """Each value with the cells that have it."""
    return "; ".join(f"{value}: {', '.join(keys)}" for value, keys in cells.items())


def _prompts(store: ResultStore, keys: list[str], where: str) -> list[str]:
    seen: dict[str, dict[str, dict[str, list[str]]]] = {}
    stand_in: dict[str, set[bool]] = defaultdict(set)
    findings: list[str] = []
    samples: dict[str, dict[str, frozenset[str]]] = defaultdict(dict)  # of cells of equal tasks
    for key in keys:
        rows = store.read(key).rows
        samples[canonical(store.cell(key)["cell"]["task"])][key] = frozenset(rows)
        for sample, row in rows.items():
            if row["status"] == "ok":
                stand_in[row.get("task", "")].add(bool((row.get("meta") or {}).get("stand_in")))
                for name, value in _marks(row).items():
                    marks = seen.setdefault(name, {}).setdefault(sample, {})
                    marks.setdefault(value, []).append(key[:6])
            else:
                findings.append(f"{where}: {key[:6]} {sample} is {row['status']}")
    for name, by_sample in seen.items():
        differing = [sample for sample, marks in by_sample.items() if len(marks) > 1]
        if differing:
            first = f"first: {differing[0]}; {_listed(by_sample[differing[0]])}"
            findings.append(
                f"{where}: {name} differs in {counted(len(differing), 'sample')} ({first})"
            )
    mixed = [task for task, kinds in stand_in.items() if len(kinds) > 1]
    if mixed:
        findings.append(f"{where}: substitute and real data side by side in {', '.join(mixed)}")
    for same in samples.values():
        if len(set(same.values())) > 1:
            counts = ", ".join(f"{key[:6]}: {len(ids)}" for key, ids in same.items())
            findings.append(f"{where}: cells hold different samples ({counts})")
    return findings


def _marks(row: dict[str, Any]) -> dict[str, str]:
    """What must be equal for one sample in every cell, as text."""
    marks = {"prompt": row.get("prompt_hash"), "truncation": row.get("truncated")}
    return {name: str(value) for name, value in {**marks, **(row.get("rules") or {})}.items()}


def _get(values: dict[str, Any], path: str) -> Any:
    for part in path.split("."):
        values = values.get(part) or {} if isinstance(values, dict) else {}
    return values or None
