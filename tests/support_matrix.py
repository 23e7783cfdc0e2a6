"""Which decoder families of the installed transformers are right, tried on small random models.

Every family goes through the look that a run takes first (``engine.traits``). Those that pass it
are compared once more with transformers' own forward, teacher-forced: full attention in one chunk,
in chunks and in a left-padded batch, and three methods whose budget covers everything, on a prompt
that is long enough for an index. ``make matrix`` writes the table of docs/models.md.

python -m tests.support_matrix              # all, about ten minutes on one core
python -m tests.support_matrix llama phi3   # these, to the terminal alone
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from retrobench.core.budget import Budget
from retrobench.core.method import Needs
from retrobench.core.registry import method_class
from retrobench.core.spec import parse
from retrobench.engine import hf, small_model, trial
from retrobench.engine.prefill import prefill
from retrobench.engine.session import Session
from retrobench.engine.traits import Seen, Traits, examine
from retrobench.measure.clock import utc_now

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
MARK = "<!-- made by `make matrix` -->"

LONG = 1400  # tokens: RetroInfer clusters prompts of 1,092 tokens and more
METHODS = ("retroinfer", "quest", "oracle_topk")
MODES = ("full", "chunks", "batch", *METHODS)

_LINEAR = ["linear_attention", "full_attention"] * 2
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "granitemoehybrid": {"layer_types": _LINEAR, "num_hidden_layers": 4},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "ministral": {"head_dim": 128, "layer_types": ["full_attention"] * 32},
    "mistral": {"sliding_window": None},
    "nemotron": {"num_key_value_heads": 8},
}
"""What a default config lacks: families not named here are tried as they come."""

_YARN = {**_ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
_LLAMA3 = {
    **_ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
_LONGROPE = {
    **_ROPE, "rope_type": "longrope", "short_factor": [1.0 + i / 60 for i in range(48)],
    "long_factor": [1.5 + i / 10 for i in range(48)], "original_max_position_embeddings": 4096,
}  # fmt: skip
_DYNAMIC = {**_ROPE, "rope_type": "dynamic", "factor": 2.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, 9 query and 3 KV heads": (
        "llama", {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    ),
    "llama, llama3 rope": ("llama", {"rope_parameters": _LLAMA3}),
    "llama, dynamic NTK": ("llama", {"rope_parameters": _DYNAMIC}),
    "qwen2, YaRN": ("qwen2", {"rope_parameters": _YARN}),
    "qwen2, some layers sliding": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 2}
    ),
    "phi3, longrope": ("phi3", {"rope_parameters": _LONGROPE, "max_position_embeddings": 131072}),
    "phi3, window as long as the context": ("phi3", {"sliding_window": 4096}),
    "mistral, window that binds": ("mistral", {"sliding_window": 4096}),
}  # fmt: skip
"""Configurations that differ from a family's default in how attention is computed."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of a family: right, refused (by cause), wrong, error, or not built.

    ``differences`` are the largest of each mode, in standard deviations of the reference's logits.
    """

    family: str
    outcome: str
    cause: str = ""
    differences: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def names() -> list[str]:
    """Every family that ``AutoModelForCausalLM`` knows, then the variants."""
    return [*sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), *VARIANTS]


def try_family(name: str) -> Outcome:
    """Look at one family, or variant; nothing is raised."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        try:
            model = _build(name)
        except Exception as error:
            return Outcome(family=name, outcome="not built", cause=_words(error))
        seen = Seen()
        found = examine(model, seen)
        if found.refusal or found.untried:
            kind = "refused" if found.refusal else "untried"
            return Outcome(family=name, outcome=kind, cause=found.refusal or found.untried)
        return _compared(name, found, seen)
    except Exception as error:
        return Outcome(family=name, outcome="error", cause=_words(error))
    finally:
        logging.set_verbosity(level)


