"""Full attention is the same whoever computes it; an absent backend says what to install."""

from __future__ import annotations

import pytest
import torch
from retrobench_kernels import native
from retrobench_methods.full import Full

from retrobench.core.method import AttentionArgs
from retrobench.core.shapes import KVShape
from retrobench.core.spec import parse
from retrobench.engine.attention import backends
from tests.support import build


def shape(**more):
    values = {"pad_tokens": (0, 3), "layers": (0,), "num_heads": 4, "num_kv_heads": 2}
    values |= {"head_dim": 64, "prompt_tokens": 40, "max_tokens": 44, "dtype": "float32"}
    return KVShape(**{**values, **more})


def decode(backend, tokens=40, softcap=None):
    torch.manual_seed(0)
    config = parse(Full.Config, {"backend": backend}, "method")
    method = Full(config, shape(prompt_tokens=tokens, max_tokens=tokens + 1))
    args = AttentionArgs(scale=0.125, softcap=softcap)
    q, k, v = torch.randn(2, 4, 1, 64), torch.randn(2, 2, tokens, 64), torch.randn(2, 2, tokens, 64)
    build(method, {0: (q, k, v)}, args)
    new = torch.randn(2, 2, 1, 64)
    return method.decode(0, q, new, new, args), method.stats()


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_cpu_equals_sdpa(softcap):
    expected, _ = decode("sdpa", softcap=softcap)
    got, stats = decode("cpu", softcap=softcap)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert stats["backend"] == "cpu"


def test_auto_names_what_it_timed_and_used(monkeypatch):
    monkeypatch.setattr(backends, "SHORT_TOKENS", 16)
    expected, _ = decode("sdpa")
    got, stats = decode("auto")
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    timed = stats["backend_ms"]
    assert "sdpa" in timed and stats["backend"] == min(timed, key=timed.get)


@pytest.mark.parametrize("name", ["flash_attn", "flashinfer", "cudnn", "triton"])
def test_a_backend_of_another_device_is_refused(name):
    config = parse(Full.Config, {"backend": name}, "method")
    with pytest.raises(ValueError, match=f"method.backend={name} runs on cuda"):
        Full.plan(config, shape())


def test_an_absent_backend_says_what_to_install():
    reason = backends.check("flash_attn", "cuda", torch.bfloat16, 128)
    assert reason is not None and "pip install flash-attn" in reason
