"""Budgets of attention mass against naive references: as few tokens or pages as hold it."""

from __future__ import annotations

import pytest
import torch
from retrobench_methods.oracle_topk import OracleTopK
from retrobench_methods.quest import Quest
from retrobench_methods.sparf import Sparf

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.registry import method_class, method_names
from retrobench.core.spec import parse
from retrobench.measure.probe import CountingProbe
from retrobench.run.spec import parse_run
from tests.support import build, greedy_logits, kv_shape, open_on, random_ids

ARGS, LENGTH, NEW, PAGE = AttentionArgs(scale=0.5), 150, 4, 8
ZONE = {"sink_tokens": 3, "local_tokens": 9}
KINDS = ["random", "constant", "duplicates", "outliers"]
SHAPES = [(4, 2), (9, 3), (4, 1)]


def decoded(method_class, kind, heads, groups, budget, options, args=ARGS):
    """The selection of every new token with what it was made from, and the probe."""
    shape = kv_shape(
        pad_tokens=(0, 21), num_heads=heads, num_kv_heads=groups,
        prompt_tokens=LENGTH, max_tokens=LENGTH + NEW,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    q = torch.randn(2, heads, LENGTH + NEW, 8, generator=generator)
    k, v = torch.randn(2, 2, groups, LENGTH + NEW, 8, generator=generator).unbind(0)
    if kind == "constant":
        k = torch.ones_like(k)
    elif kind == "duplicates":
        k = k[:, :, torch.arange(LENGTH + NEW) % 5]
    elif kind == "outliers":
        k = k * (1 + 12 * (torch.rand(*k.shape[:3], 1, generator=generator) < 0.04))
    probe, steps = CountingProbe(), []
    config = parse(method_class.Config, options, "method")
    method = method_class(config, shape, probe, Budget.parse(budget))
    prompt = tuple(part[:, :, :LENGTH] for part in (q, k, v))
    build(method, {0: prompt}, args)
    for step in range(LENGTH, LENGTH + NEW):
        one = slice(step, step + 1)
        out = method.decode(0, q[:, :, one], k[:, :, one], v[:, :, one], args)
        chosen = method.index.select(0, q[:, :, one], method.store, args)
        steps.append(
            (chosen.token_BGR, out, q[:, :, step], k[:, :, : step + 1], v[:, :, : step + 1])
        )
    return shape, steps, probe


def weights(q_HD, k_GSD, pad, args=ARGS):
    """Softmax weights ``HS`` in float64."""
    k_HSD = k_GSD.repeat_interleave(len(q_HD) // len(k_GSD), 0).double()
    logit = torch.einsum("hd,hsd->hs", q_HD.double(), k_HSD) * args.scale
    if args.softcap:
        logit = torch.tanh(logit / args.softcap) * args.softcap
    logit[:, :pad] = -torch.inf
    return logit.softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "groups"), SHAPES)
@pytest.mark.parametrize("scope", ["kv_head", "query_head"])
def test_the_oracle_takes_as_few_tokens_as_hold_the_mass(scope, heads, groups, kind):
    for p, args in ((0.5, ARGS), (0.9, AttentionArgs(scale=0.5, softcap=3.0)), (0.99, ARGS)):
        options = {"scope": scope, **ZONE}
        shape, steps, probe = decoded(OracleTopK, kind, heads, groups, f"top_p:{p}", options, args)
        attended = 0
        for token_BXR, out, q, k, v in steps:
            for row, pad in enumerate(shape.pad_tokens):
                weight_HS = weights(q[row], k[row], pad, args)
                each = weight_HS
                if scope == "kv_head":
                    weight_HS = weight_HS.unflatten(0, (groups, -1)).mean(1)
                for x, weight in enumerate(weight_HS):
                    chosen = token_BXR[row, x]
                    chosen = chosen[chosen >= 0]
                    attended += len(chosen) / (2 * len(weight_HS))
                    end = len(weight)
                    zone = {*range(pad, pad + 3), *range(end - 9, end)}
                    assert zone <= set(chosen.tolist()) and len(set(chosen.tolist())) == len(chosen)
                    free = [t for t in chosen.tolist() if t not in zone]
                    rest = [t for t in range(pad, end) if t not in chosen.tolist()]
                    assert weight[chosen].sum() >= p - 1e-6
                    if free:  # one fewer would not do, and none of the rest is heavier
                        assert weight[chosen].sum() - weight[free].min() < p + 1e-6
                    if free and rest:
                        assert weight[free].min() >= weight[rest].max() - 1e-7
                    for head in range(
                        x * len(each) // len(weight_HS), (x + 1) * len(each) // len(weight_HS)
                    ):
                        part = each[head, chosen] / each[head, chosen].sum()
                        expected = part @ v[row, head // (heads // groups), chosen].double()
                        torch.testing.assert_close(
                            out[row, head, 0].double(), expected, atol=1e-5, rtol=1e-4
                        )
        assert probe.by_layer("attended")[0] == pytest.approx(attended)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "groups"), SHAPES)
