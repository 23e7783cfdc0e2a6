"""How long a context of a model may get."""

import json
from typing import Any

from transformers import PreTrainedModel

LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def claimed_limit(config: Any) -> int | None:
    """Longest context that a config claims, in tokens (None if it does not say).

    A rope that scales a trained length by a factor reaches their product, whether or not
    ``max_position_embeddings`` was raised with it (YaRN by Qwen's recipe leaves it).
    """
    text = config.get_text_config(decoder=True)
    found = (getattr(text, name, None) for name in LIMITS)
    limit = next((value for value in found if isinstance(value, int) and value > 0), None)
    if limit is None:
        return None
    for rope in rope_parameters(text):
        factor, trained = rope.get("factor"), rope.get("original_max_position_embeddings")
        if factor and trained:
            limit = max(limit, int(factor * trained))
    return limit


def context_limit(model: PreTrainedModel) -> int | None:
    """Longest context of a model: what its user set (``model.max_context_tokens``), or claims."""
    return getattr(model, "max_context_tokens", None) or claimed_limit(model.config)


def set_limit(model: PreTrainedModel, tokens: int) -> None:
    """Take the user's limit; 0 leaves the model's own."""
    model.max_context_tokens = tokens or None  # type: ignore[assignment]


def beyond_claim(model: PreTrainedModel, name: str) -> str:
    """A warning where the user's limit is longer than what the model claims."""
    limit, claimed = context_limit(model), claimed_limit(model.config)
    if not limit or not claimed or limit <= claimed:
        return ""
    return f"model.max_context_tokens={limit} is beyond the {claimed} tokens that {name} claims"


def parse_rope(text: str) -> dict[str, Any]:
    """Rope parameters that a user wrote as JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not {"rope_type", "type"} & found.keys():
        raise ValueError(
            f"model.rope_scaling={text}: not a JSON object with a rope_type; use for example "
            '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}'
        )
    return found


def set_rope(config: Any, text: str) -> None:
    """Change a config's rope parameters to what the user wrote, if anything."""
    if text:
        text_config = config.get_text_config(decoder=True)
        text_config.rope_parameters = {**(text_config.rope_parameters or {}), **parse_rope(text)}
        text_config.standardize_rope_params()


def rope_parameters(text_config: Any) -> list[dict[str, Any]]:
    """Every rope configuration of a text config: one, or one per layer type."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return nested or [rope]
