"""The trained model's architecture and its starting point: heads that look back, then match.

A stock Qwen2 whose attention biases let layer 0 start as previous-token kernels through RoPE. The
start is the constructed model's idea in random superposition: layer 0 copies the tokens at
distances 1..4, layer 1 adds what stood further back, layers 2+ match that history against every
position's and copy the token found there. All weights are trained from there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from retrobench.core.spec import option


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Options of ``shape.*``."""

    layers: int = option(4, "decoder layers; the first two look back, the others match", low=3)
    hidden: int = option(256, "width of the residual stream", low=64)
    head_dim: int = option(64, "dims of a head", choices=(64, 128))
    mlp: int = option(256, "hidden width of the MLPs", low=16)
    theta: float = option(1e18, "RoPE base: large, so that many dims barely turn", above=1)
    max_tokens: int = option(131072, "positions", low=1024)

    def __post_init__(self) -> None:
        if self.hidden < 4 * self.head_dim:
            raise ValueError(
                f"hidden must be at least four heads wide ({4 * self.head_dim}), got {self.hidden}"
            )


HEADS = 4  # query heads, two per KV head
FIRST_MATCHING = 2  # the layers before this one look back by distance
EMBED_STD = 0.2
KINDS = tuple(
    map(re.compile, (r"[0-9a-f]*[0-9][0-9a-f]*", r"[A-Z]{1,2}", r"[a-z]{1,2}", r"[^\w\s]+"))
)
KIND_SHARE = 0.35  # of a start embedding's power that tokens of one kind share
FURTHER = 0.3  # weight of what layer 1 adds, which shares dims with the slots of layer 0
MATCH_GAIN = 2.0
COPY_GAIN = 0.6
SUPPRESS_NEAR, SUPPRESS_GAIN = 0.7, 0.5  # how sharply and how much said words are taken back


