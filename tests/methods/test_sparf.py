"""SparF equals a plain reference, and its flash pages those counted with sets."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from retrobench_methods.sparf import Sparf
from retrobench_methods.sparf.config import SparfConfig

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.spec import parse
from retrobench.measure.probe import CountingProbe
from tests.memory.indexes import STORES

from .inputs import HEADS, KINDS, decoded, is_best, shape_of, tensors

ARGS = AttentionArgs(scale=0.3)


def reference(q_ND, k_SD, v_SD, channels, chosen, args):
    """Scores of all tokens, and the outputs ``ND`` over the chosen ones, in float64."""
    q, k, v = q_ND.double(), k_SD.double(), v_SD.double()
    best = q.abs().sum(0).argsort(descending=True)[:channels]
    guesses, outs = [], []
    for query in q:
        covered = query[best].abs().sum() / query.abs().sum()
        logit = k[:, best] @ query[best] * args.scale / math.sqrt(covered)
        exact = k[chosen] @ query * args.scale
        if args.softcap:
            logit, exact = (args.softcap * torch.tanh(x / args.softcap) for x in (logit, exact))
        guess = logit.softmax(0)
        alpha = guess[chosen].sum()
        outs.append(alpha * (exact.softmax(0) @ v[chosen]) + (1 - alpha) * v.mean(0))
        guesses.append(guess)
    return torch.stack(guesses).sum(0), torch.stack(outs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    ("dtype", "softcap", "local"),
    [("float32", None, 0), ("float32", 4.0, 5), ("bfloat16", None, 0)],
)
def test_output_equals_the_reference(kind, heads, dtype, softcap, local):
    args = AttentionArgs(scale=0.3, softcap=softcap)
    pads, qkv = (0, 11), tensors(kind, heads, 128, batch=2, dtype=dtype)
    shape = shape_of(qkv[0], qkv[1], 120, pads)
    config = SparfConfig(ratio=4.0, local_tokens=local)
    method = Sparf(config, shape)
    tolerance = 1e-4 if dtype == "float32" else 3e-2
    group = heads[0] // heads[1]
    for t, out in decoded(method, qkv, args):
        token = method.index.select(0, qkv[0][:, :, t : t + 1], method.store, args).token_BGR
        for row, g in itertools.product(range(2), range(heads[1])):
            pad, one = pads[row], slice(g * group, g * group + group)
            chosen = token[row, g][token[row, g] >= 0] - pad
            q, k, v = qkv[0][row, one, t], *(x[row, g, pad : t + 1] for x in qkv[1:])
            score, expected = reference(q, k, v, 2, chosen, args)
            newest = len(score) - local
            assert set(range(newest, len(score))) <= set(chosen.tolist())
            free = chosen[chosen < newest]
            slack = 1e-5 if dtype == "float32" else 1e-3
            assert is_best(score[:newest], free, round((120 - pad) / 8), slack)
            torch.testing.assert_close(
                out[row, one].double(), expected, atol=tolerance, rtol=tolerance
            )


@pytest.mark.parametrize(("place", "manager"), STORES)
def test_every_store_gives_the_same_output(place, manager):
    qkv = tensors("clustered", (4, 2), 230, batch=2)
    shape = shape_of(qkv[0], qkv[1], 200, (0, 9))
    found = []
    for options in ({}, {"placement": place, "cache": manager, "cache_frac": 0.2}):
        method = Sparf(SparfConfig(page_tokens=4, **options), shape)
        found.append(torch.stack([out for _, out in decoded(method, qkv, ARGS)]))
        assert method.allocated() == Sparf.plan(method.config, shape)
    torch.testing.assert_close(found[1], found[0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("ratio", [4.0, 8.0, 16.0])
def test_a_step_reads_what_the_ratio_says(ratio):
    """Both counters: S r channel numbers, and keys and values of k tokens, per KV head."""
    qkv = tensors("random", (4, 2), 340, dim=32)
    shape, probe = shape_of(qkv[0], qkv[1], 320), CountingProbe()
    method = Sparf(SparfConfig(ratio=ratio), shape, probe)
    steps = len(list(decoded(method, qkv, ARGS)))
    counted = {kind: probe.by_layer(kind)[0] / steps for kind in ("index", "kv")}
    channels, tokens = round(32 / ratio), round(320 / (2 * ratio))
    context = 320 + (steps + 1) / 2
    assert counted == {"index": 2 * 4 * context * channels, "kv": 2 * 2 * 4 * tokens * 32}
    dense = 2 * 2 * 4 * context * 32
    assert sum(counted.values()) == pytest.approx(dense / ratio, rel=0.05)


def naive_pages(channels, tokens, held, dim, value_bytes, group):
    """(channel pages, token pages, numbers from memory) of one KV head, with sets."""
    across, down = 4096 // value_bytes // group, 4096 // value_bytes // dim
    channel_pages = {(c // group, s // across) for c in channels for s in range(held)}
    full = {p for p in channel_pages if (p[1] + 1) * across <= held}
    waiting = len(channels) * (held - held // across * across)
    token_pages = {s // down for s in tokens if (s // down + 1) * down <= held}
    late = [s for s in tokens if (s // down + 1) * down > held]
    return len(full), 2 * len(token_pages), waiting + 2 * dim * len(late)


@pytest.mark.parametrize(
    ("dtype", "group"), [("float32", "auto"), ("bfloat16", "2"), ("bfloat16", "8")]
)
def test_flash_pages_equal_those_of_sets(dtype, group):
    qkv = tensors("clustered", (4, 2), 1100, batch=2, dim=64, dtype=dtype)
    shape = shape_of(qkv[0], qkv[1], 1060, (0, 300))
    method = Sparf(SparfConfig(flash=True, flash_channels=group), shape, CountingProbe())
    flash, value_bytes = method.index.flash, shape.value_bytes
    assert flash.group == (2 if group == "auto" else int(group))  # 512 tokens of 2 channels fit
    expected, written, held_numbers = torch.zeros(3), 0, 0
    for t, _ in decoded(method, qkv, ARGS):
        chosen = method.index.select(0, qkv[0][:, :, t : t + 1], method.store, ARGS)
        for row, g in itertools.product(range(2), range(2)):
            pad, held = shape.pad_tokens[row], t + 1 - shape.pad_tokens[row]
            token = chosen.token_BGR[row, g]
            tokens = (token[token >= 0] - pad).tolist()
            channels = chosen.channel_BGC[row, g].tolist()
            found = naive_pages(channels, tokens, held, 64, value_bytes, flash.group)
            expected += torch.tensor(found)
            written += (64 // flash.group) * (held % (4096 // value_bytes // flash.group) == 0)
            written += 2 * (held % (4096 // value_bytes // 64) == 0)
            held_numbers += 2 * held * 64
    stats, steps = method.stats(), 40
    assert stats["flash_channel_pages"] == expected[0] / steps
    assert stats["flash_token_pages"] == expected[1] / steps
    assert stats["flash_memory_bytes"] == expected[2] * value_bytes / steps
    assert stats["flash_written_bytes"] == written * 4096 / steps > 0
    pages = float(expected[:2].sum())
    assert stats["flash_read_bytes"] == pages * 4096 / steps
    assert stats["flash_read_frac"] == pytest.approx(pages * 4096 / held_numbers / value_bytes)
    assert sum(stats["flash_pages_of_head"][0]) == pytest.approx(pages / steps, abs=0.2)
    moved = method.probe.row()["bytes_per_step"]
    assert moved["d2h"] == 2 * (4 + 2 * 2) * 64 * value_bytes
    assert moved["h2d"] == 2 * 4 * 64 * value_bytes


def test_pages_of_random_choices_are_as_many_as_chance_says():
    """1/16 of the tokens at random touch 1 - (15/16)^16 of the pages of 16 tokens."""
    qkv = tensors("random", (1, 1), 8193, dim=128, dtype="bfloat16")
    shape = shape_of(qkv[0], qkv[1], 8192)
    method = Sparf(SparfConfig(flash=True), shape, CountingProbe())
    list(decoded(method, qkv, ARGS))
    stats = method.stats()
    assert stats["flash_token_pages"] == pytest.approx(2 * 512 * (1 - (15 / 16) ** 16), rel=0.1)
    expected = 64 * (1 - (112 * 111) / (128 * 127))  # pairs of channels, 16 of 128 wanted
    assert stats["flash_channel_pages"] == pytest.approx(8 * expected, rel=0.25)
    assert stats["flash_read_frac"] == pytest.approx(0.644 + 0.235 / 2, rel=0.1)


def test_flash_changes_no_answer():
    qkv = tensors("clustered", (4, 2), 210)
    shape = shape_of(qkv[0], qkv[1], 200)
    found = [
        torch.stack([o for _, o in decoded(Sparf(SparfConfig(flash=f), shape), qkv, ARGS)])
        for f in (False, True)
    ]
    assert torch.equal(*found)


def test_bad_options_are_one_line():
    shape = shape_of(*tensors("random", (4, 2), 64)[:2], 60)
    with pytest.raises(ValueError, match="method.channels=9: the model's heads have 8 channels"):
        Sparf.plan(SparfConfig(channels=9), shape)
    with pytest.raises(ValueError, match="method: flash=true .* leave them at gpu and auto"):
        parse(SparfConfig, {"flash": True, "placement": "cpu"}, "method")
    with pytest.raises(ValueError, match="flash_channels=3"):
        parse(SparfConfig, {"flash_channels": 3}, "method")
    budget = Budget.parse("6tok")
    with pytest.raises(ValueError, match="static zone alone takes 8 .*method.local_tokens"):
        Sparf.plan(SparfConfig(local_tokens=8), shape, budget)
