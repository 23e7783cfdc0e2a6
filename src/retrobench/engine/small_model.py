"""A small copy of a model's architecture: same kind of layers, far smaller, random weights.

What decides how attention is computed stays (layer types, rope type, grouping, head dims that
differ, windows that bind); widths, depths, experts and vocabulary shrink. A copy costs a second,
so an architecture can be tried before any weights are read.
"""

import contextlib
import copy
import math
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from retrobench.engine.context import LIMITS, claimed_limit, rope_parameters

VOCABULARY = 128
WINDOW = 24  # tokens of a sliding window or chunk
TRAINED = 48  # tokens of a rope's trained window
CONTEXT = 4096
_LAYERS = 4
_SIZES = {
    96: (
        "intermediate_size intermediate_size_mlp n_inner ffn_dim ffn_hidden_size decoder_ffn_dim "
        "encoder_ffn_dim"
    ),
    64: "hidden_size d_model n_embd embedding_size embedding_dim word_embed_proj_dim lru_width",
    32: (
        "moe_intermediate_size shared_expert_intermediate_size "
        "moe_shared_expert_intermediate_size shared_intermediate_size image_size"
    ),
    24: "q_lora_rank",
    16: (
        "hidden_size_per_layer_input kv_lora_rank o_lora_rank qk_nope_head_dim linear_head_dim "
        "logits_chunk_size num_mel_bins"
    ),
    12: "v_head_dim",
    8: (
        "qk_rope_head_dim linear_key_head_dim linear_value_head_dim mamba_d_state "
        "mamba_chunk_size chunk_size ssm_state_size state_size laurel_rank patch_size"
    ),
    4: (
        "linear_num_heads linear_num_value_heads mamba_dt_rank num_experts num_local_experts "
        "n_routed_experts moe_num_experts"
    ),
    2: "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k",
    1: (
        "mamba_n_groups mamba_ngroups num_shared_experts n_shared_experts n_group topk_group "
        "num_expert_group first_k_dense_replace num_dense_layers moe_layer_start_index"
    ),
}
_SMALL = {name: size for size, names in _SIZES.items() for name in names.split()}
"""Values of config fields by name, where the model's own are larger."""

_TIED: dict[str, dict[str, Any]] = {
    "hrm_text": {
        "num_layers_per_stack": 1, "num_hidden_layers": 8, "H_cycles": 2, "L_cycles": 3
    },
    "zamba": {
        "num_hidden_layers": 5, "attention_hidden_size": 128, "attention_head_dim": 32,
        "n_mamba_heads": 2,
        "layers_block_type": [
            "linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"
        ],
    },
    "zamba2": {
        "attention_hidden_size": 128, "attention_head_dim": 32, "mamba_headdim": 16,
        "n_mamba_heads": 8, "mamba_expand": 2, "kv_channels": 16, "num_query_groups": 4,
    },
}  # fmt: skip
"""Fields of some model types that follow from each other when a config is made."""

_DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
    "depth",
)  # fmt: skip
_HEADS = (
    "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
    "encoder_attention_heads", "attention_heads",
)  # fmt: skip
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "num_global_key_value_heads")
_HEAD_DIMS = ("head_dim", "kv_channels", "attention_head_dim", "swa_head_dim")
_WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")


def small_config(config: Any) -> Any:
    """A config of the same kind for a model of some hundred thousand parameters."""
    made = copy.deepcopy(config)
    _shrink(made)
    return made


