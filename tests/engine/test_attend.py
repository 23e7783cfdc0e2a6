"""Attention parts against float64 references."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention import causal as form
from retrobench.engine.attention.causal import causal
from retrobench.engine.attention.exact import dense_decode
from retrobench.engine.attention.parts import attend
from retrobench.memory.selection import Estimate


def reference(q, k, v, scale, softcap=None, bias=None):
    """float64 softmax attention with KV heads repeated and an additive bias (or -inf mask)."""
    repeat = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(repeat, 1) for x in (k, v))
    logit = q.double() @ k.transpose(-1, -2) * scale
    if softcap:
        logit = torch.tanh(logit / softcap) * softcap
    return (logit if bias is None else logit + bias).softmax(-1) @ v


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("num_q", [1, 5, 33])
def test_causal(num_q, window, softcap, poisoned_empty):
    q, k, v = random(2, 6, num_q, 8), random(2, 2, 33, 8, seed=1), random(2, 2, 33, 8, seed=2)
    pads = (0, 4)
    position = torch.arange(33)
    query = position[-num_q:, None]
    allowed = (position <= query)[None] & (position >= torch.tensor(pads)[:, None, None])
    if window:
        allowed &= position > query - window
    live = allowed.any(-1)[:, None, :, None]
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)[:, None]
    expected = reference(q, k, v, 0.3, softcap, bias)
    got = causal(q, k, v, AttentionArgs(scale=0.3, softcap=softcap), pads, window, block=8)
    got, expected = got.where(live, 0), expected.where(live, 0)
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_q", [2, 19, 300])
def test_a_chunk_reads_keys_as_they_are_stored(num_q, dtype):
    """A later chunk of a prompt: no repeated KV heads, no mask over the context."""
    tokens = 300
    room = [random(2, 2, tokens + 7, 16, seed=seed).to(dtype) for seed in (1, 2)]
    q, (k, v) = random(2, 6, num_q, 16).to(dtype), (x[:, :, :tokens] for x in room)
    with Largest() as made:
        got = causal(q, k, v, AttentionArgs(scale=0.3))
    assert made.masks == 0 and made.values <= max(3 * q.numel(), 2 * k.numel()), vars(made)
    seen = torch.ones(num_q, tokens).tril(tokens - num_q)
    expected = reference(q, k, v, 0.3, bias=seen.log())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


class Largest(TorchDispatchMode):
    """The largest new tensor of the operations inside, and the largest mask, in values."""

    values = masks = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor._base is None:
                self.values = max(self.values, tensor.numel())
                if tensor.dtype == torch.bool:
                    self.masks = max(self.masks, tensor.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dense_decode(dtype):
    q, k, v = (x.to(dtype) for x in (random(2, 6, 1, 8), random(2, 3, 50, 8), random(2, 3, 50, 8)))
    got = dense_decode(q, k, v, AttentionArgs(scale=0.3), (0, 9))
    bias = torch.zeros(2, 1, 1, 50)
    bias[1, ..., :9] = -torch.inf
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        got.double(), reference(q, k, v, 0.3, bias=bias), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("heads", [2, 4])  # selections per KV head, and per query head
def test_exact_and_estimated_share_one_softmax(heads, softcap):
    q, k, v = random(2, 4, 1, 8), random(2, heads, 9, 8, seed=1), random(2, heads, 9, 8, seed=2)
    valid = torch.ones(2, heads, 9, dtype=torch.bool)
    valid[1, :, 5:] = False
    centroid, total = random(2, heads, 3, 8, seed=3), random(2, heads, 3, 8, seed=4)
    size = torch.tensor([4, 0, 7]).expand(2, heads, 3)
    got = attend(
        q,
        k,
        v,
        valid,
        AttentionArgs(scale=0.5, softcap=softcap),
        Estimate(centroid, total, size),
    )
    # A cluster is one key of weight `size` whose value is the mean.
    keys = torch.cat([k, centroid], 2)
    values = torch.cat([v, total / size.clamp_min(1)[..., None]], 2)
    weight = torch.cat([valid.double(), size.double()], 2).log()
    bias = weight.repeat_interleave(4 // heads, 1)[:, :, None]
    expected = reference(q, keys, values, 0.5, softcap, bias)
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=1e-5)


def test_an_empty_exact_part_leaves_the_estimate():
    q, k = random(1, 2, 1, 4), random(1, 1, 3, 4)
    estimate = Estimate(random(1, 1, 1, 4), torch.full((1, 1, 1, 4), 6.0), torch.tensor([[[3]]]))
    none = torch.zeros(1, 1, 3, dtype=torch.bool)
    got = attend(q, k, k, none, AttentionArgs(scale=1.0), estimate)
    torch.testing.assert_close(got, torch.full_like(got, 2.0))


def test_a_gpu_is_asked_for_one_flash_kernel(monkeypatch):
    """With the edge at the lower right, and the KV heads as they are."""
    asked = []
    monkeypatch.setattr(form, "causal_form", lambda *_: "flash")

    def flash(q, k, v, **options):
        asked.append((k.shape[1], options))
        return q

    monkeypatch.setattr(form.F, "scaled_dot_product_attention", flash)
    q, k = random(1, 4, 5, 8), random(1, 2, 20, 8)
    causal(q, k, k, AttentionArgs(scale=0.5))
    ((heads, options),) = asked
    edge = options.pop("attn_mask")
    assert heads == 2 and options == {"scale": 0.5, "enable_gqa": True}
    assert torch.equal(edge._materialize(), torch.ones(5, 20).tril(15).bool())
