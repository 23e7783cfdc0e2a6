"""The embedded language model: constructed weights and a tokenizer, no download, no training.

It looks things up in long contexts written with RULER's templates and does nothing else.
"""

from __future__ import annotations

import hashlib

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from retrobench.engine.embedded.rope import MAX_TOKENS
from retrobench.engine.embedded.tokenizer import build_tokenizer

__all__ = ["MAX_TOKENS", "SUPPORTED_TASKS", "build_tokenizer", "content_hash", "load_constructed"]

SUPPORTED_TASKS: frozenset[str] = frozenset(
    {
        "niah_single_1",
        "niah_single_2",
        "niah_single_3",
        "niah_multikey_1",
        "niah_multikey_2",
        "niah_multikey_3",
        "niah_multivalue",
        "niah_multiquery",
        "vt",
    }
)
"""RULER sub-tasks that the model answers under full attention."""


def load_constructed(
    dtype: torch.dtype = torch.float32,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Model (CPU, evaluation mode) and tokenizer, built in memory."""
    from retrobench.engine.embedded.alphabet import Alphabet
    from retrobench.engine.embedded.build import build_model

    tokenizer = build_tokenizer()
    return build_model(Alphabet(tokenizer), dtype), tokenizer
