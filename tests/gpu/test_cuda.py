"""Methods on a CUDA device give what they give on the CPU (skipped without one)."""

from __future__ import annotations

import pytest
import torch

from retrobench.core.registry import method_class, method_names
from retrobench.core.spec import parse
from retrobench.engine import hf
from retrobench.engine.session import Session
from retrobench.measure.probe import CountingProbe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def logits(model, name, prompts):
    method = method_class(name)
    session = Session(
        model,
        method,
        parse(method.Config, {}, "method"),
        prompts,
        probe=CountingProbe(),
        clock=lambda: 0.0,
        max_new_tokens=4,
    )
    with torch.inference_mode():
        found = [session.prefill(session.ids_BS.shape[1])]
        session.seal()
        for _ in range(3):
            found.append(session.step(torch.full((len(prompts), 1), 7, device=model.device)))
    session.close()
    return torch.stack(found).cpu()


@pytest.mark.parametrize("name", method_names())
def test_cuda_equals_cpu(name, tiny_llama):
    hf.attach(tiny_llama)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 101, (n,), generator=generator).tolist() for n in (1200, 1150)]
    expected = logits(tiny_llama, name, prompts)
    got = logits(tiny_llama.cuda(), name, prompts)
    assert torch.equal(got.argmax(-1), expected.argmax(-1))
    torch.testing.assert_close(got, expected, atol=5e-3, rtol=5e-3)
