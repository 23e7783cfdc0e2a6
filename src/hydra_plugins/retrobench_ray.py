"""``hydra/launcher=ray``: a sweep on the workers of a Ray cluster (``retrobench.cli.ray_sweep``).

Hydra finds launchers in the namespace package ``hydra_plugins`` alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class RayConfig:
    """Options of ``hydra.launcher`` with ``hydra/launcher=ray``."""

    _target_: str = "hydra_plugins.retrobench_ray.RayLauncher"
    n_jobs: int = 2  # workers; each keeps its model
    cpus: float = 1  # of a worker: Ray sets OMP_NUM_THREADS to it
    gpus: float = 0  # of a worker: Ray sets CUDA_VISIBLE_DEVICES
    address: str | None = None  # auto: the cluster that this machine is part of; null: this machine
    tries: int = 3  # of a group whose worker dies


class RayLauncher(Launcher):
    """Runs the groups of a sweep on actors."""

    def __init__(
        self, n_jobs: int, cpus: float, gpus: float, address: str | None, tries: int
    ) -> None:
        self.options = {"cpus": cpus, "gpus": gpus, "address": address, "tries": tries}
        self.workers = n_jobs
        self.job: dict[str, Any] = {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what a job needs."""
        self.job = {"context": hydra_context, "function": task_function, "config": config}

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """A return of every job, in order. ValueError without ray."""
        from retrobench.cli import ray_sweep

        return ray_sweep.launch(
            self.job, job_overrides, initial_job_idx, self.workers, **self.options
        )


ConfigStore.instance().store(
    group="hydra/launcher", name="ray", node=RayConfig, provider="retrobench"
)
