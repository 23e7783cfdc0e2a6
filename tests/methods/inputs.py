"""Keys and values that tests of selecting methods share, and a prompt run through a method."""

from __future__ import annotations

import torch

from tests.support import build, kv_shape

KINDS = ("random", "clustered", "constant", "ties", "duplicates", "outliers")
HEADS = ((4, 2), (3, 1), (9, 3), (2, 2))  # query heads, KV heads


def tensors(kind, heads, length, *, batch=1, dim=8, seed=0, dtype="float32"):
    """Queries ``BHSD``, keys and values ``BGSD``."""
    generator = torch.Generator().manual_seed(seed)
    size = (batch, heads[1], length, dim)
    q = torch.randn(batch, heads[0], length, dim, generator=generator)
    k, v = torch.randn(2, *size, generator=generator)
    if kind == "clustered":  # runs of like keys, as real ones are
        centre = 3 * torch.randn(batch, heads[1], length // 6 + 1, dim, generator=generator)
        k = centre.repeat_interleave(6, 2)[:, :, :length] + k / 4
    elif kind == "constant":
        k = torch.ones_like(k)
    elif kind == "ties":
        k = k.round()
    elif kind == "duplicates":
        k = k[:, :, :7].repeat(1, 1, length // 7 + 1, 1)[:, :, :length]
    elif kind == "outliers":
        k = k * (1 + 50 * (torch.rand(*size[:3], 1, generator=generator) < 0.03))
    return tuple(x.to(getattr(torch, dtype)) for x in (q, k, v))


def layer_tensors(kind, shape, seed=0):
    """``(q, k, v)`` of every layer of a shape, prompt and new tokens."""
    generator = torch.Generator().manual_seed(seed)
    found, tokens = {}, shape.max_tokens
    for layer in shape.layers:
        size = (shape.batch, shape.num_kv_heads, tokens, shape.head_dim)
        k, v = torch.randn(2, *size, generator=generator).unbind(0)
        if kind == "clustered":
            k = k / 4 + 2 * k[:, :, ::9].repeat_interleave(9, 2)[:, :, :tokens]
        elif kind == "constant":
            k = torch.ones_like(k)
        elif kind == "duplicates":
            k = k[:, :, torch.arange(tokens) % 4]
        elif kind == "outliers":
            k = k * (1 + 10 * (torch.rand(*size[:3], 1, generator=generator) < 0.05))
        q = torch.randn(shape.batch, shape.num_heads, *size[2:], generator=generator)
        found[layer] = tuple(part.to(getattr(torch, shape.dtype)) for part in (q, k, v))
    return found


def shape_of(q, k, prompt, pads=None, layers=(0,)):
    """The shape of a session whose first ``prompt`` tokens are the prompt."""
    return kv_shape(
        pad_tokens=pads or (0,) * q.shape[0], layers=layers, num_heads=q.shape[1],
        num_kv_heads=k.shape[1], head_dim=q.shape[3], prompt_tokens=prompt,
        max_tokens=q.shape[2], dtype=str(q.dtype).removeprefix("torch."),
    )  # fmt: skip


def decoded(method, qkv, args, layer=0):
    """Build on the prompt, then yield each new token's index and output ``o_BHD``."""
    prompt = method.shape.prompt_tokens
    build(method, {layer: tuple(x[:, :, :prompt] for x in qkv)}, args)
    for t in range(prompt, qkv[0].shape[2]):
        out = method.decode(layer, *(x[:, :, t : t + 1] for x in qkv), args)
        yield t, out[:, :, 0]
    method.report_counts()


def is_best(score, chosen, count, slack=1e-5):
    """Whether ``chosen`` are ``count`` distinct indices of the largest scores."""
    left = torch.ones(len(score), dtype=torch.bool)
    left[chosen] = False
    right = len(set(chosen.tolist())) == len(chosen) == min(count, len(score))
    if not right or not bool(left.any()) or not len(chosen):
        return right
    return bool(score[chosen].min() >= score[left].max() - slack)