def small_copy(model: PreTrainedModel, config: Any) -> PreTrainedModel:
    """A float32 model of ``config`` on the CPU, of the class of ``model``, with lively weights."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        made = type(model)._from_config(copy.deepcopy(config), dtype=torch.float32).eval()
        enliven(made)
    finally:
        torch.random.set_rng_state(state)
    return made


@torch.no_grad()
def enliven(model: PreTrainedModel) -> None:
    """Random weights that let no part of the model vanish: gates, biases and norms included.

    With the usual initialisation (0.02) a small model attends everything alike, and a wrong key
    would not show.
    """
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.dim() >= 2:
            parameter.normal_(0, 1.5 / math.sqrt(parameter.shape[-1]))
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)


def _shrink(config: Any) -> None:
    """Shrink a config in place, with those inside it."""
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            _shrink(value)
    _shrink_depth(config)
    _shrink_heads(config)
    for name, value in _SMALL.items():
        if _number(config, name) > value:
            _set(config, name, value)
        elif isinstance(listed := vars(config).get(name), list):  # a value per layer
            _set(config, name, [min(entry, value) for entry in listed])
    for name in ("vocab_size", "vocab_size_per_layer_input", "pad_vocab_size"):
        if _number(config, name) > VOCABULARY:
            _set(config, name, VOCABULARY)
    _shrink_windows(config)
    for name, value in list(vars(config).items()):  # special ids must lie in the vocabulary
        if name.endswith("token_id") and isinstance(value, int) and value >= VOCABULARY:
            _set(config, name, 1)
    if getattr(config, "eos_token_id", None) is not None:
        config.eos_token_id = 1
    if _number(config, "mamba_n_heads") and not _number(config, "mamba_d_ssm"):
        config.mamba_n_heads, config.mamba_d_head = 8, config.mamba_expand * config.hidden_size // 8
    for name, value in _TIED.get(getattr(config, "model_type", ""), {}).items():
        setattr(config, name, copy.deepcopy(value))


def _shrink_heads(config: Any) -> None:
    """Four query heads of 16; grouping, and whether the head dim is the usual one, stay."""
    heads = next((n for n in map(partial(_number, config), _HEADS) if n), 0)
    width = max(map(partial(_number, config), ("hidden_size", "d_model", "n_embd")))
    nope, rope = (_number(config, f"qk_{part}_head_dim") for part in ("nope", "rope"))
    for name in _HEAD_DIMS:
        if dim := _number(config, name):
            usual = not heads or dim * heads == width
            _set(config, name, min(dim, 8 if rope else 16 if usual else 24))
    if nope and rope and _number(config, "qk_head_dim"):
        _set(config, "qk_head_dim", min(nope, 16) + min(rope, 8))
    for name in _KV_HEADS:
        if groups := _number(config, name):
            _set(config, name, 4 if groups >= heads else min(groups, 2))
    for name in _HEADS:
        if _number(config, name) > 4:
            _set(config, name, 4)


def _shrink_depth(config: Any) -> None:
    """The first layers: as many as show every kind of layer, four at least."""
    depth = max(map(partial(_number, config), _DEPTHS))
    if not depth:
        return
    lists = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == depth
    }
    kinds = [list(map(str, value)) for value in (*lists.values(), _cache_kinds(config))]
    first = [of.index(kind) for of in kinds if len(set(of)) <= 8 for kind in set(of)]
    kept = pattern = min(depth, max(_LAYERS, 1 + max(first, default=0)))
    if shared := _number(config, "num_kv_shared_layers"):  # they attend to layers of their kind
        kept = min(depth, 2 * pattern)
        config.num_kv_shared_layers = min(shared, kept - pattern)
    for name, value in lists.items():
        repeated = type(value)(value[:pattern]) * 2
        _set(config, name, repeated[:kept])
    spec = vars(config).get("_heterogeneity_spec")
    if spec is not None:
        overrides = spec.per_layer_overrides
        for layer in [layer for layer in overrides if layer >= pattern]:
            del overrides[layer]
        overrides |= {
            layer: overrides[layer - pattern]
            for layer in range(pattern, kept)
            if layer - pattern in overrides
        }
    for name in (*_DEPTHS, "max_window_layers"):
        if _number(config, name) > kept:
            _set(config, name, kept)


def _cache_kinds(config: Any) -> list[str]:
    """Kinds of layers as a cache sees them, where the config describes a decoder."""
    try:
        return [type(layer).__name__ for layer in DynamicCache(config=config).layers]
    except Exception:
        return []


def _shrink_windows(config: Any) -> None:
    """A window that binds in the model binds in the copy; trained lengths shrink alike."""
    limit = claimed_limit(config) or 0
    for name in _WINDOWS:
        if window := _number(config, name):
            _set(config, name, 2 * CONTEXT if limit and window >= limit else WINDOW)
    by_length = False
    for rope in rope_parameters(config):
        kind = str(rope.get("rope_type", rope.get("type", "")))
        if "original_max_position_embeddings" in rope:
            rope["original_max_position_embeddings"] = TRAINED
        by_length |= "dynamic" in kind
        for name in ("short_factor", "long_factor"):
            if name in rope:
                rope[name] = _factors(config, rope, name)
    if _number(config, "original_max_position_embeddings"):
        config.original_max_position_embeddings = TRAINED
    for name in LIMITS:
        if _number(config, name):
            _set(config, name, TRAINED if by_length else CONTEXT)


def _factors(config: Any, rope: dict[str, Any], name: str) -> list[float]:
    """A factor for each frequency of the copy's smaller heads."""
    heads = _number(config, "num_attention_heads")
    usual = _number(config, "hidden_size") // max(1, heads)
    dim = _number(config, "qk_rope_head_dim") or _number(config, "head_dim") or usual
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None)
    wanted, known = int(dim * (share or 1.0)) // 2, rope[name]
    return [known[i * len(known) // wanted] for i in range(wanted)]


def _number(config: Any, name: str) -> int:
    """A config field that is a count; 0 where there is none."""
    try:
        value = getattr(config, name, None)
    except Exception:  # a heterogeneous config has it per layer
        value = vars(config).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _set(config: Any, name: str, value: Any) -> None:
    """Set a field; derived ones, which have no setter, follow by themselves."""
    with contextlib.suppress(AttributeError):
        setattr(config, name, value)
    spec = vars(config).get("_heterogeneity_spec")
    for overrides in spec.per_layer_overrides.values() if spec is not None else ():
        if isinstance(overrides.get(name), int):
            larger = overrides[name] > int(vars(config).get(name) or 0)
            overrides[name] = 2 * value if larger else value
