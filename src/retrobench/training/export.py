"""From a checkpoint to a folder that ``model=local`` or ``model=tiny`` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2ForCausalLM


def export(model: Qwen2ForCausalLM, tokenizer: Any, folder: Path) -> int:
    """Write bfloat16 safetensors, config and tokenizer; returns the bytes of the weights.

    The folder holds the same network as a Llama with attention biases (that of the output is zero):
    for Qwen2, transformers 5 puts that family's own tokenizer in place of the stored one.
    """
    values = model.config.to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    names += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    names += ("rope_parameters", "rms_norm_eps", "tie_word_embeddings")
    names += ("bos_token_id", "eos_token_id", "pad_token_id")
    config = LlamaConfig(**{name: values[name] for name in names}, attention_bias=True)
    stored = LlamaForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]
    missing, unexpected = stored.load_state_dict(model.state_dict(), strict=False)
    wrong = [name for name in missing if not name.endswith("o_proj.bias")] + list(unexpected)
    if wrong:
        raise ValueError(f"the model does not fit the exported form: {', '.join(wrong)}")
    for layer in stored.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.bias)  # type: ignore[union-attr]
    stored.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return (folder / "model.safetensors").stat().st_size
