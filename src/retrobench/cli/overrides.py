"""Command-line overrides: checked, and rewritten into what Hydra wants."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from retrobench.core.cell import digest
from retrobench.core.registry import method_names
from retrobench.core.secrets import refuse_secrets
from retrobench.core.spec import unknown
from retrobench.run.composed import GROUPS
from retrobench.store.sweeps import check_name

KEPT = "finished samples are kept in the results folder; the same command goes on with the rest"
CONF = Path(__file__).resolve().parents[3] / "conf"
_UNNAMED = ("model", "engine", "data", "hardware")  # whose name is an option like others
_NAMES = {f"{group}.name" for group in GROUPS if group not in _UNNAMED}


def name_sweep(arguments: list[str]) -> list[str]:
    """Adds ``sweep=NAME`` to a multirun without one: the same for the same question asked again.

    ``-m`` comes first, wherever it stood: Hydra's parser wants the overrides side by side.
    """
    flags = [argument for argument in arguments if argument in ("-m", "--multirun")]
    arguments = [*flags, *(argument for argument in arguments if argument not in flags)]
    given = [argument.partition("=")[2] for argument in arguments if _is_sweep(argument)]
    for name in given:
        check_name(name.strip("'\""))
    if given or not flags:
        return arguments
    aside = ("-", "experiment=", "hydra", "results_dir=", "++tracker", "tracker=")
    aside += ("progress=", "retry=", "dry_run=")
    asked = sorted(argument for argument in arguments if not argument.startswith(aside))
    chosen = [a.removeprefix("experiment=") for a in arguments if a.startswith("experiment=")]
    name = re.sub(r"[^\w-]", "-", chosen[0]) if chosen else "sweep"
    return [*arguments, f"sweep={name}-{digest(asked, 6)}" if asked else f"sweep={name}"]


def _is_sweep(argument: str) -> bool:
    return argument.lstrip("+").startswith("sweep=")


def prepare(arguments: Sequence[str], conf_dir: Path = CONF) -> list[str]:
    """Command-line overrides as Hydra wants them.

    Options of groups become ``++group.option`` because the yaml files hold only what differs
    from the defaults (the dataclasses check names and ranges). Unknown choices of a group raise
    ValueError with the nearest name. Methods of other packages need no yaml.
    """
    store = ConfigStore.instance()
    for name in method_names():
        if not (conf_dir / "method" / f"{name}.yaml").exists():
            store.store(group="method", name=name, node={"name": name})
    prepared = []
    refuse_secrets({name.lstrip("+~"): value for name, value in _pairs(arguments)})
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.lstrip("+") in _NAMES:
            group = name.lstrip("+").removesuffix(".name")
            raise ValueError(f"{argument}: a name alone changes no {group}; write {group}={value}")
        if name == "measure" and set(value.split(",")) == {"score", "fidelity"}:
            prepared += ["measure=fidelity", "++measure.score=true"]  # one cell, not a sweep of two
            continue
        if name == "model" and value.startswith("trace:"):
            prepared += _replay(value.removeprefix("trace:"), arguments)
            continue
        if equals and re.match(rf"({'|'.join(GROUPS)})\.|method_options(\.|$)", name):
            argument = "++" + argument
        elif equals and (conf_dir / name).is_dir():
            _check_choices(name, value, conf_dir)
        elif equals and re.fullmatch(r"[a-z_]+(\.\w+)*", name):
            _check_option(name, conf_dir)
        prepared.append(argument)
    return prepared


def composed(arguments: Sequence[str], conf_dir: Path = CONF) -> dict[str, Any]:
    """What run.py would compose of these overrides, outside of a Hydra job."""
    try:
        with initialize_config_dir(str(conf_dir), version_base="1.3"):
            config = compose("config", prepare(arguments, conf_dir))
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """An error of Hydra, OmegaConf or the system, and what caused it, as one line."""
    if isinstance(error, OSError) and error.strerror:
        if error.filename is None:  # the file was open already
            return f"{error.strerror}; {KEPT}"
        return f"{error.filename}: {error.strerror}; check its rights and the free space"
    texts = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
    return "; ".join(dict.fromkeys(line.strip() for line in "\n".join(texts).splitlines() if line))


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for argument in arguments:
        name, _, value = argument.partition("=")
        yield name, value


def _check_option(name: str, conf_dir: Path) -> None:
    """ValueError for a name that neither the configuration nor Hydra knows."""
    groups = {path.name for path in conf_dir.iterdir() if path.is_dir()}
    config = OmegaConf.load(conf_dir / "config.yaml")
    assert isinstance(config, DictConfig)
    known = sorted(({str(key) for key in config} | groups) - {"defaults"})
    if name.partition(".")[0] not in known:
        raise unknown(name, "option", known)


def _replay(path: str, arguments: Sequence[str]) -> list[str]:
    """``model=trace:PATH``: the recorded prompts, and fidelity unless a measure was asked for.

    Several paths, with commas between them, are a sweep over traces.
    """
    groups = {argument.partition("=")[0] for argument in arguments}
    paths = ",".join(one.removeprefix("trace:") for one in path.split(","))
    more = ["model=trace", f"++model.path={paths}", "++task.path=${model.path}"]
    more += ["++task.replay=true"]
    more += [] if "task" in groups else ["task=trace"]
    return more + ([] if "measure" in groups else ["measure=fidelity"])


def _check_choices(group: str, value: str, conf_dir: Path) -> None:
    known = {path.stem for path in (conf_dir / group).glob("*.yaml")}
    if group == "method":
        known |= set(method_names())
    if any(mark in value for mark in "(){}[]"):
        return  # Hydra's own sweep syntax
    for choice in value.split(","):
        optional = choice == "null" and group in ("experiment", "local")
        if choice and not optional and choice.strip() not in known:
            raise unknown(f"{group}={choice}", group, sorted(known))
