"""Legend of shape suffixes, the shape of a KV cache, and bytes by place.

Tensors carry their axes as a suffix, e.g. ``q_BHTD``, ``k_BGSD``, ``score_BGC``:

======  ===================================  ======  ====================================
letter  axis                                 letter  axis
======  ===================================  ======  ====================================
``B``   batch                                ``S``   context tokens (positions or slots)
``L``   layers                               ``T``   new tokens (a chunk; 1 in a step)
``H``   query heads                          ``W``   tokens of a window or recent zone
``G``   KV heads                             ``R``   retrieved tokens or clusters, -1 padded
``N``   query heads of a KV head; entries    ``C``   clusters or pages of an index
        of a list, -1 padded (pages, runs)   ``E``   estimated clusters or their tokens
``D``   head dim                             ``P``   pages of a page table; slots of a pool
``M``   model width; moved pages             ``Q``   slots of a block cache
``V``   vocabulary                           ``K``   selected pages
``X``   splits of a context in a kernel      ``F``   points of a curve
``Y``   codes of a key (tables, parts)
======  ===================================  ======  ====================================

A digit is an axis of that size. Where the axes of a tensor are flattened into rows of heads
(batch x KV heads, as page tables do), ``N`` stands for that row.
"""

import dataclasses
from dataclasses import dataclass, fields
from typing import Self

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class KVShape:
    """Shape of the KV cache of one batch, for the layers that a method manages.

    ``pad_tokens`` is the left padding of each row; ``layers`` are the model's layer indexes with
    full attention (sliding-window layers stay with the model). ``max_tokens`` counts left padding,
    prompt and generated tokens. The last ``tail_tokens`` of the prompt are decoded, not prefilled.
    """

    pad_tokens: tuple[int, ...]
    layers: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    prompt_tokens: int
    max_tokens: int
    dtype: str
    device: str = "cpu"
    tail_tokens: int = 0

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return len(self.pad_tokens)

    @property
    def contexts(self) -> tuple[int, ...]:
        """Tokens of each row's prompt, without padding."""
        return tuple(self.prompt_tokens - pad for pad in self.pad_tokens)

    @property
    def prefilled_tokens(self) -> int:
        """Tokens of the prompt that are not decoded, with left padding."""
        return self.prompt_tokens - self.tail_tokens

    @property
    def prefilled(self) -> tuple[int, ...]:
        """The same of each row, without padding."""
        return tuple(max(0, self.prefilled_tokens - pad) for pad in self.pad_tokens)

    @property
    def decoded_tokens(self) -> int:
        """Tokens that come after the prefill."""
        return self.max_tokens - self.prefilled_tokens

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def value_bytes(self) -> int:
        """Bytes of one number."""
        return DTYPE_BYTES[self.dtype]

    @property
    def kv_bytes_per_token(self) -> int:
        """K and V bytes of one token in all managed layers of one sequence."""
        return len(self.layers) * self.layer_token_bytes

    @property
    def layer_token_bytes(self) -> int:
        """K and V bytes of one token in one layer, all KV heads."""
        return 2 * self.num_kv_heads * self.head_dim * self.value_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes that a method holds through a session, by place."""

    device: int = 0
    pinned: int = 0
    host: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    @property
    def total(self) -> int:
        """Bytes in all places."""
        return self.device + self.pinned + self.host


def split_layers(shape: KVShape, dense: tuple[int, ...]) -> tuple[KVShape, KVShape]:
    """Shapes of the dense layers and of the others; ValueError if either is not there."""
    strange = sorted(set(dense) - set(shape.layers))
    if dense and (strange or len(set(dense)) >= len(shape.layers)):
        raise ValueError(
            f"engine.dense_layers={','.join(map(str, dense))}: name some, not all, of the model's "
            f"layers {shape.layers[0]}-{shape.layers[-1]}"
        )
    kept = tuple(layer for layer in shape.layers if layer in dense)
    left = tuple(layer for layer in shape.layers if layer not in dense)
    return dataclasses.replace(shape, layers=kept), dataclasses.replace(shape, layers=left)
