"""A small GGUF file with random weights, as llama.cpp would write it."""

from __future__ import annotations

import gguf
import numpy as np

BYTES = [chr(code) for code in range(ord("!"), ord("~") + 1)] + ["Ġ", "Ċ"]
SPECIAL = ["<|end|>", "<|turn|>"]
TEMPLATE = "{% for m in messages %}<|turn|>{{ m['content'] }}{% endfor %}<|turn|>"
HIDDEN, HEADS, KV_HEADS, LAYERS, INNER = 64, 4, 2, 2, 96


Q8_0 = gguf.GGMLQuantizationType.Q8_0


def write_gguf(
    path, *, architecture="llama", pre="gpt-2", kind=Q8_0, scaling=None, rope_freqs=None
):
    """Write a llama of two layers; matrices are quantised as ``kind``."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, value in (scaling or {}).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
        add[type(value)](f"{architecture}.rope.scaling.{name}", value)
    tokens = SPECIAL + BYTES + ["12"]
    tokens += [f"<unused{number}>" for number in range(160 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["1 2"])
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    writer.add_vocab_size(len(tokens))
    random = np.random.default_rng(0)

    def matrix(name, rows, columns):
        values = random.normal(0, 0.2, (rows, columns)).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def norm(name):
        writer.add_tensor(name, random.uniform(0.5, 1.5, HIDDEN).astype(np.float32))

    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.astype(np.float32))
    matrix("token_embd.weight", len(tokens), HIDDEN)
    norm("output_norm.weight")
    kv_width = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            norm(f"blk.{layer}.{name}.weight")
        shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_output": (HIDDEN, HIDDEN)}
        shapes |= {"attn_k": (kv_width, HIDDEN), "attn_v": (kv_width, HIDDEN)}
        shapes |= {"ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN)}
        for name, shape in {**shapes, "ffn_down": (HIDDEN, INNER)}.items():
            matrix(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
