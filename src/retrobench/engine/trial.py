"""Tries an architecture: transformers' own forward beside ours, teacher-forced, on a small model.

The reference is one forward over prompt and answer, row by row, with transformers' own attention.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from retrobench.core.method import Method
from retrobench.engine import hf
from retrobench.engine.attention.dense import DenseMethod
from retrobench.engine.session import Session, open_session

PROMPTS = (61, 23, 45)  # tokens; with the answer: beyond, below and across the trained window
ANSWER = 6
RIGHT = 0.01  # standard deviations of the reference's logits; rounding mostly stays below 0.002
MOST = 0.05  # where rounding is larger (Gemma 3n)


def texts(
    lengths: Sequence[int], answer: int, vocabulary: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Random prompts and answers, the same for the same sizes; special ids left out."""
    generator = torch.Generator().manual_seed(5)

    def draw(tokens: int) -> list[int]:
        return torch.randint(3, vocabulary, (tokens,), generator=generator).tolist()

    return [draw(length) for length in lengths], [draw(answer) for _ in lengths]


@torch.inference_mode()
def own_logits(
    model: PreTrainedModel,
    prompts: list[list[int]],
    answers: list[list[int]],
    implementation: str = "eager",
) -> list[Tensor]:
    """Logits ``TV`` of the model's own attention for each row alone.

    Rows go by length: a dynamic rope grows its factors and would keep those of a longer row.
    """
    model.set_attn_implementation(implementation)
    found: dict[int, Tensor] = {}
    for row in sorted(range(len(prompts)), key=lambda row: len(prompts[row])):
        ids = torch.tensor([prompts[row] + answers[row]])
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
        found[row] = logits[len(prompts[row]) - 1 :]
    return [found[row] for row in range(len(prompts))]


@torch.inference_mode()
def own_decoded(
    model: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]]
) -> list[Tensor]:
    """The same as ``generate`` finds them: a prefill, then token by token.

    Some recurrent layers of transformers decode a little apart from their own forward.
    """
    model.set_attn_implementation("eager")
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        cache, logits = DynamicCache(config=model.config), []
        for ids in (prompt, *([token] for token in answer)):
            output = model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
            logits.append(output.logits[0, -1].float())
        found.append(torch.stack(logits))
    return found


@torch.inference_mode()
def our_logits(
    model: PreTrainedModel,
    prompts: list[list[int]],
    answers: list[list[int]],
    method: type[Method] = DenseMethod,
    config: Any = None,
    **options: Any,
) -> list[Tensor]:
    """The same through a session; ``options`` are those of ``open_session``."""
    hf.attach(model)
    session = open_session(
        model, method, config, prompts,
        max_new_tokens=len(answers[0]), clock=lambda: 0.0, **options,
    )  # fmt: skip
    with session:
        return teacher_forced_logits(session, answers)


@torch.inference_mode()
def teacher_forced_logits(session: Session, answers: list[list[int]]) -> list[Tensor]:
    """Logits ``TV`` of each row: after the prompt, then after each given token."""
    found = [session.logits.clone()]
    found += [logits.clone() for logits in session.teacher_forced(torch.tensor(answers))]
    session.report_counts()
    return list(torch.stack(found, 1))


@torch.inference_mode()
def allowed(
    model: PreTrainedModel,
    prompts: list[list[int]],
    answers: list[list[int]],
    most: float = MOST,
) -> float:
    """How far right logits may be apart: a few times what two attentions of transformers are."""
    rows = prompts[:1], answers[:1]
    try:
        other = own_logits(model, *rows, implementation="sdpa")
    except ValueError:  # it has one attention
        return RIGHT
    return min(most, max(RIGHT, 3 * difference(own_logits(model, *rows), other)))


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest difference, in standard deviations of what was expected."""
    pairs = zip(expected, found, strict=True)
    return max(float((b - a).abs().max() / a.std()) for a, b in pairs)
