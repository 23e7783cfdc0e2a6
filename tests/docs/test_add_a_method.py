"""The example of docs/add_a_method.md, written to a package and held to the contract."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from retrobench.core import registry
from retrobench.core.budget import Budget
from retrobench.core.spec import parse
from retrobench.engine import hf
from retrobench.engine.session import Session
from retrobench.measure.probe import CountingProbe

DOC = Path(__file__).resolve().parents[2] / "docs" / "add_a_method.md"


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """The documented method, found by name through the registry."""
    text = DOC.read_text()
    package = tmp_path / "documented_methods"
    package.mkdir()
    (package / "__init__.py").touch()
    (source,) = re.findall(r"```python\n(.*?)```", text, re.S)
    (package / "value_norm.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    sources = {**registry._sources(), "value_norm": "documented_methods.value_norm"}
    monkeypatch.setattr(registry, "_sources", lambda: sources)
    yield registry.method_class("value_norm")
    sys.modules.pop("documented_methods.value_norm", None)


def logits(model, method, prompt, budget):
    session = Session(
        model,
        method,
        parse(method.Config, {}, "method"),
        [prompt],
        probe=CountingProbe(),
        clock=lambda: 0.0,
        max_new_tokens=4,
        budget=budget,
    )
    with torch.inference_mode():
        found = [session.prefill(len(prompt))]
        session.seal()
        for _ in range(3):
            found.append(session.step(found[-1].argmax(-1, keepdim=True)))
    assert session.method.allocated() == method.plan(session.method.config, session.shape, budget)
    assert session.method.probe.missing(session.layers, 3) == []
    session.close()
    return torch.stack(found)


def test_the_documented_method_keeps_the_contract(documented, tiny_llama):
    hf.attach(tiny_llama)
    prompt = torch.randint(3, 101, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    full = registry.method_class("full")
    expected = logits(tiny_llama, full, prompt, None)
    everything = logits(tiny_llama, documented, prompt, Budget.parse("100%"))
    torch.testing.assert_close(everything, expected, atol=2e-5, rtol=1e-4)
    little = logits(tiny_llama, documented, prompt, Budget.parse("25%"))
    assert not torch.allclose(little[1:], expected[1:], atol=1e-4)


def test_the_documented_yaml_names_the_module():
    (yaml,) = re.findall(r"```yaml\n(.*?)```", DOC.read_text(), re.S)
    assert yaml.strip() == "name: value_norm"
