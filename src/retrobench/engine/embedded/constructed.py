"""A stock two-layer LlamaForCausalLM whose weights are written down, not trained.

It answers RULER's single-answer needle tasks exactly, by reading them the way an induction head
does. Attention is nearly one-hot, so it tests whether a method finds the right tokens; it says
nothing about methods on diffuse attention.

Layer 0, attention: eight heads copy the tokens at distances 1..8 into slots ``x1..x8`` (a head's
distance is a phase of its query under RoPE). Layer 0, MLP: after the answer prefix "... for KEY
mentioned in the provided text is", gates rewrite the recent history (slots ``c1..c5``) as if the
prompt read "KEY is:", which is how needles continue. Layer 1, attention: match that history of
five tokens against the five tokens before every position, and copy the token found there.
"""

# Attributes of torch modules have no precise types.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportReturnType=false, reportOptionalMemberAccess=false

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VERSION = 1
HEAD_DIM, HEADS, KV_HEADS = 128, 8, 2
MAX_TOKENS = 131072
THETA = 1e18  # most RoPE pairs barely turn within MAX_TOKENS: they carry content
MATCHED = 5  # tokens of history that must agree
DISTANCES = range(1, 9)
SKIPPED = 5  # tokens between KEY and " is" in the answer prefix: mentioned in the provided text

# Strengths, in units of attention logits.
MATCH_LOGIT = 30.0  # all five tokens agree
VALUE_LOGIT = 30.0  # the position follows ":" or a piece of a number or uuid
VALUE_KEY = 30.0  # size of that flag in the keys: makes value positions cluster together
CONSTANT = 300.0  # a constant feature that dominates the RMS, so that norms are known
GATE = 40.0
IS, TEXT, VALUE, STOP = range(4)  # token flags


