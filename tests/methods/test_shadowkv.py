"""ShadowKV equals a plain reference on keys that were turned by rotary factors."""

from __future__ import annotations

import itertools

import pytest
import torch
from retrobench_methods.shadowkv import ShadowKV
from retrobench_methods.shadowkv.config import ShadowKVConfig, zones

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.engine.attention.rotary import rotate, unrotate
from retrobench.measure.probe import CountingProbe

from .inputs import HEADS, KINDS, is_best, shape_of, tensors

ARGS = AttentionArgs(scale=0.3)
SMALL = {"rank": 6, "chunk_tokens": 4, "outlier_chunks": 3, "local_chunks": 2}


def factors(pads, length, dim, scale=1.0):
    """Cosines and sines ``BSD`` of positions that begin after each row's padding."""
    place_BS1 = (torch.arange(length) - torch.tensor(pads)[:, None]).clamp_min(0)[..., None]
    angle = place_BS1 / 100 ** (torch.arange(dim // 2) / (dim // 2))
    angle = torch.cat([angle, angle], -1)
    return scale * angle.cos(), scale * angle.sin()


def decoded(method, qkv, args=ARGS):
    prompt, pads = method.shape.prompt_tokens, method.shape.pad_tokens
    cos, sin = (x.to(qkv[1].dtype) for x in factors(pads, prompt, qkv[1].shape[-1], 1.2))
    k, v = (x[:, :, :prompt] for x in qkv[1:])
    method.build(0, PromptLayer(k_BGSD=k, v_BGSD=v, args=args, cos_BSD=cos, sin_BSD=sin))
    method.finish_build()
    for t in range(prompt, qkv[0].shape[2]):
        yield t, method.decode(0, *(x[:, :, t : t + 1] for x in qkv), args)[:, :, 0]
    method.report_counts()


def reference_keys(k_GSD, cos_SD, sin_SD, rank):
    """Keys turned back, cut to a rank by a singular value decomposition, and turned again."""
    half = k_GSD.shape[-1] // 2
    z = torch.complex(k_GSD[..., :half].double(), k_GSD[..., half:].double())
    turn = torch.complex(cos_SD[:, :half].double(), sin_SD[:, :half].double())
    before = torch.view_as_real(z / turn)
    flat = torch.cat([before[..., 0], before[..., 1]], -1).transpose(0, 1).flatten(1)
    u, s, vh = torch.linalg.svd(flat, full_matrices=False)
    flat = (u[:, :rank] * s[:rank]) @ vh[:rank]
    cut = flat.unflatten(1, (len(k_GSD), -1)).transpose(0, 1)
    z = torch.complex(cut[..., :half], cut[..., half:]) * turn
    return torch.cat([z.real, z.imag], -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    ("dtype", "softcap"), [("float32", None), ("float32", 4.0), ("bfloat16", None)]
)
def test_selection_and_output_equal_the_reference(kind, heads, dtype, softcap):
    args = AttentionArgs(scale=0.3, softcap=softcap)
    pads, qkv = (0, 21), tensors(kind, heads, 80, batch=2, dtype=dtype)
    shape = shape_of(*qkv[:2], 75, pads)
    method = ShadowKV(ShadowKVConfig(retrieval_frac=0.25, **SMALL), shape)
    group = heads[0] // heads[1]
    rank = min(6, 8 * heads[1])
    exact = dtype == "float32"
    tolerance = 3e-3 if exact else 6e-2
    cos, sin = (x.to(qkv[1].dtype).float() for x in factors(pads, 75, 8, 1.2))
    for t, out in decoded(method, qkv, args):
        token = method.index.select(0, qkv[0][:, :, t : t + 1], method.store, args).token_BGR
        for row in range(2):
            pad, context = pads[row], 75 - pads[row]
            chunks = context // 4 - 2
            span = slice(pad, pad + 4 * chunks)
            selected = round(0.25 * context / 4)
            k_GSD = qkv[1][row].float()
            cut = reference_keys(k_GSD[:, span], cos[row, span], sin[row, span], rank)
            for g in range(heads[1]):
                chosen = token[row, g][token[row, g] >= 0] - pad
                assert len(set(chosen.tolist())) == len(chosen)
                k, v = k_GSD[g, pad : t + 1].double(), qkv[2][row, g, pad : t + 1].double()
                q = qkv[0][row, g * group : g * group + group, t].double()
                chunk_CSD = k[: 4 * chunks].view(chunks, 4, 8)
                mean = chunk_CSD.mean(1)
                fit = torch.stack([
                    min(torch.cosine_similarity(x, mean[c], 0) for x in chunk_CSD[c])
                    for c in range(chunks)
                ])  # fmt: skip
                outlier = method.index.outlier_LBGK[0, row, g]
                assert is_best(-fit, outlier, 3)
                land = mean if exact else mean.bfloat16().double()
                logit = q @ land.mT * 0.3
                logit = softcap * torch.tanh(logit / softcap) if softcap else logit
                logit[:, outlier] = -torch.inf
                score = logit.softmax(-1).amax(0)
                tail = set(range(4 * chunks, t + 1 - pad))
                assert tail <= set(chosen.tolist())
                picked = {int(s) // 4 for s in chosen if int(s) not in tail} - set(outlier.tolist())
                free = [c for c in range(chunks) if c not in set(outlier.tolist())]
                ranked = torch.tensor([free.index(c) for c in sorted(picked)])
                assert is_best(score[free], ranked, selected, 1e-5 if exact else 1e-2)
                assert len(chosen) == len(tail) + 4 * (3 + selected)
                kept = k.clone()
                for c in picked:
                    kept[4 * c : 4 * c + 4] = cut[g, 4 * c : 4 * c + 4]
                logit = q @ kept[chosen].mT * 0.3
                logit = softcap * torch.tanh(logit / softcap) if softcap else logit
                torch.testing.assert_close(
                    out[row, g * group : g * group + group].double(),
                    logit.softmax(-1) @ v[chosen], atol=tolerance, rtol=tolerance,
                )  # fmt: skip


def test_a_rank_of_everything_rebuilds_every_key():
    qkv = tensors("random", (4, 2), 90, batch=2)
    method = ShadowKV(ShadowKVConfig(**SMALL | {"rank": 400}), shape_of(*qkv[:2], 80, (0, 13)))
    list(decoded(method, qkv))
    token = torch.arange(90).expand(2, 2, -1)
    keys, values = method.store.gather(0, token)
    for row, pad in enumerate((0, 13)):
        torch.testing.assert_close(keys[row, :, pad:], qkv[1][row, :, pad:], atol=1e-5, rtol=1e-4)
        assert torch.equal(values[row, :, pad:], qkv[2][row, :, pad:])
    assert method.store.rank == 16 and method.stats()["kept_norm"] == pytest.approx(1)


def test_a_row_shorter_than_a_chunk_is_attended_whole():
    qkv, pads = tensors("random", (4, 2), 83, batch=2), (0, 79)
    method = ShadowKV(ShadowKVConfig(**SMALL), shape_of(*qkv[:2], 80, pads))
    for t, out in decoded(method, qkv):
        q, k, v = qkv[0][1, :, t], *(x[1, :, 79 : t + 1].repeat_interleave(2, 0) for x in qkv[1:])
        weight = torch.einsum("hd,hsd->hs", q, k).mul(0.3).softmax(-1)
        torch.testing.assert_close(out[1], torch.einsum("hs,hsd->hd", weight, v))


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("place", ["auto", "gpu", "cpu", "pinned"])
def test_counters_equal_the_formula(place, reuse):
    qkv, probe = tensors("random", (4, 2), 206, batch=2, dim=16), CountingProbe()
    shape = shape_of(*qkv[:2], 200, (0, 40))
    config = ShadowKVConfig(retrieval_frac=0.1, placement=place, reuse=reuse, **SMALL)
    method = ShadowKV(config, shape, probe)
    fetched, steps, held = 0, 0, [set(), set(), set(), set()]
    for t, _ in decoded(method, qkv):
        chosen = method.index.heaviest(0, qkv[0][:, :, t : t + 1], ARGS).flatten(0, 1)
        before, held = held, [set(head.tolist()) - {-1} for head in chosen]
        new = [len(now - old) if reuse else len(now) for now, old in zip(held, before, strict=True)]
        fetched, steps = fetched + 4 * sum(new), steps + (sum(new) > 0)
    assert method.allocated() == ShadowKV.plan(config, shape)
    assert (method.allocated().device < method.allocated().total) == (place != "gpu")
    selected = round(0.1 * 200 / 4) + round(0.1 * 160 / 4)
    exact = 6 * (2 * 3 * 4 + 2 * 2 * 4) + 2 * (1 + 2 + 3 + 4 + 5 + 6)  # tokens over six steps
    rebuilt = 6 * 2 * 4 * selected // 2
    assert fetched < 2 * rebuilt if reuse else fetched == 2 * rebuilt
    assert probe.by_layer("attended")[0] == pytest.approx((exact + rebuilt) / 2)
    read_whole = 2 * exact + 2 * rebuilt - fetched  # held chunks, too
    kv = 2 * read_whole * 16 + fetched * (16 + 6) + steps * 2 * 2 * 6 * 16
    assert probe.by_layer("kv")[0] == 4 * kv
    assert probe.by_layer("h2d")[0] == (0 if place == "gpu" else 4 * fetched * 16)
    assert method.stats()["reused_frac"] == pytest.approx(1 - fetched / (2 * rebuilt))
    chunks = (200 // 4 - 2) + (160 // 4 - 2)
    assert probe.by_layer("index")[0] == 4 * 6 * 2 * (chunks - 6) * 16


def test_what_is_held_changes_no_output():
    """Queries that repeat, so that chunks stay, and a gather of everything between the steps."""
    qkv = list(tensors("random", (4, 2), 212, batch=2, dim=16))
    qkv[0][:, :, 200:] = qkv[0][:, :, torch.tensor([0, 0, 1, 1, 0, 2, 2, 2, 1, 0, 0, 0])]
    shape, outputs, reused = shape_of(*qkv[:2], 200, (0, 40)), [], []
    for reuse in (True, False):
        config = ShadowKVConfig(retrieval_frac=0.1, reuse=reuse, **SMALL)
        method = ShadowKV(config, shape, CountingProbe())
        outputs.append([])
        for t, out in decoded(method, qkv):
            outputs[-1].append(out)
            if t == 204:
                method.store.gather(0, torch.arange(t).expand(2, 2, -1))
        reused.append(method.stats()["reused_frac"])
    torch.testing.assert_close(*map(torch.stack, outputs))
    assert reused[0] > 0.4 and reused[1] == 0


@pytest.mark.parametrize(
    ("context", "budget"), itertools.product([300, 1000, 4093], ["5%", "20%", "60%"])
)
def test_a_budget_covers_outliers_and_tail(context, budget):
    shape = shape_of(torch.zeros(1, 4, context + 8, 8), torch.zeros(1, 2, context + 8, 8), context)
    total = Budget.parse(budget).tokens(context, shape.kv_bytes_per_token)
    if total < 49:
        with pytest.raises(ValueError, match="method.local_chunks.*method.outlier_chunks"):
            zones(ShadowKVConfig(), shape, Budget.parse(budget))
        return
    (zone,) = zones(ShadowKVConfig(), shape, Budget.parse(budget))
    used = zone.tail + 8 * (zone.outliers + zone.selected)
    assert total - 8 < used <= total
    if zone.outliers + zone.selected < zone.chunks and zone.selected > 20:
        assert zone.outliers / zone.selected == pytest.approx(24 / 128, rel=0.1)
    whole = zones(ShadowKVConfig(), shape, Budget.parse("100%"))[0]
    assert (whole.tail, whole.chunks) == (context, 0)


def test_turning_back_undoes_a_scaled_turn():
    torch.manual_seed(0)
    x, (cos, sin) = torch.randn(2, 3, 7, 8), factors((0, 2), 7, 8, 1.3)
    turned = rotate(x, cos, sin)
    z = torch.complex(x[..., :4], x[..., 4:]) * torch.complex(cos[..., :4], sin[..., :4])[:, None]
    torch.testing.assert_close(turned, torch.cat([z.real, z.imag], -1))
    torch.testing.assert_close(unrotate(turned, cos, sin), x)


def test_a_budget_below_the_floor_names_it():
    shape = shape_of(torch.zeros(1, 4, 400, 8), torch.zeros(1, 2, 400, 8), 390)
    config = ShadowKVConfig(outlier_chunks=10)
    floor = 390 - 8 * (390 // 8 - 4) + 8 * 11
    with pytest.raises(ValueError, match=f"one chunk of 8 take {floor}; raise the budget"):
        ShadowKV.plan(config, shape, Budget.parse("100tok"))
    ShadowKV.plan(config, shape, Budget.parse(f"{floor}tok"))
    short = shape_of(torch.zeros(1, 4, 40, 8), torch.zeros(1, 2, 40, 8), 30)
    with pytest.raises(ValueError, match="15 tokens of a context of 30, .* take 30; raise the"):
        ShadowKV.plan(ShadowKVConfig(), short, Budget.parse("50%"))
