"""Attention of a chunk of the prompt in C++ against plain torch: shapes, layouts, poison."""

from __future__ import annotations

import pytest
import torch
from retrobench_kernels import native
from retrobench_kernels.causal_attention import causal_attention, cpu

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.causal import causal, causal_form

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
BF16 = torch.bfloat16


def inputs(batch, heads, groups, num_q, num_k, dim):
    """Queries as a projection leaves them, keys and values within a longer, poisoned store."""
    q = torch.randn(batch, num_q, heads, dim).to(BF16).transpose(1, 2)
    store = torch.full((2, batch, groups, num_k + 9, dim), torch.nan, dtype=BF16)
    k, v = store[:, :, :, 4 : 4 + num_k]
    k.copy_(torch.randn(k.shape)), v.copy_(torch.randn(v.shape))
    return q, k, v


def close(got, expected, tolerance=2e-2):
    torch.testing.assert_close(got.float(), expected.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("window", [None, 1, 37, 300])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 9, 3, 70, 70, 64),
        (1, 4, 4, 97, 500, 96),
        (1, 8, 1, 255, 600, 128),
        (2, 2, 1, 1, 257, 32),
        (1, 4, 2, 7, 256, 256),
    ],
)
def test_it_equals_plain_torch(shape, window, poisoned_empty):
    q, k, v = inputs(*shape)
    got = causal_attention.form("cpu")(q, k, v, 0.2, window)
    expected = causal_attention.reference(q.float(), k, v, 0.2, window)
    assert got.dtype == BF16 and got.transpose(1, 2).is_contiguous()
    close(got, expected)
    error = (got.float() - expected).norm() / expected.norm()
    assert error < 3e-3  # weights and output are rounded to bf16, and nothing else


def test_extreme_scores(poisoned_empty):
    """A key that outweighs all others, equal keys, and scores far below every exponent."""
    q, k, v = inputs(1, 2, 1, 300, 300, 64)
    for change in (lambda: k[:, :, 150].fill_(90.0), lambda: k.fill_(1.0), lambda: k.fill_(-90.0)):
        change()
        close(
            causal_attention.form("cpu")(q, k, v, 0.5),
            causal_attention.reference(q.float(), k, v, 0.5),
        )


@pytest.mark.parametrize("window", [None, 40])
def test_what_is_not_seen_weighs_nothing(window):
    """However large its value is."""
    q, k, v = inputs(1, 2, 1, 300, 300, 64)
    expected = causal_attention.form("cpu")(q, k, v, 0.2, window)
    v[:, :, [100, 250]] = torch.finfo(BF16).max
    got = causal_attention.form("cpu")(q, k, v, 0.2, window)
    unseen = [slice(0, 100), *([slice(140, 250), slice(290, 300)] if window else [])]
    assert all(torch.equal(got[:, :, rows], expected[:, :, rows]) for rows in unseen)


def test_what_is_not_a_number_is_not_hidden():
    q, k, v = inputs(1, 2, 1, 40, 40, 64)
    k[:, :, 20] = torch.nan
    got = causal_attention.form("cpu")(q, k, v, 0.5).isnan().all(-1)
    assert got[:, :, 20:].all() and not got[:, :, :20].any()


@pytest.mark.parametrize(("dtype", "dim"), [(torch.float32, 64), (torch.float16, 64), (BF16, 40)])
def test_what_it_does_not_take_runs_otherwise(dtype, dim):
    q, k, v = (x.to(dtype) for x in inputs(1, 4, 2, 20, 50, dim))
    assert cpu.unsupported(q)
    assert causal_form(q, k, v, AttentionArgs(scale=0.3)) == "split"
    close(causal(q, k, v, AttentionArgs(scale=0.3)), causal_attention(q, k, v, 0.3))


@pytest.mark.parametrize("window", [None, 31])
def test_a_prompt_takes_it_where_the_cpu_multiplies_bfloat16(window, monkeypatch):
    """Rows with padding, too; sliding windows need no mask."""
    q, k, v = inputs(2, 4, 2, 50, 90, 64)
    args, pads = AttentionArgs(scale=0.3), (0, 60)
    monkeypatch.setattr(native, "flag", lambda name: False)
    expected = causal(q, k, v, args, pads, window)
    monkeypatch.setattr(native, "flag", lambda name: True)
    assert causal_form(q, k, v, args) == "kernel"
    close(causal(q, k, v, args, pads, window), expected)
    assert causal_form(q, k, v, AttentionArgs(scale=0.3, softcap=5.0)) == "masked"
