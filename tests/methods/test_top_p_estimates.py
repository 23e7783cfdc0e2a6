"""Budgets of attention mass of RetroInfer and InfiniGen, by estimates of their own."""

from __future__ import annotations

import pytest
import torch
from retrobench_methods.infinigen import InfiniGen
from retrobench_methods.infinigen.speculation import choose_mass
from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig

from retrobench.core.budget import Budget
from retrobench.measure.probe import CountingProbe
from tests.methods.retroinfer_run import Run
from tests.methods.test_infinigen import calibrated, decode
from tests.support import greedy_logits, open_on, random_ids

PROMPT, SINK = 300, 4


def naive_sets(run, i, q_HD, row, p, weigh_sizes):
    """Clusters to retrieve and to estimate of every KV head, one at a time, in float64."""
    index, found = run.method.index, []
    pad, length = run.shape.pad_tokens[row], run.method.store.lengths[i]
    centroids = index.centroids.read(i)[row].double()
    for g in range(2):
        size = index.size_LBGC[i, row, g].tolist()
        there = [c for c, s in enumerate(size) if s]
        indexed = sum(size)
        position = [*range(pad, pad + SINK), *range(pad + SINK + indexed, length)]
        steady = run.kv[i, 0, row, g, position].double()
        share, score = dict.fromkeys(there, 0.0), dict.fromkeys(there, 0.0)
        for query in q_HD[2 * g : 2 * g + 2].double():
            logit = {c: float(query @ centroids[g, c]) * run.args.scale for c in there}
            weight = {c: torch.tensor(x).exp().item() * size[c] for c, x in logit.items()}
            plain = weight if weigh_sizes else {c: weight[c] / size[c] for c in there}
            exact = float((steady @ query * run.args.scale).exp().sum())
            for c in there:
                share[c] += weight[c] / (exact + sum(weight.values())) / 2
                score[c] += plain[c] / sum(plain.values())
        held, taken = 1 - sum(share.values()), []
        order = sorted(there, key=lambda c: -score[c])
        for c in order:
            if held >= p:
                break
            taken.append(c)
            held += share[c]
        zone = round(run.method.config.estimation_frac * run.method.index.clusters[i][row])
        found.append((set(taken), set(order[len(taken) : len(taken) + zone]), held))
    return found


@pytest.mark.parametrize("weigh_sizes", [False, True])
@pytest.mark.parametrize("p", [0.3, 0.8, 0.97])
def test_retroinfer_retrieves_as_few_clusters_as_hold_the_estimated_mass(p, weigh_sizes):
    run = Run(
        prompt=PROMPT, new=40, pads=(0, 23), budget=Budget.parse(f"top_p:{p}"),
        weigh_sizes=weigh_sizes, update_tokens=32, local_tokens=24,
    )  # fmt: skip
    attended = reread = 0
    for n in range(PROMPT, PROMPT + 40):
        q = 0.6 * torch.randn(2, 4, 1, 16)
        run.step(n, q)
        for i in range(2):
            chosen = run.select(i, q)
            for row in range(2):
                sets = naive_sets(run, i, q[row, :, 0], row, p, weigh_sizes)
                for g, (taken, estimated, held) in enumerate(sets):
                    assert held >= p - 1e-6
                    assert set(chosen.chosen_BGN[row, g].tolist()) - {-1} == taken
                    assert set(chosen.estimated_BGE[row, g].tolist()) - {-1} == estimated
                    sizes = run.method.index.size_LBGC[i, row, g]
                    real = n + 1 - run.shape.pad_tokens[row]
                    steady = real - int(sizes.sum())
                    attended += (steady + int(sizes[sorted(taken)].sum())) / (2 * 2)
                    reread += steady * 16 * 4
    probe = run.probe
    assert sum(probe.by_layer("attended").values()) == pytest.approx(attended)
    index = sum(probe.by_layer("index").values())
    assert index > reread  # the steady keys, beside centroids and value sums
    assert run.method.allocated() == RetroInfer.plan(
        run.method.config, run.shape, Budget.parse(f"top_p:{p}")
    )


def test_what_is_retrieved_is_told_where_every_cluster_is_estimated(monkeypatch):
    told = []
    monkeypatch.setattr(CountingProbe, "detail", True)
    monkeypatch.setattr(CountingProbe, "selected", lambda _, layer, token: told.append(token))
    run = Run(prompt=PROMPT, new=1, budget=Budget.parse("top_p:0.8"), int4_values=True)
    run.step(PROMPT)
    tokens = [int((token >= 0).sum()) / 2 for token in told]  # of two KV heads
    assert tokens == list(run.probe.by_layer("attended").values())


