"""Prompts of a trace: RULER's while it is recorded, those of its manifest in a replay."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retrobench.core import traces
from retrobench.core.paths import check_output
from retrobench.core.spec import choice, option
from retrobench.core.task import Prompt, Sample, Task
from retrobench.tasks.ruler import RulerTask


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """Options of ``task=trace``."""

    path: str = option(
        "results/traces/trace", "folder of the trace, or a name of `retrobench traces`"
    )
    replay: bool = option(False, "run the recorded prompts (model=trace:PATH sets it)")
    tasks: tuple[str, ...] = option(
        ("niah_multikey_2", "vt", "cwe"), "RULER sub-tasks whose prompts are recorded"
    )
    length: tuple[int, ...] = option((4096,), "context lengths in tokens", low=512)
    samples: int = option(1, "prompts per sub-task and length", low=1)
    seed: int = option(42, "seed of the prompts", low=0)
    steps: int = option(32, "decode steps recorded, at most", low=2)
    layers: tuple[int, ...] = option(
        (), "layers recorded, e.g. [4,14]; none: all with full attention", low=0, added=True
    )
    dtype: str = choice(
        ("auto", "float32", "float16", "bfloat16"),
        "dtype of the recording; auto: the model's",
        added=True,
    )


class TraceTask(Task):
    """Recording writes shards, a replay measures fidelity. Nothing is scored."""

    name = "trace"
    Config = TraceConfig
    config: TraceConfig

    @property
    def folder(self) -> Path:
        """Where the trace is."""
        return (
            traces.trace_folder(self.config.path) if self.config.replay else Path(self.config.path)
        )

    def _ruler(self) -> RulerTask:
        c = self.config
        options = RulerTask.Config(tasks=c.tasks, length=c.length, samples=c.samples, seed=c.seed)
        return RulerTask(options, self.data_root)

    def fingerprint(self, prompt: Prompt) -> str:
        """RULER's fingerprint; in a replay, that of the recorded prompts."""
        return prompt.tokenizer_id if self.config.replay else self._ruler().fingerprint(prompt)

    def notes(self) -> tuple[str, ...]:
        """RULER's notes."""
        return () if self.config.replay else self._ruler().notes()

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """The prompts in their fixed order."""
        if not self.config.replay:
            check_output("task.path", self.folder / "manifest.json")
            yield from self._ruler().samples(prompt)
            return
        for recorded in traces.read_manifest(self.folder)["samples"]:
            yield Sample(
                id=recorded["id"],
                task=recorded["task"],
                context=recorded["id"],
                max_new_tokens=len(recorded["ids"]) - recorded["prompt_tokens"] + 1,
                length=recorded["length"],
                meta={"stand_in": recorded["stand_in"]},
            )

    def score(self, sample: Sample, text: str) -> float:
        """Raises ValueError: a trace has no answers."""
        raise ValueError("a trace has no answers to score: use measure=fidelity")
