"""The bridge to kvpress: scores of its presses at our budget, and nothing of it left behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from retrobench_methods import kvpress
from retrobench_methods.kvpress import KVPress
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from retrobench.core.budget import Budget
from retrobench.core.method import ALL_INPUTS
from retrobench.core.spec import parse
from retrobench.engine.replay import TraceView
from tests.support import greedy_logits, kv_shape, open_on, random_ids, skip_without_kvpress

LENGTHS, STEPS = (400, 371), 4
PRESSES = {  # and how many of a layer's inputs they read
    "SnapKVPress": 17, "TOVAPress": 2, "KnormPress": 0, "KeyDiffPress": 0, "LagKVPress": 0,
    "RandomPress": 0, "StreamingLLMPress": 0, "CURPress": 0, "ExpectedAttentionPress": ALL_INPUTS,
    "CapPress": ALL_INPUTS, "CompactorPress": ALL_INPUTS, "LeverageScorePress": ALL_INPUTS,
    "NonCausalAttnPress": ALL_INPUTS,
}  # fmt: skip
OPTIONS = {"SnapKVPress": {"window_size": 16}}


@pytest.fixture
def installed():
    skip_without_kvpress()


def decoded(model, method, options, budget="30%", lengths=LENGTHS):
    """Greedy logits of a batch, and the session."""
    prompts = [random_ids(length, length) for length in lengths]
    session = open_on(model, method, prompts, options, new_tokens=STEPS, budget=budget)
    return greedy_logits(session, STEPS), session


def prompt_positions(session, layer, row):
    held = session.method.store.positions(layer)[row]
    length = LENGTHS[0]
    return [set(head[(head >= 0) & (head < length)].tolist()) for head in held]


@pytest.mark.parametrize(("window", "kernel"), [(32, 7), (16, 5), (8, 1)])
@pytest.mark.parametrize("budget", ["15%", "100tok", "60%"])
def test_our_snapkv_equals_the_press_bit_for_bit(installed, window, kernel, budget, tiny_llama):
    for layer in tiny_llama.model.layers:  # else attention is even, and votes differ by roundings
        layer.self_attn.q_proj.weight.data *= 30
    ours = {"window_tokens": window, "pool": "avg", "pool_tokens": kernel}
    options = {"window_size": window, "kernel_size": kernel}
    expected, native = decoded(tiny_llama, "snapkv", ours, budget)
    got, bridge = decoded(tiny_llama, "kvpress", {"press_options": options}, budget)
    for layer in native.layers:
        for row in range(2):
            kept = prompt_positions(native, layer, row)
            assert kept == prompt_positions(bridge, layer, row)
    assert torch.equal(got, expected)
    assert native.allocated() == bridge.allocated()


def test_knorm_keeps_the_smallest_keys(installed, tiny_llama):
    _, whole = decoded(tiny_llama, "full", None, None)
    _, session = decoded(tiny_llama, "kvpress", {"press": "KnormPress"}, "10%")
    for layer in whole.layers:
        for row, length in enumerate(LENGTHS):
            pad = LENGTHS[0] - length
            norm_GS = whole.method.store.keys(layer)[row, :, pad : LENGTHS[0]].norm(dim=-1)
            order_GS = norm_GS.sort(dim=-1, stable=True).indices  # of equal norms the earlier key
            expected = order_GS[:, : round(0.1 * length)] + pad
            assert prompt_positions(session, layer, row) == [set(x) for x in expected.tolist()]


@pytest.mark.parametrize("press", PRESSES)
def test_every_usable_press_works_at_our_budget(installed, press, tiny_llama):
    modules = [layer.self_attn for layer in tiny_llama.model.layers]
    before = [set(vars(module)) for module in modules]
    options = {"press": press, "press_options": OPTIONS.get(press)}
    needs = KVPress.needs_of(parse(KVPress.Config, options, "method"))
    assert needs.prompt_inputs == PRESSES[press] and needs.modules and not needs.layer_inputs
    together, session = decoded(tiny_llama, "kvpress", options)
    for layer in session.layers:
        for row, length in enumerate(LENGTHS):
            kept = prompt_positions(session, layer, row)
            assert [len(positions) for positions in kept] == [round(0.3 * length)] * 2
            if press == "StreamingLLMPress":
                pad, last = LENGTHS[0] - length, round(0.3 * length) - 4
                expected = set(range(pad, pad + 4)) | set(range(400 - last, 400))
                assert kept == [expected] * 2
    assert session.method.stats()["kvpress"]
    for row, length in enumerate(LENGTHS):  # padding changes nothing
        alone, _ = decoded(tiny_llama, "kvpress", options, lengths=(length,))
        torch.testing.assert_close(together[0, row], alone[0, 0], atol=3e-5, rtol=1e-4)
        tokens = together[:, row].argmax(-1), alone[:, 0].argmax(-1)
        assert torch.equal(*tokens)
    again, _ = decoded(tiny_llama, "kvpress", options)
    assert torch.equal(again, together)
    assert [set(vars(module)) for module in modules] == before


def test_the_import_leaves_attention_functions_as_they_are(installed):
    names = sorted(ALL_ATTENTION_FUNCTIONS.valid_keys())
    before = {name: ALL_ATTENTION_FUNCTIONS[name] for name in names}
    package = kvpress.kvpress()
    assert {name: ALL_ATTENTION_FUNCTIONS[name] for name in names} == before
    try:  # were it patched, the functions would be wrappers: undone once more
        package.patch_attention_functions()
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before["sdpa"]
        kvpress.kvpress.__wrapped__()  # an import that finds the module has nothing to undo
    finally:
        for name in names:
            ALL_ATTENTION_FUNCTIONS[name] = before[name]
            del ALL_ATTENTION_FUNCTIONS[name]
    assert {name: ALL_ATTENTION_FUNCTIONS[name] for name in names} == before


def test_presses_that_cannot_be_asked_are_refused_by_name(installed):
    def plan(**options):
        config = parse(KVPress.Config, options, "method")
        KVPress.plan(config, kv_shape(), Budget.parse("50%"))

    for press, reason in (
        ("ObservedAttentionPress", "attention weights of the whole prompt"),
        ("KVzapPress", "downloads"),
        ("QFilterPress", "downloads"),
        ("CriticalKVPress", "wraps another press"),
        ("PyramidKVPress", "method=pyramidkv"),
        ("AdaKVPress", "method=adakv"),
        ("KVzipPress", "no score"),
        ("ChunkKVPress", "no score"),
    ):
        with pytest.raises(ValueError, match=f"method.press={press} cannot be used: .*{reason}"):
            plan(press=press)
    with pytest.raises(ValueError, match="method.press=SnapKVPres: .*did you mean SnapKVPress"):
        plan(press="SnapKVPres")
    with pytest.raises(ValueError, match="method.press_options.windw_size: .*window_size"):
        plan(press_options={"windw_size": 8})
    with pytest.raises(ValueError, match="compression_ratio: set budget="):
        plan(press_options={"compression_ratio": 0.5})
    with pytest.raises(ValueError, match="alone takes 64 .method.press_options.window_size."):
        config = parse(KVPress.Config, {}, "method")
        KVPress.plan(config, kv_shape(prompt_tokens=500), Budget.parse("10%"))
    with pytest.raises(ValueError, match="method.press_options must be options, written"):
        parse(KVPress.Config, {"press_options": 5}, "method")


def test_a_press_that_fails_is_one_line(installed, tiny_llama):
    options = {"press_options": {"window_size": 30, "kernel_size": 500}}
    with pytest.raises(ValueError, match="method.press=SnapKVPress does not work on this model"):
        decoded(tiny_llama, "kvpress", options, "20%")


def test_without_the_package_the_error_names_the_command(monkeypatch):
    monkeypatch.setattr(kvpress.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed: pip install --no-deps kvpress"):
        kvpress.kvpress.__wrapped__()


def test_a_trace_has_no_modules():
    with pytest.raises(ValueError, match="no modules"):
        TraceView(SimpleNamespace()).attention_module(0)
