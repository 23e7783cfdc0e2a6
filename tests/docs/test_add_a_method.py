"""The examples of docs/add_a_method.md, written to a package and held to the contract."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from retrobench.core import registry
from retrobench.core.budget import Budget
from tests.support import greedy_logits, open_on, random_ids

DOC = Path(__file__).resolve().parents[2] / "docs" / "add_a_method.md"
SOURCES = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)
EXAMPLES = {re.findall(r'name = "(\w+)"', source)[0]: source for source in SOURCES}
MAX_LINES = {"snapkv_example": 90, "ragged_example": 120, "cpu_partial_example": 120}
STEPS, LENGTHS = 5, (400, 380)


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """The documented methods, found by name through the registry."""
    package = tmp_path / "documented_methods"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, source in EXAMPLES.items():
        (package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    own = {name: f"documented_methods.{name}" for name in EXAMPLES}
    sources = {**registry._sources(), **own}
    monkeypatch.setattr(registry, "_sources", lambda: sources)
    yield
    for name in ("", *(f".{name}" for name in EXAMPLES)):
        sys.modules.pop(f"documented_methods{name}", None)


def decoded(model, name, budget):
    """Logits of a padded batch, per-step counts, bytes held."""
    prompts = [random_ids(length, length) for length in LENGTHS]
    session = open_on(model, name, prompts, new_tokens=STEPS, budget=budget)
    logits = greedy_logits(session, STEPS)
    method, held = session.method, session.allocated()
    planned = method.plan(method.config, session.shape, Budget.parse(budget) if budget else None)
    assert session.probe.missing(session.layers, STEPS - 1) == []
    session.close()
    assert session.allocated().total == 0
    return logits, session.probe.row(), held, planned


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_documented_method_keeps_the_contract(name, documented, tiny_llama):
    expected, full, whole, _ = decoded(tiny_llama, "full", None)
    everything, counted, _, _ = decoded(tiny_llama, name, "100%")
    torch.testing.assert_close(everything, expected, atol=2e-5, rtol=1e-4)
    assert counted["attended_tokens"] == pytest.approx(full["attended_tokens"])
    little, counted, held, planned = decoded(tiny_llama, name, "25%")
    assert not torch.allclose(little[1:], expected[1:], atol=1e-4)
    assert counted["attended_tokens"] == pytest.approx(0.25 * 390, rel=0.1)
    assert held.device < 0.6 * whole.device  # bytes are really freed
    if name == "ragged_example":
        assert held.device <= planned.device
    else:
        assert held == planned


def test_an_example_is_as_short_as_the_page_says():
    assert set(MAX_LINES) == set(EXAMPLES)
    for name, source in EXAMPLES.items():
        assert len(source.splitlines()) <= MAX_LINES[name]


def test_the_documented_yaml_names_the_module():
    (yaml,) = re.findall(r"```yaml\n(.*?)```", DOC.read_text(), re.S)
    assert yaml.strip() == "name: snapkv_example"
