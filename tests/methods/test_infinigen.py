"""InfiniGen: skewing, speculation, pool and prefetch against plain references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retrobench_kernels.logit_margin import head_margins
from retrobench_methods.infinigen import InfiniGen, calibration
from retrobench_methods.infinigen.config import InfiniGenConfig
from retrobench_methods.infinigen.pool import KVPool
from retrobench_methods.infinigen.speculation import PartialKeys, choose_tokens
from transformers import Phi3Config, Qwen2Config, Qwen3Config

from retrobench.core.method import AttentionArgs, Needs, Probe
from retrobench.engine import hf
from retrobench.engine.attention.dense import DenseMethod
from retrobench.engine.prefill import prefill
from retrobench.engine.queries import weights_id
from retrobench.measure.probe import CountingProbe
from tests.support import build, kv_shape, open_on, prompt_layer, random_ids, ticks


def make_shape(**changes):
    return kv_shape(**{"layers": (0, 1, 2), "prompt_tokens": 40, "max_tokens": 60, **changes})


def calibrated(model, tmp_path, ids, **options):
    """A config and the calibration file made of a prompt."""
    hf.attach(model)
    config = InfiniGenConfig(calibration_dir=str(tmp_path), **options)
    made = prefill(model, [ids], clock=ticks(), needs=InfiniGen.Calibrator.needs)
    text = {"text": "random"}
    return config, InfiniGen.Calibrator.save(config, made.layers, weights_id(model), text)


def decode(model, config, ids, steps=5, budget="20%", probe=None):
    """Logits of some forced steps."""
    probe = probe or Probe()
    session = open_on(
        model, InfiniGen, [ids], config, new_tokens=steps + 1, budget=budget, probe=probe
    )
    with torch.inference_mode():
        logits = [session.step(torch.tensor([[7 + i]])) for i in range(steps)]
    return torch.stack(logits), session


@pytest.mark.parametrize("family", [None, Qwen2Config, Qwen3Config, Phi3Config])
def test_queries_are_those_of_the_layer_itself(model_factory, family):
    """Biases (Qwen2), query norms (Qwen3) and fused projections (Phi-3) are the model's own."""
    model = model_factory(family) if family else model_factory()
    hf.attach(model)
    seen, predicted = {}, {}

    class Watch(DenseMethod):
        name, needs = "watch", Needs(layer_inputs=True)

        def bind(self, view):
            self.view = view

        def layer_input(self, layer, hidden_BTM):
            predicted[layer] = self.view.queries(layer, hidden_BTM)

        def decode(self, layer, q_BHTD, *rest):
            seen[layer] = q_BHTD
            return super().decode(layer, q_BHTD, *rest)

    session = open_on(model, Watch, [random_ids(50)], InfiniGenConfig())
    session.step(torch.tensor([[7]]))
    session.close()
    assert sorted(seen) == [0, 1, 2]
    for layer, q_BHTD in seen.items():
        assert torch.equal(q_BHTD, predicted[layer])
    assert session.method.view.projection_bytes(1) > 0


def test_skewing_keeps_every_logit_and_gathers_the_queries(tiny_llama, tmp_path):
    _, file = calibrated(tiny_llama, tmp_path, random_ids(400))
    shape = make_shape(head_dim=24)
    found = calibration.load(file, shape)
    skew = found["skew_LGDD"]
    eye = torch.eye(24).expand_as(skew)
    torch.testing.assert_close(skew @ skew.mT, eye, atol=1e-5, rtol=0)
    q, k = torch.randn(2, 3, 2, 10, 24)
    torch.testing.assert_close((q @ skew) @ (k @ skew).mT, q @ k.mT, atol=1e-4, rtol=1e-4)
    # singular vectors are sorted: the first channels carry the queries
    q_abs = found["q_abs_LGD"]
    assert (q_abs[..., :8].sum(-1) > q_abs[..., 16:].sum(-1)).all()
    with pytest.raises(ValueError, match="made for another model"):
        calibration.load(file, make_shape())


def test_a_missing_calibration_names_the_command(tmp_path):
    config = InfiniGenConfig(calibration_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"scripts/calibrate.py method=infinigen"):
        InfiniGen.calibration(config, "0123456789abcdef")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), alpha=st.floats(0.1, 6), cap=st.integers(1, 30))
