"""What HeteroCache measures beforehand: stability and likeness of heads, and the file of it."""

from __future__ import annotations

from statistics import median

import pytest
import torch
from retrobench_methods.heterocache import HeteroCache, calibration
from retrobench_methods.heterocache.roles import Roles, stars

from retrobench.core.spec import parse
from tests.methods.inputs import layer_tensors
from tests.methods.test_heterocache import ARGS
from tests.support import (
    greedy_logits,
    kv_shape,
    make_calibrations,
    open_on,
    prompt_layer,
    random_ids,
)


def test_stars_are_greedy_and_ties_go_to_the_first_head():
    def similar(pairs, heads):
        return [
            [1.0 if a == b or {a, b} in pairs else 0.0 for b in range(heads)] for a in range(heads)
        ]

    assert stars(similar([{0, 1}, {1, 2}, {2, 3}], 4), 0.5) == {1: [0, 2]}
    assert stars(similar([{0, 1}, {2, 3}], 5), 0.5) == {0: [1], 2: [3]}
    assert stars(similar([], 3), 0.5) == {}
    assert stars(similar([], 1), 0.5) == {}
    assert stars([[1.0, 0.5], [0.5, 1.0]], 0.5) == {0: [1]}  # the threshold itself is enough
    assert stars([[0.0] * 3] * 3, 0.0) == {0: [1, 2]}
    roles = Roles.of([[0.2, 0.9, 0.5, 0.49]], [similar([{0, 1}], 4)], 0.5, 0.5)
    assert roles.role_LG == [["pivot", "satellite", "anchor", "volatile"]]
    assert roles.counts() == {"anchor": 1, "volatile": 1, "pivot": 1, "satellite": 1}


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (4, 1)])
def test_what_is_measured_equals_a_naive_reference(heads, groups):
    shape = kv_shape(num_heads=heads, num_kv_heads=groups, max_tokens=300)
    q, k, v = layer_tensors("clustered", shape, 4)[0]
    stability, at_prefill, in_median = calibration.measure(prompt_layer(q, k, v, ARGS))
    size, sets = round(0.2048 * 200), []
    for t in range(199, 300):
        step = []
        for g in range(groups):
            query = q[0, g * heads // groups : (g + 1) * heads // groups, t].double()
            weight = (query @ k[0, g, : t + 1].double().T * ARGS.scale).softmax(-1).mean(0)[:200]
            around = torch.nn.functional.pad(weight, (2, 2))
            pooled = around.unfold(0, 5, 1).sum(-1)
            step.append(set(pooled.topk(size).indices.tolist()))
        sets.append(step)
    for g in range(groups):
        common = [len(step[g] & sets[0][g]) / size for step in sets[1:]]
        assert float(stability[g]) == pytest.approx(median(common), abs=1e-6)
        for h in range(groups):
            common = [len(step[g] & step[h]) / size for step in sets]
            assert float(at_prefill[g, h]) == pytest.approx(common[0], abs=1e-6)
            assert float(in_median[g, h]) == pytest.approx(median(common[1:]), abs=1e-6)


def test_a_missing_file_names_the_command_and_another_models_is_refused(tiny_llama, tmp_path):
    config = parse(HeteroCache.Config, {"calibration_dir": str(tmp_path)}, "method")
    with pytest.raises(ValueError, match=r"`python scripts/calibrate.py method=heterocache model="):
        open_on(tiny_llama, HeteroCache, [random_ids(50)], config)
    files = make_calibrations(tiny_llama, config)
    (file,) = (file for file in files if file.name.startswith("heterocache"))
    with pytest.raises(ValueError, match="made for another model"):
        calibration.load(file, config, kv_shape(layers=(0, 1, 2), num_kv_heads=3))
    whole = calibration.load(file, config, kv_shape(layers=(0, 1, 2)))
    part = calibration.load(file, config, kv_shape(layers=(0, 2)))  # layer 1 is dense
    assert part.stability_LG == [whole.stability_LG[0], whole.stability_LG[2]]


@pytest.mark.parametrize("similarity_at", ["prefill", "decode_median"])
def test_a_question_after_the_prefill(tiny_llama, tmp_path, similarity_at):
    """Heads choose from what was read before; the tokens fed after that are kept."""
    options = {"calibration_dir": str(tmp_path), "similarity_at": similarity_at}
    options |= {"similar": 0.2, "stable": 0.0}  # a random model has no alike heads
    make_calibrations(tiny_llama, parse(HeteroCache.Config, options, "method"))
    answers = []
    for name, budget in (("full", None), ("heterocache", "100%"), ("heterocache", "60%")):
        prompts = [random_ids(200), random_ids(180, 1)]
        session = open_on(
            tiny_llama, name, prompts, options if budget else {}, budget=budget, tail_tokens=40
        )
        with torch.inference_mode():
            session.feed(session.ids_BS[:, session.length :])
        answers.append(greedy_logits(session, 6))
    torch.testing.assert_close(answers[1], answers[0], atol=2e-5, rtol=1e-4)
    assert torch.isfinite(answers[2]).all() and not torch.equal(answers[2], answers[1])
