"""``full`` in the harness answers as transformers' own greedy generation, token for token."""

from __future__ import annotations

import os

import pytest
import torch
from transformers import AutoModelForCausalLM

from retrobench.engine.loader import ModelConfig, load
from retrobench.fetch import models
from tests.support import greedy_logits, open_on

PROMPTS = int(os.environ.get("GREEDY_PROMPTS", "2"))  # 20 is the long form
ANSWER = 8  # tokens
TEXT = "The harbour lies north of the old town. Ships wait there for the tide, and {} for bread. "


def prompts(tokenizer):
    """Of different length, about 300 tokens each."""
    texts = [
        "".join(TEXT.format(f"{7 * i + j} people wait") for j in range(12 + i % 3))
        for i in range(PROMPTS)
    ]
    return [tokenizer(f"{text}At the harbour,")["input_ids"] for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "gemma3_270m"])
@torch.inference_mode()
def test_full_equals_generate(name):
    if models.read_manifest(models.models_root() / name) is None:
        pytest.skip(f"needs `retrobench fetch {name}`")
    loaded = load(ModelConfig(source="fetched", id=name, device="cpu", dtype="float32"))
    folder, _ = models.fetched(name)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = prompts(loaded.tokenizer)
    wanted = []
    for ids in asked:
        answer = reference.generate(
            torch.tensor([ids]),
            max_new_tokens=ANSWER,
            min_new_tokens=ANSWER,
            do_sample=False,
        )
        wanted.append(answer[0, len(ids) :].tolist())
    for batch in (1, 2):  # alone; then left-padded pairs; both in chunks
        for first in range(0, PROMPTS, batch):
            rows = asked[first : first + batch]
            session = open_on(loaded.model, "full", rows, new_tokens=ANSWER, chunk_tokens=128)
            found = greedy_logits(session, ANSWER).argmax(-1).T.tolist()
            session.close()
            assert found == wanted[first : first + batch]
