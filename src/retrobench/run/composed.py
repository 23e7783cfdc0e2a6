"""The form of a composed configuration, checked before anything is read, run or written."""

from collections.abc import Mapping
from typing import Any

from retrobench.core.secrets import refuse_secrets
from retrobench.core.spec import unknown
from retrobench.store.sweeps import check_name

GROUPS = (  # of options
    "model", "method", "task", "protocol", "measure", "engine", "prefill", "tracker", "data",
    "hardware",
)  # fmt: skip
FLAGS = ("results_dir", "dry_run", "retry", "progress")
APART = {*FLAGS, "tracker", "sweep", "experiment", "hydra"}  # what no result depends on
KNOWN = {*GROUPS, *FLAGS, "budget", "match", "reference", "method_options", "sweep", "experiment"}


def check_composed(raw: Mapping[str, Any]) -> None:
    """ValueError naming the option whose value has the wrong form, or is not used."""
    refuse_secrets(raw)
    for group in (*GROUPS, "method_options"):
        _check_options(group, raw.get(group, {}))
    for method, values in (raw.get("method_options") or {}).items():
        _check_options(f"method_options.{method}", {} if values is None else values)
    for name in raw.get("data") or {}:
        if name != "root":
            raise unknown(f"data.{name}", "option", ("root",))
    folder = raw.get("results_dir", "results/runs")
    if not isinstance(folder, str) or not folder.strip():
        shown = "null" if folder is None else folder
        raise ValueError(f"results_dir={shown}: write the path of a folder, e.g. results/runs")
    if raw.get("sweep") is not None:
        check_name(raw["sweep"])
    if raw.get("reference") is not None and raw.get("match") is None:
        raise ValueError(
            f"reference={raw['reference']} is used by match= alone: add match=tokens, pcie, hbm "
            "or gpu_memory, or leave it out"
        )


def _check_options(group: str, values: Any) -> None:
    if not isinstance(values, Mapping):
        shown = "null" if values is None else values
        raise ValueError(f"{group}={shown}: write options, {group}.OPTION=VALUE (docs/options.md)")


def given_label(raw: Mapping[str, Any]) -> str:
    """Model, method and task of a run whose options could not be read."""
    model, method, task = (raw.get(group, {}) for group in ("model", "method", "task"))
    known = map(model.get, ("name", "path", "id", "source"))  # model=local and model=hf: no name
    name = next((str(value) for value in known if value), "?")
    return f"{name} {method.get('name')} {task.get('name')}"