def test_a_cap_and_a_zone_without_estimates():
    q = torch.randn(1, 4, 1, 16)
    fixed, capped, alone = (
        Run(prompt=PROMPT, budget=Budget.parse(text), **options)
        for text, options in (
            ("50%", {}), ("top_p:1@50%", {}), ("top_p:0.5@50%", {"estimation_frac": 0.0}),
        )
    )  # fmt: skip
    expected, got = (run.select(0, q) for run in (fixed, capped))
    for name in ("chosen_BGN", "estimated_BGE"):
        lists = [getattr(x, name).sort(-1, descending=True).values for x in (expected, got)]
        width = min(x.shape[-1] for x in lists)
        assert torch.equal(*(x[..., :width] for x in lists))
        assert (lists[1][..., width:] == -1).all()
    assert (alone.select(0, q).estimated_BGE == -1).all()
    assert (alone.select(0, q).chosen_BGN >= 0).sum() < (got.chosen_BGN >= 0).sum()
    with pytest.raises(ValueError, match="method.error_tolerance both say"):
        RetroInfer.plan(
            RetroInferConfig(error_tolerance=0.1), fixed.shape, Budget.parse("top_p:0.9")
        )


@pytest.mark.parametrize(
    "options", [{}, {"cache": "host"}, {"cache": "device"}, {"int4_values": True}, {"tail": True}]
)
def test_all_mass_is_full_attention_with_retroinfer(options, tiny_llama):
    given = {"update_tokens": 64, "local_tokens": 32, **options}
    prompts, steps, attended = [random_ids(600), random_ids(555, 1)], 5, []
    full = greedy_logits(open_on(tiny_llama, "full", prompts, {}, new_tokens=steps), steps)
    for p in (0.2, 0.6, 0.9, 1):
        session = open_on(
            tiny_llama, "retroinfer", prompts, given, new_tokens=steps, budget=f"top_p:{p}"
        )
        logits = greedy_logits(session, steps)
        attended.append(session.method.probe.row()["attended_tokens"])
    torch.testing.assert_close(logits, full, atol=5e-5, rtol=1e-3)
    assert attended == sorted(attended) and attended[0] < 0.7 * attended[-1]


@pytest.mark.parametrize("kind", ["random", "constant", "absent"])
def test_infinigen_fetches_as_few_tokens_as_hold_the_predicted_mass(kind):
    torch.manual_seed(0)
    score = torch.randn(2, 3, 40) * 2
    if kind == "constant":
        score[:] = 1
    if kind == "absent":
        score[1, :, 25:] = -torch.inf
    noise = 0.0 if kind == "constant" else 0.1  # ties may fall either way
    mass = (score + noise * torch.randn_like(score)).softmax(-1)
    most = (40, 9)
    for p in (0.01, 0.7, 0.95, 1.0):
        slot = choose_mass(score, mass, p, most)
        for row in range(2):
            for g in range(3):
                order = score[row, g].argsort(descending=True, stable=True).tolist()
                order = [s for s in order if score[row, g, s] > -torch.inf]
                taken, held = [], 0.0
                for s in order[: most[row]]:
                    if taken and held >= p - 1e-6 and p < 1:
                        break
                    taken.append(s)
                    held += float(mass[row, g, s])
                got = [s for s in slot[row, g].tolist() if s >= 0]
                assert len(got) == len(taken)
                assert kind == "constant" or got == taken


@pytest.mark.parametrize("scope", ["kv_head", "query_head"])
def test_infinigen_holds_the_mass_of_its_speculation(scope, tiny_llama, tmp_path):
    """With all channels the speculated weights are those of the query: of all but the newest."""
    ids = random_ids(300)
    config, _ = calibrated(tiny_llama, tmp_path, ids, partial_frac=1.0, scope=scope)
    full = greedy_logits(open_on(tiny_llama, "full", [ids], {}, new_tokens=6), 1)
    fetched = []
    for p in (0.3, 0.9, 1):
        probe = CountingProbe()
        _, session = decode(tiny_llama, config, ids, budget=f"top_p:{p}", probe=probe)
        fetched.append(probe.row()["attended_tokens"])
        per_token = session.method.store.bytes_per_token()
        heads = {0: 2, 1: 2, 2: 4 if scope == "query_head" else 2}  # that choose; two layers dense
        for layer, kv in probe.by_layer("kv").items():
            expected = heads[layer] * probe.by_layer("attended")[layer] * per_token
            assert kv == pytest.approx(expected)
        session.close()
    assert fetched == sorted(fetched) and fetched[0] < fetched[-1]
    everything = open_on(tiny_llama, InfiniGen, [ids], config, new_tokens=6, budget="top_p:1")
    torch.testing.assert_close(greedy_logits(everything, 1), full, atol=2e-5, rtol=1e-4)
