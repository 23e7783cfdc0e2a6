"""Fidelity against a brute-force reference, and on a model's own trajectory."""

from __future__ import annotations

import itertools

import pytest
import torch

from retrobench.core.method import AttentionArgs, ComparedCall
from retrobench.engine.attention.parts import attend
from retrobench.evaluate import fidelity
from retrobench.measure.exact_call import MASSES, ExactCall
from retrobench.measure.fidelity import FidelityProbe, write_arrays
from retrobench.memory.selection import Estimate
from tests.support import open_on, random_ids, ticks

ARGS = AttentionArgs(scale=0.3)


def compared(model, name, options=None, budget=None, prompts=None, tail_tokens=0):
    """The fidelity of a method on random prompts."""
    prompts = prompts or [random_ids(700)]

    def open_one(new_tokens, **settings):
        return open_on(
            model, name, prompts, options or {}, new_tokens=new_tokens, budget=budget,
            chunk_tokens=300, tail_tokens=tail_tokens, **settings,
        )  # fmt: skip

    return fidelity.measure(open_one, ticks(), steps=5, stop_ids=frozenset())


def check_places(places, p_HS, chosen, pads):
    """Of fewer tokens than places: each has a place of its own, some places have none."""
    mass, attended, tokens = torch.zeros(64), torch.zeros(64), p_HS.shape[1] - pads
    for i in range(tokens):
        mass[i * 64 // tokens] += p_HS[:, pads + i].mean()
        attended[i * 64 // tokens] += sum(pads + i in own for own in chosen) / len(chosen)
    assert places["mass"] == pytest.approx(mass.tolist(), abs=2e-5)
    assert places["attended"] == pytest.approx(attended.tolist(), abs=2e-5)


@pytest.mark.parametrize("per_query_head", [False, True])
def test_one_call_equals_brute_force(per_query_head):
    generator = torch.Generator().manual_seed(3)
    batch, heads, groups, length, dim, pads = 2, 4, 2, 60, 8, (0, 7)
    q = torch.randn(batch, heads, 1, dim, generator=generator)
    k, v = torch.randn(2, batch, groups, length, dim, generator=generator) * 2
    order = torch.stack([torch.randperm(53, generator=generator) + 7 for _ in range(heads)])
    sets = heads if per_query_head else groups
    token = order[:sets, :20].expand(batch, -1, -1).clone()
    token[:, :, 12:] = -1  # 12 tokens, padded
    member = order[:groups, 30:40].expand(batch, -1, -1)
    if per_query_head:
        estimate = member = None
    else:
        size = torch.tensor([4, 0, 6]).expand(batch, groups, -1)
        row = torch.arange(batch)[:, None, None], torch.arange(groups)[None, :, None], member
        parts_k, parts_v = k[row].split([4, 6], 2), v[row].split([4, 6], 2)
        middle = torch.zeros(batch, groups, 1, dim)
        centroid = torch.cat([parts_k[0].mean(2, True), middle, parts_k[1].mean(2, True)], 2)
        total = torch.cat([parts_v[0].sum(2, True), middle, parts_v[1].sum(2, True)], 2)
        estimate = Estimate(centroid, total, size)
    repeat = heads // sets
    index = torch.arange(batch)[:, None, None], torch.arange(sets)[None, :, None]
    head = index[1] // (sets // groups)
    chosen_k, chosen_v = k[index[0], head, token], v[index[0], head, token]
    ours = attend(q, chosen_k, chosen_v, token >= 0, ARGS, estimate)
    wide_k, wide_v = (t.repeat_interleave(heads // groups, 1) for t in (k, v))
    logit = (q @ wide_k.mT)[:, :, 0] * ARGS.scale
    logit[1, :, :7] = -torch.inf
    p = logit.softmax(-1)
    exact = p[:, :, None] @ wide_v

    probe = FidelityProbe()
    probe.selected(0, token, estimate, member)
    call = {"q_BHTD": q, "k_BGSD": k, "v_BGSD": v, "exact_BHTD": exact, "ours_BHTD": ours}
    probe.compare(ComparedCall(layer=0, **call, args=ARGS, pad_tokens=pads))
    found = {name: values[0, 0] for name, values in probe.arrays().items()}
    for b, h in itertools.product(range(batch), range(heads)):
        mine = token[b, h // repeat][:12]
        order_bh = p[b, h].argsort(descending=True)
        best = p[b, h][order_bh[:12]].sum()
        expected = {
            "recall": p[b, h][mine].sum(),
            "oracle": best,
            "overlap": len(set(mine.tolist()) & set(order_bh[:12].tolist())) / 12,
            "attended_frac": 12 / (length - pads[b]),
            "error": (exact - ours)[b, h].norm() / exact[b, h].norm(),
        }
        if estimate is not None:
            expected["mass_true"] = p[b, h][member[b, h // 2]].sum()
        for name, value in expected.items():
            assert found[name][b, h] == pytest.approx(float(value), abs=1e-5), name
    assert (found["regret"] >= 0).all()
    for b in range(batch):
        chosen = [set(token[b, h // repeat][:12].tolist()) for h in range(heads)]
        check_places(probe.row(b)["places"], p[b], chosen, pads[b])
    zones = sum(found[f"error_{z}"] for z in ("exact", "estimated", "ignored") if z in str(found))
    assert (found["error"] <= zones + 1e-5).all()
    if estimate is not None:
        assert (found["mass_estimated"] <= found["mass_true"] + 1e-6).all()  # Jensen


def test_full_attention_is_faithful_to_itself(tiny_llama):
    result = compared(tiny_llama, "full")
    (row,) = result.rows
    assert row["mean"]["error"] < 1e-6 and row["mean"]["recall"] == pytest.approx(1, abs=1e-5)
    assert row["logits"]["kl"] < 1e-9 and row["logits"]["agreement"] == 1
    assert row["sparse_layers"] == [] and row["layers"] == [0, 1, 2] and row["steps"] == 4
    assert result.generation.decode_steps == 4 and result.counts["attended_tokens"] > 700
    assert row["cdf"]["mass"][-1] == pytest.approx(1, abs=1e-4)
    assert row["places"]["attended"] == [1.0] * 64
    assert sum(row["places"]["mass"]) == pytest.approx(1, abs=1e-3)


def test_oracle_has_no_regret_and_random_has_most(tiny_llama):
    static = {"sink_tokens": 0, "local_tokens": 1}
    oracle = compared(tiny_llama, "oracle_topk", {"scope": "query_head", **static}, "10%").rows[0]
    grouped = compared(tiny_llama, "oracle_topk", static, "10%").rows[0]
    random = compared(tiny_llama, "random", static, "10%").rows[0]
    recall = [row["mean"]["recall"] for row in (oracle, grouped, random)]
    assert recall == sorted(recall, reverse=True)
    assert oracle["mean"]["regret"] < 1e-4 < random["mean"]["regret"]
    assert random["logits"]["kl"] > 0 and "recall_100" in random["tail"]
    assert len(oracle["by_layer_head"]["error"]) == 3


def test_padding_is_none_of_the_heaviest_tokens():
    """Of a row with fewer than 100 tokens, and where the weights of real tokens vanish."""
    torch.manual_seed(4)
    q, k = torch.randn(2, 4, 1, 8) * 60, torch.randn(2, 2, 120, 8) * 60
    probe = FidelityProbe()
    token = torch.arange(120).expand(2, 2, -1).clone()
    token[1, :, :90] = -1
    probe.selected(0, token)
    exact = torch.zeros(2, 4, 1, 8)
    call = {"q_BHTD": q, "k_BGSD": k, "v_BGSD": k, "exact_BHTD": exact, "ours_BHTD": exact}
    probe.compare(ComparedCall(layer=0, **call, args=ARGS, pad_tokens=(0, 90)))
    found = probe.arrays()
    assert (found["overlap"] == 1).all() and (found["recall_100"][0, 0, 1] == 1).all()


def test_estimates_are_measured_and_dense_layers_named(tiny_llama):
    row = compared(
        tiny_llama, "retroinfer", {"tokens_per_cluster": 8, "update_tokens": 64}, "20%"
    ).rows[0]
    assert 0 < row["mean"]["mass_estimated"] <= row["mean"]["mass_true"] + 1e-6
    assert row["pairs"] and all(true > 0 for true, _ in row["pairs"])
    quest = compared(tiny_llama, "quest", {"dense_layers": [0]}, "20%").rows[0]
    assert quest["sparse_layers"] == [1, 2]


def test_tails_batches_and_arrays(tiny_llama, tmp_path):
    pandas = pytest.importorskip("pandas")
    prompts = [random_ids(n, n) for n in (400, 380)]
    result = compared(tiny_llama, "random", budget="30%", prompts=prompts, tail_tokens=3)
    assert [row["steps"] for row in result.rows] == [7, 7]
    write_arrays(tmp_path, ["a/0", "a/1"], result.arrays, [0, 1, 2])
    table = pandas.read_parquet(tmp_path / "a-1.parquet")
    assert len(table) == 7 * 3 * 4
    assert table["recall"].mean() == pytest.approx(result.rows[1]["mean"]["recall"], abs=1e-5)
    assert table[table["step"] == 0]["top_step"].isna().all()


def test_concentration_counts_the_heaviest_tokens():
    torch.manual_seed(3)
    q, k = 3 * torch.randn(2, 4, 1, 8), torch.randn(2, 2, 40, 8)
    call = ComparedCall(
        layer=0, q_BHTD=q, k_BGSD=k, v_BGSD=k, exact_BHTD=q, ours_BHTD=q,
        args=AttentionArgs(scale=1.0), pad_tokens=(0, 7),
    )  # fmt: skip
    counted = ExactCall(call).concentration()
    for row, head, mass in itertools.product(range(2), range(4), MASSES):
        logit = (q[row, head] @ k[row, head // 2].T)[0, call.pad_tokens[row] :]
        total, tokens = 0.0, 0
        for weight in logit.softmax(-1).sort(descending=True).values.tolist():
            if total < mass / 100:
                total, tokens = total + weight, tokens + 1
        assert int(counted[f"tokens_{mass}"][row, head]) == tokens, (row, head, mass)
