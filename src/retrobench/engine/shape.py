"""The KV cache that a session needs, from the model's architecture."""

from transformers import PreTrainedModel

from retrobench.core.shapes import KVShape
from retrobench.engine.traits import serve


def kv_shape(
    model: PreTrainedModel, pad_tokens: tuple[int, ...], prompt_tokens: int, new_tokens: int
) -> KVShape:
    """Shape of the managed layers' cache; ``hf.Unserved`` for a model that nobody can serve."""
    found = serve(model)
    return KVShape(
        pad_tokens=pad_tokens,
        layers=found.layers,
        num_heads=found.num_heads,
        num_kv_heads=found.num_kv_heads,
        head_dim=found.head_dim,
        prompt_tokens=prompt_tokens,
        max_tokens=prompt_tokens + new_tokens,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
    )
