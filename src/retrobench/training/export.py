"""From a checkpoint to a folder that ``model=local`` or ``model=tiny`` loads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2ForCausalLM


def export(model: Qwen2ForCausalLM, tokenizer: Any, folder: Path) -> int:
    """Write bfloat16 safetensors, config and tokenizer; returns the bytes of the weights."""
    stored = copy.deepcopy(model).to(torch.bfloat16)  # type: ignore[arg-type]
    stored.config._attn_implementation = "sdpa"
    stored.config.dtype = torch.bfloat16
    stored.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size
