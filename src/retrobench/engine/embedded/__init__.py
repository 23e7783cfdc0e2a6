"""The embedded language model: constructed weights and their tokenizer, no download."""

import inspect

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from retrobench.core.cell import text_hash
from retrobench.engine.embedded import constructed
from retrobench.engine.embedded.tokenizer import build_tokenizer

__all__ = ["build_tokenizer", "content_hash", "load_constructed"]


def load_constructed(dtype: torch.dtype) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The constructed model in ``dtype`` and its tokenizer (about two seconds)."""
    tokenizer = build_tokenizer()
    model = constructed.build(tokenizer)
    model.to(dtype=dtype)  # type: ignore[call-arg]
    return model, tokenizer


def content_hash() -> str:
    """Hash of what decides the weights: the builder and the vocabulary."""
    vocabulary = sorted(build_tokenizer().get_vocab().items())
    return text_hash(inspect.getsource(constructed) + repr(vocabulary))