@pytest.mark.parametrize("scope", ["kv_head", "query_head"])
def test_quest_takes_its_first_pages_until_they_hold_the_estimated_mass(scope, heads, groups, kind):
    least = 2
    for p in (0.3, 0.8, 0.97):
        options = {"scope": scope, "page_size": PAGE, "dense_layers": []}
        shape, steps, probe = decoded(Quest, kind, heads, groups, f"top_p:{p}", options)
        attended = 0
        for token_BXR, _, q, k, _ in steps:
            for row, pad in enumerate(shape.pad_tokens):
                pages = k[row, :, pad:].double().split(PAGE, 1)
                bound = torch.stack(
                    [
                        torch.stack(
                            [
                                torch.maximum(q_D * page[g].amin(0), q_D * page[g].amax(0)).sum()
                                for page in pages
                            ]
                        )
                        for h, q_D in enumerate(q[row].double())
                        for g in [h // (heads // groups)]
                    ]
                )
                size = torch.tensor([page.shape[1] for page in pages])
                mass = (bound * ARGS.scale).exp() * size
                mass = mass / mass.sum(-1, keepdim=True)
                if scope == "kv_head":
                    bound, mass = (x.unflatten(0, (groups, -1)) for x in (bound, mass))
                    bound, mass = bound.sum(1), mass.mean(1)
                for x, ranking in enumerate(bound):
                    chosen = token_BXR[row, x]
                    chosen = chosen[chosen >= 0]
                    attended += len(chosen) / (2 * len(bound))
                    taken = sorted({(int(t) - pad) // PAGE for t in chosen})
                    assert len(chosen) == size[taken].sum()
                    newest = len(pages) - 1
                    assert newest in taken and len(taken) >= least
                    rest = [c for c in range(len(pages)) if c not in taken]
                    older = [c for c in taken if c != newest]
                    assert not rest or ranking[older].min() >= ranking[rest].max() - 1e-3
                    held = mass[x, taken].sum()
                    assert held >= p - 1e-4
                    if len(taken) > least:
                        last = min(older, key=lambda c: (ranking[c].item(), -c))
                        assert held - mass[x, last] < p + 1e-4
        assert probe.by_layer("attended")[0] == pytest.approx(attended)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "groups"), SHAPES)
def test_sparf_with_all_channels_takes_what_the_oracle_takes(heads, groups, kind):
    """Its estimate is exact then; with fewer it holds the mass by the weights that it has."""
    for p in (0.5, 0.95):
        budget = f"top_p:{p}"
        _, exact, _ = decoded(OracleTopK, kind, heads, groups, budget, ZONE)
        options = {**ZONE, "channels": 8}
        _, steps, probe = decoded(Sparf, kind, heads, groups, budget, options)
        for (oracle, *_), (ours, *_) in zip(exact, steps, strict=True):
            assert abs((oracle >= 0).sum() - (ours >= 0).sum()) <= 2  # roundings at the threshold
        attended = sum((token >= 0).sum() / (2 * groups) for token, *_ in steps)
        assert probe.by_layer("attended")[0] == pytest.approx(attended)
        _, steps, _ = decoded(Sparf, kind, heads, groups, budget, {**ZONE, "channels": 3})
        for token, *_ in steps:
            assert ((token >= 0).sum(-1) >= 12).all()


@pytest.mark.parametrize(
    ("method", "options"), [("oracle_topk", {}), ("quest", {"dense_layers": []}), ("sparf", {})]
)
def test_all_mass_is_full_attention_and_a_cap_is_the_selection_it_prunes(
    method, options, tiny_llama
):
    prompts, steps = [random_ids(600), random_ids(555, 1)], 5

    def run(name, budget, **given):
        session = open_on(tiny_llama, name, prompts, given, new_tokens=steps, budget=budget)
        return greedy_logits(session, steps), session.method.probe.row()["attended_tokens"]

    expected, everything = run("full", None)
    got, attended = run(method, "top_p:1", **options)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    assert attended == pytest.approx(everything)
    fixed, most = run(method, "30%", **options)
    capped, at_cap = run(method, "top_p:1@30%", **options)
    assert torch.equal(capped, fixed) and at_cap == pytest.approx(most)
    numbers = [run(method, f"top_p:{p}", **options)[1] for p in (0.2, 0.6, 0.9, 0.99, 1)]
    assert numbers == sorted(numbers) and numbers[0] < 0.7 * numbers[-1]
    assert run(method, "top_p:0.9@20%", **options)[1] <= run(method, "20%", **options)[1]


def test_methods_that_cannot_are_refused_by_name():
    able = {name for name in method_names() if method_class(name).adaptive}
    assert {"oracle_topk", "quest", "sparf", "retroinfer", "infinigen"} <= able
    for name in ("streaming", "random", "snapkv", "pqcache"):
        raw = {"method": {"name": name}, "task": {"name": "ruler"}, "budget": "top_p:0.9"}
        with pytest.raises(ValueError, match=f"budget=top_p:0.9: method={name} .*oracle_topk"):
            parse_run(raw)
    raw = {"method": {"name": "full"}, "task": {"name": "ruler"}, "budget": "top_p:0.9"}
    assert "not used" in parse_run(raw).ignored
    raw["method"] = {"name": "quest"}
    assert str(parse_run(raw).budget) == "top_p:0.9"
    with pytest.raises(ValueError, match="static zone alone takes 12"):
        OracleTopK.plan(
            parse(OracleTopK.Config, ZONE, "method"),
            kv_shape(prompt_tokens=LENGTH),
            Budget.parse("top_p:0.9@5tok"),
        )