class _Layout:
    """Which residual dimensions hold what."""

    def __init__(self, code_dim: int) -> None:
        self.width = 0
        self.code_dim = code_dim
        self.const = self._take(1)
        self.x = [self._take(code_dim) for _ in range(len(DISTANCES) + 1)]
        self.flag = [self._take(4) for _ in range(len(DISTANCES) + 1)]
        self.c = [self._take(code_dim) for _ in range(MATCHED + 1)]
        self.out = self._take(code_dim)
        self.hidden = -(-self.width // 64) * 64

    def _take(self, count: int) -> slice:
        start, self.width = self.width, self.width + count
        return slice(start, self.width)


def build(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """The model in float32; ``seed`` draws the token codes."""
    generator = torch.Generator().manual_seed(seed)
    turn = THETA ** -(torch.arange(0, HEAD_DIM, 2).double() / HEAD_DIM)
    half = HEAD_DIM // 2
    still = [i for i in range(half) if turn[i] * MAX_TOKENS < 0.35]
    content = still + [i + half for i in still]
    code_dim = len(content) - 1
    layout = _Layout(code_dim)
    intermediate = code_dim * sum(range(1, MATCHED + 1))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=layout.hidden,
        intermediate_size=intermediate,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    bits = torch.randint(0, 2, (len(tokenizer), code_dim), generator=generator)
    code = bits.float() * 2 - 1
    _embed(model, layout, code, tokenizer)
    _norms(model, layout)
    _look_back(model, layout, turn)
    _rewrite_history(model, layout, code, tokenizer)
    _match(model, layout, content, generator)
    return model


def _ids(tokenizer: PreTrainedTokenizerFast, *tokens: str) -> list[int]:
    """Ids of tokens in both forms, with and without a leading space, where they exist."""
    vocab = tokenizer.get_vocab()
    return [vocab[form] for token in tokens for form in (token, "Ġ" + token) if form in vocab]


def _value_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Pieces of numbers and uuids, and what precedes a value."""
    digits = [f"{n:0{width}d}" for width in (1, 2, 3) for n in range(10**width)]
    pairs = [a + b for a in "0123456789abcdef" for b in "0123456789abcdef"]
    return _ids(tokenizer, ":", "-", *digits, *pairs)


def _embed(
    model: LlamaForCausalLM, layout: _Layout, code: Tensor, tokenizer: PreTrainedTokenizerFast
) -> None:
    table = model.model.embed_tokens.weight
    table[:, layout.const] = CONSTANT
    table[:, layout.x[0]] = code
    flag = layout.flag[0].start
    table[_ids(tokenizer, "is", "are"), flag + IS] = 1
    table[_ids(tokenizer, "text"), flag + TEXT] = 1
    table[_value_ids(tokenizer), flag + VALUE] = 1
    table[_ids(tokenizer, "."), flag + STOP] = 1
    head = model.lm_head.weight
    head[:, layout.out] = code
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    head[special] = 0
    head[tokenizer.eos_token_id, flag + STOP] = 10 * layout.code_dim  # a full stop ends the answer


def _norms(model: LlamaForCausalLM, layout: _Layout) -> None:
    """Norm weights that undo the norm: slots come out as they are, the constant as 1."""
    first, second = model.model.layers
    before, after = layout.code_dim, layout.code_dim * (len(DISTANCES) + 1)
    for norm, content in (
        (first.input_layernorm, before),
        (first.post_attention_layernorm, after),
        (second.input_layernorm, after),
        (second.post_attention_layernorm, after),
        (model.model.norm, after),
    ):
        rms = math.sqrt((CONSTANT**2 + content) / layout.hidden)
        norm.weight.fill_(rms)
        norm.weight[layout.const] = rms / CONSTANT


def _look_back(model: LlamaForCausalLM, layout: _Layout, turn: Tensor) -> None:
    """Layer 0 attention: head ``n`` copies the token at distance ``n + 1``."""
    attention = model.model.layers[0].self_attn
    fast = [i for i in range(HEAD_DIM // 2) if turn[i] > 3e-4]
    strength = torch.full((len(fast),), 9.0)
    strength[:3] = 16.0
    scale, dim = math.sqrt(HEAD_DIM), layout.code_dim
    for group in range(KV_HEADS):
        base = group * HEAD_DIM
        for size, i in zip(strength, fast, strict=True):
            attention.k_proj.weight[base + i, layout.const] = size.sqrt()
        attention.v_proj.weight[base : base + dim, layout.x[0]] = torch.eye(dim)
        attention.v_proj.weight[base + dim : base + dim + 4, layout.flag[0]] = torch.eye(4)
    for head, distance in enumerate(DISTANCES):
        base = head * HEAD_DIM
        for size, i in zip(strength, fast, strict=True):
            angle = -float(turn[i]) * distance
            root = float(size.sqrt()) * scale
            attention.q_proj.weight[base + i, layout.const] = root * math.cos(angle)
            attention.q_proj.weight[base + HEAD_DIM // 2 + i, layout.const] = root * math.sin(angle)
        attention.o_proj.weight[layout.x[distance], base : base + dim] = torch.eye(dim)
        flags = slice(base + dim, base + dim + 4)
        attention.o_proj.weight[layout.flag[distance], flags] = torch.eye(4)


def _rewrite_history(
    model: LlamaForCausalLM, layout: _Layout, code: Tensor, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Layer 0 MLP: with " text is" ending ``back`` tokens ago, history reads "KEY is:".

    ``c[n]`` holds what the n-th token of the history lacks: the rewritten token minus the real one.
    """
    mlp = model.model.layers[0].mlp
    colon, verb = _ids(tokenizer, ":")[0], tokenizer.convert_tokens_to_ids("Ġis")
    eye, row = torch.eye(layout.code_dim), 0
    for back in range(MATCHED):
        for n in range(back + 1, MATCHED + 1):
            rows = slice(row, row + layout.code_dim)
            row += layout.code_dim
            mlp.gate_proj.weight[rows, layout.flag[back].start + IS] = 2 * GATE
            mlp.gate_proj.weight[rows, layout.flag[back + 1].start + TEXT] = 2 * GATE
            mlp.gate_proj.weight[rows, layout.const] = -3 * GATE  # open only if both are there
            mlp.up_proj.weight[rows, layout.x[n - 1]] = -eye
            if n == back + 1:
                mlp.up_proj.weight[rows, layout.const] = code[colon, :, None]
            elif n == back + 2:
                mlp.up_proj.weight[rows, layout.const] = code[verb, :, None]
            else:
                mlp.up_proj.weight[rows, layout.x[n - 2 + SKIPPED]] = eye
            mlp.down_proj.weight[layout.c[n], rows] = eye / GATE


def _match(
    model: LlamaForCausalLM, layout: _Layout, content: list[int], generator: torch.Generator
) -> None:
    """Layer 1 attention: history of five against the five tokens before each position."""
    attention = model.model.layers[1].self_attn
    dim, group_size = layout.code_dim, HEADS // KV_HEADS
    query_scale = MATCH_LOGIT / MATCHED / dim * math.sqrt(HEAD_DIM)
    for group in range(KV_HEADS):
        base = group * HEAD_DIM
        codes = [base + i for i in content[:dim]]
        heads = range(group * group_size, (group + 1) * group_size)
        for n in range(1, MATCHED + 1):
            random = torch.randn(dim, dim, generator=generator)
            mix = torch.linalg.qr(random)[0]  # tells the n-th token from the others
            attention.k_proj.weight[codes, layout.x[n]] += mix
            for head in heads:
                rows = [head * HEAD_DIM + i for i in content[:dim]]
                attention.q_proj.weight[rows, layout.x[n - 1]] += mix * query_scale
                attention.q_proj.weight[rows, layout.c[n]] += mix * query_scale
        spare = content[dim]
        after_value = layout.flag[1].start + VALUE
        attention.k_proj.weight[base + spare, after_value] = VALUE_KEY
        attention.v_proj.weight[base : base + dim, layout.x[0]] = torch.eye(dim)
        for head in heads:
            row = head * HEAD_DIM
            flag_query = VALUE_LOGIT / VALUE_KEY * math.sqrt(HEAD_DIM)
            attention.q_proj.weight[row + spare, layout.const] = flag_query
            attention.o_proj.weight[layout.out, row : row + dim] = torch.eye(dim) / HEADS
