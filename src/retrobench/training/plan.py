"""Options of a training run, checked one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retrobench.core.spec import nearest, option, parse
from retrobench.training.families import FAMILIES


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Top-level options of ``scripts/train_tiny.py``."""

    out: str = option("results/tiny", "folder for checkpoint, log and exported model")
    seed: int = option(0, "seed of the weights and of every batch", low=0)
    device: str = option("cpu", "cpu, cuda, cuda:0 ...")
    dtype: str = option(
        "float32",
        "autocast; bfloat16 only where the device computes in it",
        choices=("float32", "bfloat16"),
    )
    threads: int = option(1, "CPU threads of torch", low=1)
    negatives: int = option(2000, "random words in the softmax beside the batch's own", low=1)
    align: float = option(
        1.0, "weight of the term that turns queries towards the keys they find", low=0
    )
    weight_decay: float = option(0.05, "of matrices, not of norms and biases", low=0)
    clip: float = option(1.0, "largest norm of the gradient", above=0)
    checkpoint_steps: int = option(100, "steps between checkpoints", low=1)
    log_steps: int = option(25, "steps between lines of the log", low=1)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """``steps`` optimiser steps on one mix; the learning rate goes linearly to ``lr_end``."""

    steps: int = option(0, "optimiser steps", low=1)
    rows: int = option(1, "samples per step", low=1)
    tokens: int = option(512, "tokens per sample", low=64)
    lr: float = option(8e-4, "learning rate at the start", above=0)
    lr_end: float = option(8e-4, "learning rate at the end", above=0)
    mix: Mapping[str, float] = dataclasses.field(default_factory=dict)  # weight of each family


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides a run beside the model's shape."""

    config: TrainConfig
    stages: tuple[Stage, ...]


def parse_plan(config: TrainConfig, stages: Any) -> Plan:
    """Typed stages from plain values; ValueError names the stage and the option at fault."""
    if not stages:
        raise ValueError("stages: at least one is needed (see conf/train_tiny.yaml)")
    parsed = []
    for number, raw in enumerate(stages):
        where = f"stages[{number}]"
        mix = dict(raw.get("mix") or {})
        for name, weight in mix.items():
            if name not in FAMILIES:
                known = ", ".join(FAMILIES)
                raise ValueError(
                    f"{where}.mix.{name}: no such family{nearest(name, FAMILIES)} Families: {known}"
                )
            if not isinstance(weight, (int, float)) or weight < 0:
                raise ValueError(f"{where}.mix.{name} must be a number >= 0, got {weight!r}")
        if not any(mix.values()):
            raise ValueError(f"{where}.mix: give at least one family a weight above 0")
        rest = {name: value for name, value in raw.items() if name != "mix"}
        parsed.append(dataclasses.replace(parse(Stage, rest, where), mix=mix))
    return Plan(config=config, stages=tuple(parsed))