def _build(name: str) -> PreTrainedModel:
    """The architecture on the meta device."""
    kind, fields = VARIANTS.get(name, (name, OVERRIDES.get(name, {})))
    config = CONFIG_MAPPING[kind](**fields)
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _compared(name: str, found: Traits, seen: Seen) -> Outcome:
    """The look's own differences, and those of methods on a long prompt."""
    made = Outcome(family=name, outcome="right", differences=dict(seen.differences))
    copied: Any = seen.copied
    copied.traits, copied.whole_prompt = found, found.whole_prompt
    if found.whole_prompt:
        made.notes.append("prompt in one chunk")
        del made.differences["chunks"]
    if found.equal_rows:
        made.notes.append("one row at a time")
        made.differences.pop("batch", None)
    prompts, answers = trial.texts((LONG,), trial.ANSWER, small_model.VOCABULARY)
    try:
        limit = max(seen.allowed, trial.allowed(copied, prompts, answers, most=0.5))
    except (IndexError, RuntimeError):
        made.notes.append(f"no {LONG} tokens")
        return made
    if limit > trial.RIGHT:
        made.notes.append(f"transformers' own attentions differ by {limit / 3:.0e}")
    expected = trial.own_logits(copied, prompts, answers)
    for again in (False, True):
        if again:  # recurrent layers that decode a little apart from their own forward
            expected = trial.own_decoded(copied, prompts, answers)
        found_now = _long(copied, prompts, answers, expected)
        if max(found_now.values()) < limit:
            break
    made.differences |= found_now
    if max(made.differences.values()) >= limit:
        made.outcome = "wrong"
    return made


@torch.inference_mode()
def _long(
    copied: PreTrainedModel,
    prompts: list[list[int]],
    answers: list[list[int]],
    expected: list[torch.Tensor],
) -> dict[str, float]:
    """Differences of each method on one prefilled prompt."""
    hf.attach(copied)
    classes = [method_class(method) for method in METHODS]
    needs, new_tokens = reduce(Needs.__or__, (m.needs for m in classes)), len(answers[0])
    prompt = prefill(
        copied, prompts, clock=_no_clock, needs=needs, chunk_tokens=512, room=new_tokens
    )
    differences = {}
    for method in classes:
        session = Session(
            copied, method, parse(method.Config, {}, "method"), prompt,
            max_new_tokens=new_tokens, clock=_no_clock, budget=Budget.parse("100%"),
            last_use=False,
        )  # fmt: skip
        session.build()
        with session:
            ours = trial.teacher_forced_logits(session, answers)
        differences[method.name] = trial.difference(expected, ours)
    return differences


def _no_clock() -> float:
    return 0.0


def _words(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def table(outcomes: list[Outcome]) -> str:
    """A Markdown table, and the refusals below it."""
    lines = [
        f"| family | {' | '.join(MODES)} | notes |",
        f"|---|{'---|' * len(MODES)}---|",
    ]
    for made in outcomes:
        if not made.differences:
            continue
        cells = [_cell(made, mode) for mode in MODES]
        notes = [*(["**wrong**"] if made.outcome == "wrong" else []), *made.notes]
        lines.append(f"| {made.family} | {' | '.join(cells)} | {', '.join(notes)} |")
    lines += ["", "| family | not served, because |", "|---|---|"]
    lines += [
        f"| {made.family} | {made.outcome}: {made.cause.replace('|', '/')} |"
        for made in outcomes
        if not made.differences
    ]
    return "\n".join(lines)


def _cell(made: Outcome, mode: str) -> str:
    value = made.differences.get(mode)
    return "" if value is None else f"{value:.0e}"


def counted(outcomes: list[Outcome]) -> str:
    """``n right, n refused ...``"""
    kinds: dict[str, int] = {}
    for made in outcomes:
        kinds[made.outcome] = kinds.get(made.outcome, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def try_all(wanted: list[str], report: Callable[[Outcome], None]) -> list[Outcome]:
    """Outcomes of families, each reported when it is known."""
    outcomes = []
    for name in wanted:
        outcomes.append(try_family(name))
        report(outcomes[-1])
    return outcomes


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    outcomes = try_all(wanted or names(), _report)
    found = table(outcomes)
    print(found, counted(outcomes), sep="\n\n")
    if not wanted:
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        words = f"{utc_now()[:10]}, {versions}, `make matrix`: {counted(outcomes)}."
        kept = PAGE.read_text(encoding="utf-8").split(MARK)[0]
        PAGE.write_text(f"{kept}{MARK}\n\n{words}\n\n{found}\n", encoding="utf-8")


def _report(made: Outcome) -> None:
    far = max(made.differences.values(), default=0)
    print(f"{made.family}: {made.outcome} {far:.1e} {made.cause}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