def test_thresholds_are_per_head(seed, alpha, cap):
    """The released Llama file compares all heads with head 0's maximum; here each has its own."""
    generator = torch.Generator().manual_seed(seed)
    logit = 3 * torch.randn(1, 2, 2, 30, generator=generator)
    logit += 10 * torch.randn(1, 2, 2, 1, generator=generator)  # heads at different heights
    exists = torch.ones(1, 2, 30, dtype=torch.bool)
    exists[..., :2] = False
    config = InfiniGenConfig(alpha=alpha, count="per_head", scope="query_head")
    score = head_margins(logit, exists, per_head=True)
    slots = choose_tokens(score, config, (cap,), fixed=False)
    counts = []
    for head in range(4):
        row = logit.flatten(1, 2)[0, head, 2:]
        wanted = (row > row.max() - alpha).nonzero()[:, 0] + 2
        wanted = sorted(wanted.tolist(), key=lambda s: -float(logit.flatten(1, 2)[0, head, s]))
        counts.append(len(wanted))
        got = slots[0, head][slots[0, head] >= 0].tolist()
        assert got == wanted[:cap]
    shared = InfiniGenConfig(alpha=alpha, count="mean", scope="query_head")
    slots = choose_tokens(score, shared, (cap,), fixed=False)
    each = min(cap, max(1, int(sum(counts) / 4)))
    assert (slots >= 0).sum(-1).tolist() == [[each] * 4]


@pytest.mark.parametrize("per_head", [False, True])
def test_a_soft_cap_counts_in_the_prediction(per_head):
    torch.manual_seed(0)
    shape = make_shape(max_tokens=40)
    partial = PartialKeys(InfiniGenConfig(partial_frac=1.0, dense_layers=()), shape, None)
    q, k, skew = torch.randn(1, 4, 40, 8), torch.randn(1, 2, 40, 8), torch.eye(8).expand(2, 8, 8)
    sums = {"skew_LGDD": skew, "q_abs_LGD": q[0, ::2, 0], "k_abs_LGD": k[0, :, 0]}
    partial.choose_channels(1, prompt_layer(q, k, k), sums)
    partial.write(1, slice(0, 40), k)
    exists, args = torch.ones(1, 2, 40, dtype=torch.bool), AttentionArgs(scale=2.0, softcap=3.0)
    got = partial.scores(1, q[:, :, :1], exists, args, per_head)
    logit = 3 * torch.tanh(2 * q[0, :, 0].unflatten(0, (2, 2)) @ k[0].mT / 3)
    expected = logit - logit.amax(-1, keepdim=True)
    expected = expected.flatten(0, 1) if per_head else expected.amax(1)
    torch.testing.assert_close(got[0], expected, atol=1e-5, rtol=1e-4)


def test_channel_variants():
    shape = make_shape()
    skew = torch.eye(8).expand(2, 8, 8)
    q = torch.ones(1, 4, 10, 8) * torch.tensor([1, 2, 3, 4, 5, 0, 0, 0.0])
    k = torch.ones(1, 2, 10, 8) * torch.tensor([9, 0, 0, 0, 0, 0, 0, 30.0])
    used = {}
    for variant in ("paper", "speed", "accuracy"):
        config = InfiniGenConfig(channels=variant, partial_frac=0.25, dense_layers=())
        partial = PartialKeys(config, shape, None)
        sums = {"skew_LGDD": skew, "q_abs_LGD": q[0, ::2].sum(1), "k_abs_LGD": k[0].sum(1)}
        partial.choose_channels(1, prompt_layer(q, k, k), sums)
        basis = partial.basis_LBGDC[partial.slot[1], 0, 0]
        used[variant] = set(basis.abs().sum(1).nonzero()[:, 0].tolist())
        assert partial.footprint() == PartialKeys.plan(config, shape)
    # sums per KV head: |Q| counts both query heads of the group
    assert used == {"paper": {7, 0}, "speed": {4, 3}, "accuracy": {4, 3, 7, 0}}


@pytest.mark.parametrize("policy", ["counter", "lru", "fifo"])
def test_eviction_follows_its_policy(policy):
    """Against a list of (position, use): the victim has the smallest use, then the oldest."""
    shape = make_shape(layers=(0,), prompt_tokens=20, max_tokens=60)
    config = InfiniGenConfig(pool_frac=0.4, pool_policy=policy, placement="gpu")
    pool = KVPool(config, shape)
    keys = torch.arange(60.0).reshape(1, 1, 60, 1).expand(1, 2, 60, 8)
    pool.load_used(0, prompt_layer(None, keys[:, :, :20], keys[:, :, :20]), torch.zeros(1, 2, 20))
    model = [{"position": p, "use": 0} for p in range(20)]
    generator = torch.Generator().manual_seed(0)
    for position in range(20, 60):
        slots = torch.randperm(len(model), generator=generator)[:3]
        pool.touch(0, slots.expand(1, 2, -1))
        for slot in slots.tolist():
            model[slot]["use"] = position if policy == "lru" else model[slot]["use"] + 1
        pool.add(0, keys[:, :, position : position + 1], keys[:, :, position : position + 1])
        new = {"position": position, "use": position if policy == "lru" else 0}
        if len(model) < 24:
            model.append(new)
        else:
            old = [e for e in model if e["position"] < position - 12]
            key = (lambda e: e["position"]) if policy == "fifo" else _rank
            model[model.index(min(old, key=key))] = new
        expected = [entry["position"] for entry in model]
        assert pool.positions(0)[0, 0, : len(model)].tolist() == expected
        got, _ = pool.fetch(0, torch.arange(len(model)).expand(1, 2, -1))
        assert got[0, 1, :, 0].tolist() == expected
    assert pool.footprint() == KVPool.plan(config, shape)


