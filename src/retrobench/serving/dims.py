"""Sizes of public models: what a step computes, reads and keeps, without any weights."""

from dataclasses import dataclass

VALUE_BYTES = 2  # weights, keys and values are 16-bit in every cost model


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDims:
    """A decoder. ``matmul_params`` are the weights that every token is multiplied with."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    matmul_params: int

    @property
    def weight_bytes(self) -> int:
        """Weights that a step reads."""
        return self.matmul_params * VALUE_BYTES

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * VALUE_BYTES

    def linear_flop(self, tokens: float) -> float:
        """Of all matrix products with weights."""
        return 2 * self.matmul_params * tokens

    def attention_flop(self, new: float, before: float) -> float:
        """Of causal attention of ``new`` tokens after ``before`` others."""
        pairs = new * before + new * (new + 1) / 2
        return 4 * self.layers * self.heads * self.head_dim * pairs

    def exchanged_bytes(self, tokens: float) -> float:
        """Query, key, value in and output back, where attention runs elsewhere."""
        vectors = 2 * self.heads + 2 * self.kv_heads
        return tokens * self.layers * vectors * self.head_dim * VALUE_BYTES


def _dims(
    layers: int, width: int, heads: int, kv_heads: int, ffn: int, vocab: int, matrices: int
) -> ModelDims:
    """``matrices``: of the feed-forward part (3 where it is gated). All heads have 128 numbers."""
    attention = width * 128 * (2 * heads + 2 * kv_heads)
    return ModelDims(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128,
        matmul_params=layers * (attention + matrices * width * ffn) + width * vocab,
    )


# of the models' own configuration files; GPT-175B: arXiv 2005.14165, table 2.1
DIMS = {
    "llama31_8b": _dims(32, 4096, 32, 8, 14336, 128256, 3),
    "llama31_70b": _dims(80, 8192, 64, 8, 28672, 128256, 3),
    "qwen25_7b": _dims(28, 3584, 28, 4, 18944, 152064, 3),
    "llama2_7b": _dims(32, 4096, 32, 32, 11008, 32000, 3),
    "llama2_13b": _dims(40, 5120, 40, 40, 13824, 32000, 3),
    "opt_13b": _dims(40, 5120, 40, 40, 20480, 50272, 2),
    "opt_30b": _dims(48, 7168, 56, 56, 28672, 50272, 2),
    "opt_66b": _dims(64, 9216, 72, 72, 36864, 50272, 2),
    "qwen_72b": _dims(80, 8192, 64, 8, 29568, 152064, 3),
    "gpt_175b": _dims(96, 12288, 96, 96, 49152, 50257, 2),
}
