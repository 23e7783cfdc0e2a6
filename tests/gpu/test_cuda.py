"""Methods on a CUDA device give what they give on the CPU (skipped without one)."""

from __future__ import annotations

import pytest
import torch

from retrobench.core.registry import method_names
from tests.support import make_calibrations, open_on, random_ids, skip_without_kvpress

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
OPTIONS = {"heterocache": {"full_heads": "top"}}  # no head of a random model is stable


@torch.inference_mode()
def logits(model, name, prompts):
    session = open_on(model, name, prompts, OPTIONS.get(name), new_tokens=4)
    found = [session.logits.clone()]
    for _ in range(3):
        token = torch.full((len(prompts), 1), 7, device=model.device)
        found.append(session.step(token).clone())
    session.close()
    return torch.stack(found).cpu()


@pytest.mark.parametrize("name", method_names())
def test_cuda_equals_cpu(name, tiny_llama, tmp_path, monkeypatch):
    if name == "kvpress":
        skip_without_kvpress()
    monkeypatch.chdir(tmp_path)
    make_calibrations(tiny_llama)
    prompts = [random_ids(1200), random_ids(1150, 1)]
    expected = logits(tiny_llama, name, prompts)
    got = logits(tiny_llama.cuda(), name, prompts)
    assert torch.equal(got.argmax(-1), expected.argmax(-1))
    torch.testing.assert_close(got, expected, atol=5e-3, rtol=5e-3)