def _rank(entry):
    return entry["use"], entry["position"]


def test_a_pool_smaller_than_the_prompt_keeps_what_is_used(tiny_llama, tmp_path):
    ids = random_ids(300)
    for policy in ("counter", "lru", "fifo"):
        config, _ = calibrated(tiny_llama, tmp_path, ids, pool_frac=0.5, pool_policy=policy)
        logits, session = decode(tiny_llama, config, ids)
        assert torch.isfinite(logits).all()
        positions = session.method.store.positions(1)
        assert positions.shape[-1] == 153 and len(set(positions[0, 0].tolist())) == 153
        assert session.method.allocated() == InfiniGen.plan(config, session.shape)
        session.close()


def test_prefetch_changes_nothing_but_time(tiny_llama, tmp_path):
    ids, results, hidden = random_ids(300), [], []
    for options in ({"prefetch": True}, {"prefetch": False}, {"placement": "gpu"}):
        config, _ = calibrated(tiny_llama, tmp_path, ids, dense_layers=(0,), **options)
        probe = CountingProbe(spans=True)
        logits, session = decode(tiny_llama, config, ids, probe=probe)
        session.close()
        results.append(logits)
        hidden.append(probe.row()["fetch_hidden_frac"])
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert 0 <= hidden[0] <= 1 and hidden[1:] == [0, 0]  # at once: nothing is hidden


def test_bytes_equal_the_formula(tiny_llama, tmp_path):
    ids, probe, steps = random_ids(400), CountingProbe(), 4
    config, _ = calibrated(tiny_llama, tmp_path, ids, dense_layers=(0, 1), partial_frac=0.5)
    _, session = decode(tiny_llama, config, ids, steps, "10%", probe)
    session.close()
    token = 2 * 2 * 24 * 4  # K and V of both KV heads
    per_step = probe.row()["bytes_per_step"]
    dense, sparse = 402.5 * token, 40 * token  # 10% of 400 with the newest token
    assert per_step["kv"] == pytest.approx(2 * dense + sparse, rel=0.01)
    assert per_step["index"] == pytest.approx(401.5 * 2 * 12 * 4, rel=0.01)
    assert per_step["h2d"] == pytest.approx(2 * (dense - token) + sparse - token, rel=0.01)
    assert per_step["weights"] == (4 + 2 + 2) * 24 * 64 * 4
    assert per_step["d2h"] == 3 * token + 8 * 2 * 39


@pytest.mark.parametrize("pads", [(0, 0), (0, 7)])
@pytest.mark.parametrize("pool_frac", [1.0, 0.5])
def test_dense_layers_attend_to_every_token_of_the_pool(pads, pool_frac):
    """Against softmax over the tokens that the pool says it holds; slots of victims are reused."""
    torch.manual_seed(0)
    shape = make_shape(layers=(0,), pad_tokens=pads, head_dim=32)
    method = InfiniGen(InfiniGenConfig(pool_frac=pool_frac), shape)
    args = AttentionArgs(scale=0.3)
    k, v = torch.randn(2, 2, 2, 60, 32)
    build(method, {0: (torch.randn(2, 4, 40, 32), k[:, :, :40], v[:, :, :40])}, args)
    for t in range(40, 60):
        q = torch.randn(2, 4, 1, 32)
        out = method.decode(0, q, k[:, :, t : t + 1], v[:, :, t : t + 1], args)
        position = method.store.positions(0)
        for row in range(2):
            for head in range(4):
                held = position[row, head // 2]
                held = held[held >= pads[row]]
                assert len(held) >= 15 and int(held.max()) == t
                weight = (k[row, head // 2, held] @ q[row, head, 0] * 0.3).softmax(0)
                expected = weight @ v[row, head // 2, held]
                torch.testing.assert_close(out[row, head, 0], expected, atol=1e-5, rtol=1e-4)
    method.close()
