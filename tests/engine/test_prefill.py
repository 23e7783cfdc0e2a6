"""One prefill serves many sessions, keeps what is asked for, and survives on disk."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from transformers import Gemma2Config, Qwen2Config

from retrobench.core.method import ALL_INPUTS, ALL_QUERIES, AttentionArgs, Needs
from retrobench.core.registry import method_class
from retrobench.core.spec import parse
from retrobench.engine import hf
from retrobench.engine.attention.exact import attention_mass
from retrobench.engine.prefill import prefill, prompt_bytes
from retrobench.engine.prefill_cache import PrefillCache
from retrobench.engine.session import Session
from tests.support import greedy_logits, kv_shape, open_on, random_ids, ticks

EVERYTHING = Needs(prompt_queries=ALL_QUERIES, prompt_mass=5, prompt_inputs=ALL_INPUTS)
MIXED = {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}


def session_on(model, name, prompt, last_use, options=None):
    method = method_class(name)
    config = parse(method.Config, options or {}, "method")
    session = Session(
        model, method, config, prompt, max_new_tokens=6, clock=ticks(), last_use=last_use
    )
    session.build()
    return session


@pytest.mark.parametrize("family", [None, (Qwen2Config, MIXED)])
def test_sessions_on_one_prefill_answer_as_on_their_own(family, tiny_llama, model_factory):
    model = model_factory(family[0], **family[1]) if family else tiny_llama
    prompts = [random_ids(200), random_ids(180, 1)]
    hf.attach(model)
    names = {"full": {}, "oracle_topk": {}, "quest": {"dense_layers": []}, "full_offload": {}}
    shared = prefill(model, prompts, clock=ticks(), room=6)
    for number, (name, options) in enumerate(names.items()):
        session = session_on(model, name, shared, number + 1 == len(names), options)
        alone = open_on(model, name, prompts, options, new_tokens=6)
        assert torch.equal(greedy_logits(session, 6), greedy_logits(alone, 6)), name
        session.close()
    assert not shared.layers  # the last session took the memory


def test_the_last_session_keeps_the_memory_and_others_leave_it(tiny_llama):
    hf.attach(tiny_llama)
    shared = prefill(tiny_llama, [random_ids(100)], clock=ticks(), room=6)
    before = {layer: part.memory[0].clone() for layer, part in shared.layers.items()}
    first = session_on(tiny_llama, "full", shared, last_use=False)
    greedy_logits(first, 6)
    for layer, part in shared.layers.items():
        assert torch.equal(part.memory[0][:, :, :100], before[layer][:, :, :100])
    address = {layer: part.memory[0].data_ptr() for layer, part in shared.layers.items()}
    last = session_on(tiny_llama, "full", shared, last_use=True)
    for layer, i in last.method.store.index.items():
        assert last.method.store.k[i][0].data_ptr() == address[layer]
        assert first.method.store.k[i][0].data_ptr() != address[layer]


def test_it_keeps_what_is_asked_for(tiny_llama):
    hf.attach(tiny_llama)
    prompts = [random_ids(50), random_ids(43, 1)]
    whole = prefill(tiny_llama, prompts, clock=ticks(), needs=EVERYTHING, chunk_tokens=50)
    parts = prefill(tiny_llama, prompts, clock=ticks(), needs=EVERYTHING, chunk_tokens=13)
    few = Needs(prompt_queries=4, prompt_inputs=20)
    window = prefill(tiny_llama, prompts, clock=ticks(), needs=few, chunk_tokens=13)
    for layer in (0, 1, 2):
        one, other, last = (x.layers[layer] for x in (whole, parts, window))
        assert one.q_BHWD.shape == (2, 4, 50, 24) and one.input_BWM.shape == (2, 50, 64)
        for name in ("k_BGSD", "v_BGSD", "q_BHWD", "mass_BHS", "input_BWM"):
            real = getattr(one, name)[0], getattr(other, name)[0]
            torch.testing.assert_close(*real, atol=1e-5, rtol=1e-4)
        assert torch.equal(last.q_BHWD[0], other.q_BHWD[0, :, -4:])
        assert torch.equal(last.input_BWM, other.input_BWM[:, -20:])
        assert last.mass_BHS is None
        torch.testing.assert_close(one.mass_BHS.sum(-1), torch.full((2, 4), 5.0))
        assert one.mass_BHS[1, :, :7].abs().max() == 0  # padding


def test_attention_mass_equals_the_formula():
    q, k = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 20, 8)
    found = attention_mass(q, k, AttentionArgs(scale=0.3), (2,))
    for head in range(4):
        expected = torch.zeros(20)
        for w in range(3):
            seen = slice(2, 18 + w)
            logit = k[0, head // 2, seen] @ q[0, head, w] * 0.3
            expected[seen] += logit.softmax(0)
        torch.testing.assert_close(found[0, head], expected)


def test_needs_add_up():
    both = Needs(prompt_queries=8, prompt_mass=2) | Needs(prompt_queries=3, layer_inputs=True)
    assert both == Needs(prompt_queries=8, prompt_mass=2, layer_inputs=True)
    assert (both | Needs(prompt_queries=ALL_QUERIES)).prompt_queries == ALL_QUERIES
    both |= Needs(prompt_inputs=3, modules=True)
    assert both.modules and both.prompt_inputs == 3
    assert (both | Needs(prompt_inputs=ALL_INPUTS)).prompt_inputs == ALL_INPUTS


@pytest.mark.parametrize(
    ("chunk_tokens", "forms"), [(64, {"split"}), (50, {"split"}), (63, {"split", "token"})]
)
def test_it_names_what_computed_its_attention(chunk_tokens, forms, tiny_llama):
    hf.attach(tiny_llama)
    prompts = [random_ids(64), random_ids(40, 1)]
    made = prefill(tiny_llama, prompts, clock=ticks(), chunk_tokens=chunk_tokens, tail_tokens=0)
    assert made.attention == forms and made.real_tokens == 104
    made = prefill(tiny_llama, prompts, clock=ticks(), tail_tokens=30)
    assert made.real_tokens == 34 + 10


def test_soft_caps_are_computed_under_a_mask(model_factory):
    model = model_factory(Gemma2Config, sliding_window=16, attn_logit_softcapping=5.0)
    hf.attach(model)
    assert prefill(model, [random_ids(50)], clock=ticks()).attention == {"masked"}


def test_the_plan_knows_a_prompts_bytes(tiny_llama):
    hf.attach(tiny_llama)
    made = prefill(
        tiny_llama, [random_ids(64)], clock=ticks(), needs=Needs(prompt_queries=8), room=16
    )
    shape = kv_shape(layers=(0, 1, 2), head_dim=24)
    assert made.num_bytes == prompt_bytes(shape, Needs(prompt_queries=8))


class TestOnDisk:
    def prefilled(self, model, folder, ids, gib=1.0, **settings):
        cache = PrefillCache(gib, folder)
        needs = Needs(prompt_queries=2, prompt_rotary=True)
        values = {"needs": needs, "chunk_tokens": 64, "tail_tokens": 0}
        return cache.prefill(model, {"name": "m"}, [ids], clock=ticks(), **{**values, **settings})

    def test_a_second_time_nothing_is_computed(self, tiny_llama, tmp_path):
        hf.attach(tiny_llama)
        first = self.prefilled(tiny_llama, tmp_path, random_ids(90), room=6)
        again = self.prefilled(tiny_llama, tmp_path, random_ids(90), room=6)
        assert (first.origin, again.origin) == ("computed", "disk")
        assert again.seconds == first.seconds and again.attention == first.attention == {"split"}
        for layer, part in first.layers.items():
            for name in ("k_BGSD", "v_BGSD", "q_BHWD", "cos_BSD", "sin_BSD"):
                assert torch.equal(getattr(part, name), getattr(again.layers[layer], name))
        logits = [
            greedy_logits(session_on(tiny_llama, "full", made, True), 6) for made in (first, again)
        ]
        assert torch.equal(*logits)
        for changes in ({"chunk_tokens": 32}, {"tail_tokens": 3}, {"needs": Needs()}):
            assert self.prefilled(tiny_llama, tmp_path, random_ids(90), **changes).origin != "disk"
        assert self.prefilled(tiny_llama, tmp_path, random_ids(91)).origin == "computed"

    def test_a_damaged_file_is_computed_again(self, tiny_llama, tmp_path, capsys):
        hf.attach(tiny_llama)
        self.prefilled(tiny_llama, tmp_path, random_ids(90))
        (file,) = tmp_path.glob("*.safetensors")
        whole = file.read_bytes()
        bare = safetensors.torch.save(safetensors.torch.load(whole))  # no metadata
        for damaged in (whole[: len(whole) // 2], whole[:-7] + b"\x01" * 7, b"", bare):
            file.write_bytes(damaged)
            assert self.prefilled(tiny_llama, tmp_path, random_ids(90)).origin == "computed"
            assert "is computed again" in capsys.readouterr().err
            assert self.prefilled(tiny_llama, tmp_path, random_ids(90)).origin == "disk"

    def test_it_stays_within_its_size_oldest_out_first(self, tiny_llama, tmp_path):
        hf.attach(tiny_llama)
        self.prefilled(tiny_llama, tmp_path, random_ids(90))
        size = next(tmp_path.glob("*.safetensors")).stat().st_size
        room = 2.5 * size / 2**30
        for seed in (1, 2, 3):
            self.prefilled(tiny_llama, tmp_path, random_ids(90, seed), gib=room)
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= room * 2**30
        assert self.prefilled(tiny_llama, tmp_path, random_ids(90, 3), gib=room).origin == "disk"
        assert self.prefilled(tiny_llama, tmp_path, random_ids(90), gib=room).origin == "computed"
        assert self.prefilled(tiny_llama, tmp_path, random_ids(90), gib=0.0).origin == "computed"

    def test_a_model_with_sliding_windows_keeps_nothing(self, model_factory, tmp_path):
        model = model_factory(Qwen2Config, **MIXED)
        hf.attach(model)
        for _ in range(2):
            assert self.prefilled(model, tmp_path, random_ids(90)).origin == "computed"
        assert not list(tmp_path.iterdir())