def build(shape: Shape, tokenizer: object, seed: int) -> Qwen2ForCausalLM:
    """The model in float32 at its starting point; ``seed`` draws every random part."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),  # type: ignore[arg-type]
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.max_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,  # type: ignore[attr-defined]
        eos_token_id=tokenizer.eos_token_id,  # type: ignore[attr-defined]
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[attr-defined]
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        _start(model, shape, _kinds(tokenizer.get_vocab()))  # type: ignore[attr-defined]
    return model


def _kinds(vocab: dict[str, int]) -> Tensor:
    """Kind of every token, from 1, or 0 for a plain word."""
    kinds = torch.zeros(len(vocab), dtype=torch.long)
    for text, token in vocab.items():
        bare = text.removeprefix("Ġ")
        found = (n for n, kind in enumerate(KINDS, 1) if kind.fullmatch(bare))
        kinds[token] = next(found, 0)
    return kinds


def _orthogonal(rows: int, cols: int) -> Tensor:
    big = max(rows, cols)
    return torch.linalg.qr(torch.randn(big, big))[0][:rows, :cols]


class _Kernel:
    """Position-only attention through the biases: logits that depend on the distance alone."""

    def __init__(self, shape: Shape) -> None:
        self.dim = shape.head_dim
        half = torch.arange(0, shape.head_dim, 2).double() / shape.head_dim
        self.turn = shape.theta**-half

    def key(self) -> Tensor:
        """Key bias that every kernel of a KV head shares."""
        bias = torch.zeros(self.dim)
        bias[: self.dim // 2][self.turn > 3e-4] = 4.0
        return bias

    def query(self, distance: float, width: float) -> Tensor:
        """Query bias of a kernel centred ``distance`` tokens back, about ``width`` tokens wide."""
        bias = torch.zeros(self.dim)
        n = self.dim // 2
        used = (self.turn > 3e-4) & (self.turn < 1.6 / width)
        strength = 16.0 / 4.0 * math.sqrt(self.dim) * (0.6 if width > 1 else 1.0)
        angle = -self.turn * distance
        bias[:n][used] = (strength * torch.cos(angle[used])).float()
        bias[n:][used] = (strength * torch.sin(angle[used])).float()
        return bias


def _start(model: Qwen2ForCausalLM, shape: Shape, kinds: Tensor) -> None:
    """Embeddings in one half of the stream, histories in the other, kernels, and copying heads."""
    layers, dim = model.model.layers, shape.head_dim
    basis = _orthogonal(shape.hidden, shape.hidden)
    half = shape.hidden // 2
    words, past = basis[:half], basis[half:]
    codes = torch.randn(model.config.vocab_size, half)
    common = torch.randn(len(KINDS) + 1, half)[kinds]
    shared = (kinds > 0)[:, None]
    mixed = codes * math.sqrt(1 - KIND_SHARE) + common * math.sqrt(KIND_SHARE)
    codes = torch.where(shared, mixed, codes) * EMBED_STD * math.sqrt(2)
    model.model.embed_tokens.weight.copy_(codes @ words)
    model.model.norm.weight.fill_(0.5)
    for layer in layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.self_attn, name).bias.zero_()
            getattr(layer.self_attn, name).weight.normal_(std=0.01)
    # every head of layer 0 writes into dims of its own: with crosstalk among the distances, a query
    # and the key of the same history point apart
    width = half // HEADS
    read = torch.zeros(dim, shape.hidden)
    read[:width] = words[:width]
    exact = _orthogonal(half, half)
    slots = [torch.zeros(shape.hidden, dim) for _ in range(HEADS)]
    for n, slot in enumerate(slots):
        slot[:, :width] = past.T @ exact[:, n * width : (n + 1) * width]
    near = [(n + 1, 1) for n in range(HEADS)]
    _look(layers[0], shape, near, [read] * HEADS, slots)
    further = [past.T @ _orthogonal(half, half)[:, :dim] * FURTHER for _ in range(HEADS)]
    # 5 and 7: where a variable's name stands, seen from the end of what is assigned to it
    far = [(5, 1), (7, 1), (7, 5), (14, 12)]
    _look(layers[1], shape, far, [read] * HEADS, further)
    first, *rest = layers[FIRST_MATCHING:]
    _match(first, shape, words, read, slots, matching=HEADS // 2)
    for layer in rest:
        _match(layer, shape, words, read, slots, matching=1)
        _suppress(layer, shape, words, read, slots)


def _look(
    layer: torch.nn.Module,
    shape: Shape,
    kinds: list[tuple[int, int]],
    reads: list[Tensor],
    writes: list[Tensor],
) -> None:
    """Heads that attend by distance alone: ``kinds`` are (distance, width)."""
    attention, dim, kernel = layer.self_attn, shape.head_dim, _Kernel(shape)
    attention.k_proj.bias.copy_(kernel.key().repeat(HEADS // 2))
    for head, (distance, wide) in enumerate(kinds):
        rows = slice(head * dim, (head + 1) * dim)
        group = slice(head // 2 * dim, (head // 2 + 1) * dim)
        attention.q_proj.bias[rows] = kernel.query(distance, wide)
        attention.v_proj.weight[group] = reads[head]
        # the norm has scaled the stream to unit RMS: scale back, so that a slot weighs as much
        # as the half of an embedding that it copies
        attention.o_proj.weight[:, rows] = writes[head] * EMBED_STD * 1.5


def _suppress(
    layer: torch.nn.Module, shape: Shape, words: Tensor, read: Tensor, slots: list[Tensor]
) -> None:
    """The last KV head matches among the last tokens only and takes away what it finds there:
    what the answer has already said."""
    _match(layer, shape, words, read, slots, matching=HEADS // 2)
    attention, dim, kernel = layer.self_attn, shape.head_dim, _Kernel(shape)
    group = HEADS // 2 - 1
    attention.k_proj.bias[group * dim : (group + 1) * dim] = kernel.key() * SUPPRESS_NEAR
    for head in (2 * group, 2 * group + 1):
        rows = slice(head * dim, (head + 1) * dim)
        attention.q_proj.bias[rows] = kernel.query(24, 48) * SUPPRESS_NEAR
        attention.o_proj.weight[:, rows] *= -SUPPRESS_GAIN


def _match(
    layer: torch.nn.Module,
    shape: Shape,
    words: Tensor,
    read: Tensor,
    slots: list[Tensor],
    matching: int,
) -> None:
    """Compare the last tokens with those before every position; copy the token found.

    Only the first ``matching`` KV heads compare; the others start free.
    """
    attention, dim = layer.self_attn, shape.head_dim
    turn = _Kernel(shape).turn
    still = (turn * 32768 < 0.35).nonzero().flatten().tolist()
    content = torch.tensor(still + [i + dim // 2 for i in still])
    for group in range(HEADS // 2):
        key = torch.zeros(len(content), shape.hidden)
        query = torch.zeros(len(content), shape.hidden)
        for n, slot in enumerate(slots):
            mix = _orthogonal(dim, dim)[: len(content)]
            before = slots[n - 1].T if n else read
            key += mix @ slot.T
            query += mix @ before
        base = group * dim
        if group < matching:
            attention.k_proj.weight[base + content] = key
            for head in (2 * group, 2 * group + 1):
                attention.q_proj.weight[head * dim + content] = query * MATCH_GAIN
        part = words[group % 2 * dim : (group % 2 + 1) * dim]
        attention.v_proj.weight[base : base + dim] = part
        for head in (2 * group, 2 * group + 1):
            attention.o_proj.weight[:, head * dim : (head + 1) * dim] = part.T * COPY_GAIN
