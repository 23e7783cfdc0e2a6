"""The faces of ops: the signature of the reference, the choice of a form, extra keywords."""

from __future__ import annotations

import inspect

import pytest
import torch
from retrobench_kernels import dispatch, native
from retrobench_kernels.cluster_select import cluster_select
from retrobench_kernels.page_select import best_pages, page_select
from retrobench_kernels.wave_attention import wave_attention
from retrobench_kernels.wave_step import wave_step


def test_an_op_has_the_signature_of_its_reference():
    names = {op: list(inspect.signature(op).parameters) for op in (wave_attention, wave_step)}
    zones = ["q_BHD", "steady", "pool", "retrieved_BGR", "scale"]
    assert names[wave_attention] == [*zones, "estimation", "cache", "softcap"]
    assert names[wave_step] == [*zones, "estimation", "cache", "softcap"]
    assert "One softmax" in (wave_attention.__doc__ or "")
    assert inspect.signature(cluster_select).parameters["softcap"].default == 0.0


def test_every_argument_may_be_given_by_name():
    low = torch.randint(-3, 4, (1, 1, 9, 5)).float()  # a head dim that only plain torch takes
    q, pages, wanted = torch.randn(1, 2, 5), torch.tensor([9]), torch.tensor([3])
    limits = {"max_selected": 3, "newest": True}
    expected = page_select(q, low, low, pages, wanted, **limits)
    named = {"q_BHD": q, "low_BGCD": low, "high_BGCD": low, "num_pages_B": pages}
    got = page_select(selected_B=wanted, **named, **limits)
    bound = (low @ q.mT).sum(-1)
    assert torch.equal(got, expected)
    assert torch.equal(got, best_pages(bound, pages, wanted, **limits))


def test_a_wrong_argument_is_named():
    limits = {"max_selected": 3, "newest": True}
    with pytest.raises(TypeError, match="PageSelectArgs.* 'oldest'"):
        page_select(*[torch.zeros(1, 1, 1, 5)] * 5, **limits, oldest=True)


def test_the_forms_that_ran_are_told_once(monkeypatch):
    dispatch.forms_used()
    low, q = torch.zeros(1, 1, 9, 5), torch.randn(1, 2, 5)  # a head dim for plain torch alone
    inputs = (q, low, low, torch.tensor([9]), torch.tensor([3]))
    page_select(*inputs, max_selected=3, newest=True)
    assert dispatch.forms_used()["page_select"] == "naive"
    assert dispatch.forms_used() == {}
    fast = "cpu" if native.library() is not None else "naive"
    low, q = torch.zeros(1, 1, 9, 64), torch.randn(1, 2, 64)
    page_select(q, low, low, *inputs[3:], max_selected=3, newest=True)
    assert dispatch.forms_used()["page_select"] == fast


def test_a_form_that_does_not_exist_is_none():
    assert dispatch.form_module("retrobench_kernels.cluster_layout", "cpu") is None
