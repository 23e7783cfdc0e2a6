"""A sweep on the workers of Ray: groups of cells that share a prefill, one at a time on each.

A worker is an actor. It stays for the whole sweep, so the model that it loaded is there for its
next group, and it is given groups of that model first. If a worker dies (killed, out of memory, its
machine lost), a new one takes its place, and its group runs again: finished samples are on disk,
and the lock of a cell died with the process that held it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from omegaconf import open_dict

from retrobench.cli import units
from retrobench.core.cell import digest
from retrobench.core.words import first_line


@dataclass(slots=True, kw_only=True)
class Group:
    """A unit of the sweep: its leading job, what that was asked for, and whose model it needs."""

    number: int
    overrides: tuple[str, ...]
    model: str
    deaths: int = 0


@dataclass(slots=True, kw_only=True)
class Worker:
    """An actor, and the model that it loaded last."""

    actor: Any
    model: str = ""


def launch(
    job: Mapping[str, Any],
    overrides: Sequence[Sequence[str]],
    first: int,
    workers: int,
    *,
    cpus: float,
    gpus: float,
    address: str | None,
    tries: int,
) -> list[JobReturn]:
    """Run the jobs of a sweep; a return of each, in order. ValueError without ray or workers.

    Only jobs that lead a group go to workers. The others have nothing to do.
    """
    for name, value in (("n_jobs", workers), ("cpus", cpus), ("tries", tries)):
        if value <= 0:
            raise ValueError(f"hydra.launcher.{name}={value}: give a number above 0")
    try:
        import ray
    except ImportError as error:
        raise ValueError("hydra/launcher=ray needs ray: pip install 'retrobench[ray]'") from error
    setup_globals()
    groups = _groups(Path(str(job["config"].hydra.sweep.dir)), overrides, first)
    started = not ray.is_initialized()
    if started:
        here = {} if address else {"num_cpus": ceil(workers * cpus)}
        here |= {"num_gpus": ceil(workers * gpus)} if gpus and not address else {}
        ray.init(address, include_dashboard=False, logging_level="warning", **here)
    try:
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_Actor)
        state = Singleton.get_state()
        returns = schedule(groups, workers, tries, lambda: actor.remote(dict(job), state))
    finally:
        if started:
            ray.shutdown()
    empty = JobReturn(status=JobStatus.COMPLETED)
    return [returns.get(first + n, empty) for n in range(len(overrides))]


def schedule(
    groups: Sequence[Group], workers: int, tries: int, make_actor: Callable[[], Any]
) -> dict[int, JobReturn]:
    """Give groups to workers until all ran, or died ``tries`` times with their workers.

    Returns of the leading jobs by number; none of a group that was given up.
    """
    import ray

    waiting, running = list(groups), {}
    returns: dict[int, JobReturn] = {}
    idle = [Worker(actor=make_actor()) for _ in range(min(workers, len(waiting)))]
    while waiting or running:
        while waiting and idle:
            worker = idle.pop()
            group = _next(waiting, worker.model)
            worker.model = group.model
            running[worker.actor.run.remote(group.number, group.overrides)] = worker, group
        (done, *_), _ = ray.wait(list(running))
        worker, group = running.pop(done)
        try:
            returns[group.number] = ray.get(done)
        except ray.exceptions.RayActorError as error:
            group.deaths += 1
            again = group.deaths < tries
            what = "its group runs again" if again else "its group is given up"
            _say(f"a worker died ({first_line(error)}): {what}, job {group.number}")
            waiting += [group] if again else []
            worker = Worker(actor=make_actor())
        idle.append(worker)
    return returns


def _groups(folder: Path, overrides: Sequence[Sequence[str]], first: int) -> list[Group]:
    """The leading jobs, those of the model that most groups need first."""
    found = []
    for number, own in enumerate(overrides, first):
        unit = units.find(folder, number)
        if unit is not None and unit.jobs[0] != number:
            continue
        asked = unit.configs[0] if unit is not None else {}
        model = digest(asked.get("model") or {})
        found.append(Group(number=number, overrides=tuple(own), model=model))
    counts = Counter(group.model for group in found)
    return sorted(found, key=lambda group: -counts[group.model])


def _next(waiting: list[Group], model: str) -> Group:
    """The first group of a model, or of any."""
    index = next((i for i, group in enumerate(waiting) if group.model == model), 0)
    return waiting.pop(index)


class _Actor:
    """A worker process."""

    def __init__(self, job: dict[str, Any], state: dict[Any, Any]) -> None:
        setup_globals()
        Singleton.set_state(state)
        self.job = job

    def run(self, number: int, overrides: Sequence[str]) -> JobReturn:
        """Run a job as Hydra's own launcher does; an exit becomes an error of the job."""
        context, config = self.job["context"], self.job["config"]
        sweep = context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(sweep):
            sweep.hydra.job.id, sweep.hydra.job.num = f"job_{number}", number
        HydraConfig.instance().set_config(sweep)
        try:
            return run_job(
                hydra_context=context,
                config=sweep,
                task_function=self.job["function"],
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        except SystemExit as stop:  # would end the worker
            failed = JobReturn(status=JobStatus.FAILED)
            failed.return_value = RuntimeError(f"job {number} exited with code {stop.code}")
            return failed


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
