"""The factors that turn a prompt's keys, and which families' keys can be turned back."""

from __future__ import annotations

import pytest
import torch

from retrobench.core.method import Needs
from retrobench.engine import hf, traits
from retrobench.engine.attention.rotary import unrotate
from retrobench.engine.prefill import prefill
from retrobench.run.plan import plan_summary
from retrobench.run.spec import parse_run
from tests import support_matrix as support
from tests.support import architecture, random_ids, ticks


@pytest.mark.parametrize("lengths", [(50,), (50, 33)])
def test_keys_of_a_prompt_are_turned_back_to_the_projections_output(lengths, tiny_llama):
    prompts, seen = [random_ids(n) for n in lengths], {}
    hooks = [
        layer.self_attn.k_proj.register_forward_hook(
            lambda module, args, out, i=i: seen.setdefault(i, []).append(out.clone())
        )
        for i, layer in enumerate(tiny_llama.model.layers)
    ]
    hf.attach(tiny_llama)
    needs = Needs(prompt_rotary=True)
    made = prefill(tiny_llama, prompts, clock=ticks(), needs=needs, chunk_tokens=17)
    for hook in hooks:
        hook.remove()
    for i, layer in made.layers.items():
        assert layer.cos_BSD is not None and layer.sin_BSD is not None
        before = unrotate(layer.k_BGSD, layer.cos_BSD, layer.sin_BSD)
        projected = torch.cat(seen[i], 1).unflatten(-1, before.shape[1::2]).transpose(1, 2)
        for row, n in enumerate(lengths):
            torch.testing.assert_close(
                before[row, :, -n:], projected[row, :, -n:], atol=1e-5, rtol=1e-4
            )
    kept = [layer.cos_BSD for layer in made.layers.values()]
    assert all(cos is kept[0] for cos in kept)  # layers share the memory


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma2", "phi3, longrope"])
def test_families_that_turn_all_channels(name):
    assert traits.examine(support._build(name)).no_pre_rope_keys == ""


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("stablelm", "turns 4 of the 16 channels"),
        ("cohere", "does not turn channel c of its keys with channel c"),
        ("smollm3", "does not turn channel c of its keys with channel c"),
        ("gpt_neox", "have no `self_attn`"),
        ("opt", "is given no rotary factors"),
    ],
)
def test_families_that_do_not_say_why(name, cause):
    found = traits.examine(support._build(name))
    assert not found.refusal and cause in found.no_pre_rope_keys


def test_the_plan_refuses_such_a_model():
    config = architecture(model_type="stablelm", num_key_value_heads=4)
    model = {"name": "m", "weights": "random", "config_json": config}
    task = {"name": "speed", "shape": "model"}
    spec = parse_run({"model": model, "method": {"name": "shadowkv"}, "task": task})
    summary, _ = plan_summary(spec)
    assert "method=shadowkv needs keys as they were before their rotation" in summary.refusal
