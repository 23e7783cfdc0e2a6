"""A closed session holds nothing: its cycles of references wait long for the collector."""

from __future__ import annotations

import gc

import pytest
import torch

from retrobench.core.registry import method_names
from tests.support import make_calibrations, open_on, random_ids, skip_without_kvpress

OPTIONS = {
    "kvpress": {"press": "KnormPress"},
    "retrieval_attention": {"sink_tokens": 4, "local_tokens": 64},
    "heterocache": {"full_heads": "top"},
}


def tensor_bytes():
    """Of all tensors that something refers to."""
    storages = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for x in gc.get_objects()
        if type(x) is torch.Tensor
    }
    return sum(storages.values())


@pytest.mark.parametrize("name", method_names())
def test_a_closed_session_has_freed_its_memory(tiny_llama, name, tmp_path, monkeypatch):
    if name == "kvpress":
        skip_without_kvpress()
    monkeypatch.chdir(tmp_path)
    make_calibrations(tiny_llama)
    gc.collect()
    gc.disable()
    try:
        before = tensor_bytes()
        budget = "50%" if name == "kvpress" else None
        session = open_on(tiny_llama, name, [random_ids(2500)], OPTIONS.get(name), budget=budget)
        with session:
            session.step(session.logits.argmax(-1, keepdim=True))
            held = session.allocated().total
            session.prompt = None  # the caller's
        assert held > 400_000
        assert tensor_bytes() - before < held / 4
    finally:
        gc.enable()
