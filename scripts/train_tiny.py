"""Train the embedded model from nothing and write its folder: ``python scripts/train_tiny.py``.

Goes on from the checkpoint in ``out`` when it is interrupted. On a GPU (recipe not yet run on one):
``python scripts/train_tiny.py --config-name train_tiny_gpu``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from retrobench.core.cell import digest
from retrobench.core.spec import parse
from retrobench.engine.embedded import build_tokenizer
from retrobench.track.base import make_tracker
from retrobench.training.batches import Encoder
from retrobench.training.export import export
from retrobench.training.loop import Progress, Trainer
from retrobench.training.model import Shape, build
from retrobench.training.plan import TrainConfig, parse_plan

CONF = Path(__file__).resolve().parent.parent / "conf"


def train(raw: dict[str, Any]) -> Path:
    """One run from composed values; returns the folder of the exported model."""
    stages = raw.pop("stages", None)
    shape = parse(Shape, raw.pop("shape", None) or {}, "shape")
    tracker = make_tracker(raw.pop("tracker", None) or {"name": "none"})
    config = parse(TrainConfig, raw, "train")
    plan = parse_plan(config, stages)
    torch.set_num_threads(config.threads)
    tokenizer = build_tokenizer()
    model = build(shape, tokenizer, config.seed).to(config.device)  # type: ignore[arg-type]
    folder = Path(config.out)
    trainer = Trainer(model, Encoder(tokenizer), plan, folder / "checkpoint")
    resumed = trainer.load()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {trainer.total_steps} steps, checkpoint in {folder}")
    if resumed:
        print(f"going on from step {trainer.step}")
    settings = {**raw, "shape": dataclasses.asdict(shape), "stages": stages}
    tracker.start(digest(settings), "train_tiny", settings, "training")

    def report(progress: Progress) -> None:
        values = {
            "step": progress.step,
            "tokens": progress.tokens,
            "loss": round(progress.loss, 4),
            "tokens_per_s": round(progress.tokens_per_s),
            **{f"accuracy/{name}": round(acc, 3) for name, acc in progress.accuracy.items()},
        }
        with (folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(values) + "\n")
        tracker.log(values)
        right = " ".join(f"{name} {acc:.2f}" for name, acc in progress.accuracy.items())
        print(
            f"{progress.step:>6}/{trainer.total_steps} {progress.tokens / 1e6:6.2f}M tokens "
            f"loss {progress.loss:.3f} {progress.tokens_per_s:6.0f} tok/s | {right}",
            flush=True,
        )

    folder.mkdir(parents=True, exist_ok=True)
    trainer.run(report)
    size = export(model, tokenizer, folder / "model")
    tracker.finish({"steps": trainer.step, "tokens": trainer.tokens}, [], None)
    print(f"{folder / 'model'}: {size / 1e6:.1f} MB of weights")
    print(f"try it: python run.py model=local model.path={folder / 'model'} method=full task=ruler")
    return folder / "model"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train_tiny")
def main(config: DictConfig) -> None:
    """Exit code 2 with one line for a wrong option."""
    raw: Any = OmegaConf.to_container(config, resolve=True)
    raw.pop("mix", None)
    try:
        train(raw)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def prepare(arguments: list[str]) -> list[str]:
    """Overrides as Hydra wants them: the yaml holds only what differs from the typed defaults."""
    typed = tuple(f"{field.name}=" for field in dataclasses.fields(TrainConfig))
    return [f"++{a}" if a.startswith((*typed, "shape.", "tracker.")) else a for a in arguments]


if __name__ == "__main__":
    sys.argv[1:] = prepare(sys.argv[1:])
    main()
