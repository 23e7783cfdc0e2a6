"""Decode steps of full attention, recorded once and replayed through RetroInfer by the studies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from retrobench_methods.full import Full
from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig
from torch import Tensor

from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.engine import loader
from retrobench.engine.session import open_session
from retrobench.measure.probe import CountingProbe
from retrobench.run.spec import parse_run
from retrobench.tasks.prompt import PromptBuilder

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "results" / "published"
Step = tuple[Tensor, Tensor, Tensor]  # q, k, v of a decode step
OnStep = Callable[[RetroInfer, Step, Tensor], None]  # method, step, its output


@dataclass
class Recording:
    """One layer: a prompt and the decode steps after it."""

    shape: KVShape
    prompt: PromptLayer
    steps: list[Step]


class Recorder(Full):
    """Full attention that keeps what it saw."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.prompts: dict[int, PromptLayer] = {}
        self.steps: dict[int, list[Step]] = {layer: [] for layer in self.shape.layers}

    def build(self, layer: int, prompt: PromptLayer) -> None:
        """Keep the prompt."""
        self.prompts[layer] = dataclasses.replace(prompt, memory=None)
        super().build(layer, prompt)

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Keep the step and attend."""
        self.steps[layer].append((q_BHTD.clone(), k_BGTD.clone(), v_BGTD.clone()))
        return super().decode(layer, q_BHTD, k_BGTD, v_BGTD, args)


@torch.inference_mode()
def record(model: str, task: str, length: int, steps: int) -> list[Recording]:
    """Every layer of a RULER prompt whose last ``steps`` tokens are decoded."""
    overrides = [f"model={model}", f"++task.tasks=[{task}]", f"++task.length={length}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        raw = OmegaConf.to_container(
            compose("config", [*overrides, "++task.samples=1"]), resolve=True
        )
    assert isinstance(raw, dict)
    raw.pop("hydra", None)
    spec = parse_run(raw)
    loaded = loader.resident(spec.model)
    prompt = PromptBuilder(loaded.tokenizer, chat=spec.model.chat)
    ids = prompt.encode(next(iter(spec.make_task().samples(prompt))), max_prompt_tokens=None).ids
    options = {"max_new_tokens": 1, "tail_tokens": steps, "clock": lambda: 0.0}
    with open_session(loaded.model, Recorder, Recorder.Config(), [ids], **options) as session:
        session.feed(session.ids_BS[:, session.length :])
        shape = dataclasses.replace(
            session.shape, layers=(0,), prompt_tokens=len(ids) - steps, max_tokens=len(ids)
        )
        kept = session.method
        assert isinstance(kept, Recorder)
        return [Recording(shape, kept.prompts[n], kept.steps[n]) for n in session.layers]


@torch.inference_mode()
def replay(
    recording: Recording, options: dict[str, Any], probe: CountingProbe, on_step: OnStep
) -> dict[str, Any]:
    """A layer's recorded steps through RetroInfer with these options; its fields for a row."""
    method = RetroInfer(RetroInferConfig(**options), recording.shape, probe)
    method.build(0, recording.prompt)
    method.finish_build()
    for step in recording.steps:
        method.begin_step()
        out = method.decode(0, *step, recording.prompt.args)
        method.end_step()
        on_step(method, step, out)
    method.report_counts()
    assert not probe.missing((0,), len(recording.steps))
    found = dict(method.stats())
    method.close()
    return found
