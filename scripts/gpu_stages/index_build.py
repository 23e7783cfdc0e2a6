"""Stage 6: what the index costs beside the prefill of the same layer."""

from __future__ import annotations

from dataclasses import replace

import torch
from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from gpu_stages.common import Bench, Inputs, Shape, summary
from retrobench.measure.clock import make_clock

SHAPES = [Shape(batch=1, context=n, layers=1) for n in (30_000, 60_000, 120_000)]


def run(bench: Bench) -> None:
    """Index of one layer (global and segment-local final pass) over its prefill."""
    for shape in bench.shapes(*SHAPES):
        shape = replace(shape, layers=1)
        prefill: dict[str, float] = {}

        @bench.case("prefill_layer", shape=shape)
        def _(row: dict, shape: Shape = shape, prefill: dict = prefill) -> None:
            row.update(_prefill(bench, shape))
            prefill["s"] = row["median_s"]

        for final in ("global", "segment"):

            @bench.case("index_layer", shape=shape, final_assign=final)
            def _(
                row: dict, shape: Shape = shape, final: str = final, prefill: dict = prefill
            ) -> None:
                row.update(_seal(bench, shape, final))
                if "s" in prefill:
                    row["share_of_prefill_frac"] = row["median_s"] / prefill["s"]


def _seal(bench: Bench, shape: Shape, final: str) -> dict:
    """Seconds of ``seal`` of a fresh method: cluster one layer and arrange it in the pool."""
    clock, spent = make_clock(bench.device), []
    config = RetroInferConfig(final_assign=final, placement="gpu", cache="none")
    for _ in range(2 if bench.smoke else 6):
        method = RetroInfer(config, shape.kv_shape(bench.device))
        method.buffer.append_prompt(0, *Inputs(shape, bench.device).dense())
        start = clock()
        method.seal()
        spent.append(clock() - start)
        method.close()
    return {**summary(spent[1:]), "mode": "eager"}  # the first compiles


def _prefill(bench: Bench, shape: Shape) -> dict:
    """One decoder layer of the shape's Llama over the whole context, random weights."""
    config = LlamaConfig(
        hidden_size=shape.heads * shape.dim,
        intermediate_size=shape.heads * shape.dim * 7 // 2,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.dim,
        max_position_embeddings=shape.context,
    )
    config._attn_implementation = "sdpa"
    dtype = getattr(torch, shape.dtype)
    layer = LlamaDecoderLayer(config, 0).to(bench.device, dtype).eval()
    rotary = LlamaRotaryEmbedding(config).to(bench.device)
    hidden = Inputs(shape, bench.device).random(1, shape.context, config.hidden_size)
    position = torch.arange(shape.context, device=bench.device)[None]
    angles = rotary(hidden, position)
    with torch.inference_mode():
        return bench.time(
            lambda: layer(hidden, position_ids=position, position_embeddings=angles), repeats=5
        )
