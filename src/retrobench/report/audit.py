"""Prompt audit: cells shown side by side must have seen the same prompts under the same rules."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from retrobench.store.results import ResultStore

_RULES = ("protocol", "engine.temperature", "engine.top_p", "model.revision", "model.dtype")


def audit(store: ResultStore, keys: list[str]) -> list[str]:
    """One line per disagreement among cells of the same model and benchmark.

    Compared per sample: prompt hash, prompt tokens, truncation. Compared per cell: chat template,
    dtype, revision, protocol, sampling. Failed rows and stand-in data beside real data are named.
    """
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key in keys:
        labels = store.cell(key)["labels"]
        groups[labels["model"], labels["benchmark"]].append(key)
    findings = []
    for (model, benchmark), members in sorted(groups.items()):
        where = f"{model} {benchmark}"
        findings += _rules(store, members, where) + _prompts(store, members, where)
    return findings


def _rules(store: ResultStore, keys: list[str], where: str) -> list[str]:
    findings = []
    for rule in (*_RULES, "model.chat"):
        values: dict[str, list[str]] = defaultdict(list)
        for key in keys:
            values[str(_get(store.cell(key)["cell"], rule))].append(key[:6])
        if len(values) > 1:
            listed = "; ".join(f"{value}: {', '.join(who)}" for value, who in values.items())
            findings.append(f"{where}: {rule} differs ({listed})")
    return findings


def _prompts(store: ResultStore, keys: list[str], where: str) -> list[str]:
    seen: dict[str, dict[tuple[Any, Any], list[str]]] = defaultdict(lambda: defaultdict(list))
    stand_in: dict[str, set[bool]] = defaultdict(set)
    failed = []
    for key in keys:
        for sample, row in store.read(key).rows.items():
            if row["status"] == "ok":
                mark = (row.get("prompt_hash"), row.get("truncated"))
                seen[sample][mark].append(key[:6])
                stand_in[row["task"]].add(bool(row["meta"].get("stand_in")))
            elif row["status"] != "unsupported_by_model":
                failed.append(f"{where}: {key[:6]} {sample} is {row['status']}")
    differing = [sample for sample, marks in seen.items() if len(marks) > 1]
    findings = failed
    if differing:
        findings.append(
            f"{where}: prompts differ in {len(differing)} samples (first: {differing[0]})"
        )
    mixed = [task for task, kinds in stand_in.items() if len(kinds) > 1]
    if mixed:
        findings.append(f"{where}: stand-in and real data side by side in {', '.join(mixed)}")
    return findings


def _get(values: dict[str, Any], path: str) -> Any:
    for part in path.split("."):
        values = values.get(part, {})
    return values
