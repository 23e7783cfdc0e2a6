"""Sparse prefill against plain references: masks built token by token, softmax over everything."""

from __future__ import annotations

import pytest
import torch

from retrobench.cli import app as cli
from retrobench.core.method import AttentionArgs
from retrobench.core.spec import parse
from retrobench.engine import hf
from retrobench.engine.attention.causal import causal
from retrobench.engine.prefill import prefill
from retrobench.engine.sparse_prefill import PrefillConfig, SparsePrefill, minference, xattention
from retrobench.store.results import ResultStore
from tests.e2e import runs
from tests.support import random_ids, ticks

ALL = {
    "xattention": {"threshold": 1.0},
    "minference": {"vertical_tokens": 0, "slash_diagonals": 100_000},
}
SOME = {
    "xattention": {"block_tokens": 16, "stride": 4, "threshold": 0.6},
    "minference": {"vertical_tokens": 40, "slash_diagonals": 101},
}


def config(name, **options):
    return PrefillConfig(name=name, **options)


def tensors(tokens, heads=4, groups=2, dim=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, heads, tokens, dim), (1, groups, tokens, dim), (1, groups, tokens, dim))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return (2 * q).to(dtype), k.to(dtype), v.to(dtype)


def masked(q, k, v, mask_HTS, args):
    """Softmax over all keys, of which a mask leaves some."""
    repeat = q.shape[1] // k.shape[1]
    k, v = (x[0].float().repeat_interleave(repeat, 0) for x in (k, v))
    logit = q[0].float() @ k.mT * args.scale
    if args.softcap is not None:
        logit = torch.tanh(logit / args.softcap) * args.softcap
    return logit.masked_fill(~mask_HTS, -torch.inf).softmax(-1) @ v


def xattention_mask(q_TD, k_SD, scale, options):
    """The paper's algorithm 1, a pair of tokens at a time."""
    block, stride, tau = options["block_tokens"], options["stride"], options["threshold"]
    tokens = len(k_SD)
    groups, blocks = -(-tokens // stride), -(-tokens // block)
    logit = torch.full((groups, groups), -torch.inf)
    pairs = q_TD @ k_SD.T * scale / stride
    for u in range(groups):
        for w in range(u + 1):
            rows = [u * stride + stride - 1 - j for j in range(stride)]
            keys = [w * stride + j for j in range(stride)]
            logit[u, w] = sum(
                pairs[t, s] for t, s in zip(rows, keys, strict=True) if t < tokens and s < tokens
            )
    mass, size = logit.softmax(-1), block // stride
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i in range(blocks):
        own = mass[i * size : (i + 1) * size].sum(0)
        by_block = [float(own[j * size : (j + 1) * size].sum()) for j in range(blocks)]
        chosen = {0, i}
        for j in sorted(range(i), key=lambda j: -by_block[j]):
            if sum(by_block[c] for c in chosen) < tau * sum(by_block):
                chosen.add(j)
        for j in chosen:
            mask[i * block : (i + 1) * block, j * block : (j + 1) * block] = True
    return mask.tril()


def minference_mask(q_TD, k_SD, scale, options):
    """Lines by loops over the last queries, slashes by loops over blocks of queries."""
    tokens, last = len(k_SD), min(64, len(k_SD))
    vertical, slash = torch.zeros(tokens), torch.zeros(tokens)
    for t in range(tokens - last, tokens):
        weight = (q_TD[t] @ k_SD[: t + 1].T * scale).softmax(-1)
        vertical[: t + 1] += weight
        slash[: t + 1] += weight.flip(0)  # by distance
    vertical[:30], slash[:100] = torch.inf, torch.inf
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    mask[:, vertical.topk(min(tokens, max(30, options["vertical_tokens"]))).indices] = True
    distances = slash.topk(min(tokens, max(50, options["slash_diagonals"]))).indices.tolist()
    for start in range(0, tokens, 64):
        for distance in distances:
            end = start + 64 - distance
            if end > 0:
                end = max(end, 64)
                mask[start : start + 64, end - 64 : end] = True
    return mask.tril()


REFERENCES = {"xattention": xattention_mask, "minference": minference_mask}


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("tokens", [64, 200, 333])
@pytest.mark.parametrize("name", REFERENCES)
def test_chosen_keys_and_their_attention_equal_the_reference(name, tokens, softcap):
    q, k, v = tensors(tokens, seed=tokens)
    args, sparse = (
        AttentionArgs(scale=0.25, softcap=softcap),
        SparsePrefill(config(name, **SOME[name])),
    )
    masks = torch.stack(
        [REFERENCES[name](q[0, h], k[0, h // 2], args.scale, SOME[name]) for h in range(4)]
    )
    out = sparse.attend(q, k, v, args)
    torch.testing.assert_close(out[0], masked(q, k, v, masks, args), rtol=1e-4, atol=1e-5)
    assert 0 < sparse.computed_frac <= 1
    if tokens > 300:
        assert sparse.computed_frac < 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_with_everything_chosen_it_is_exact_attention(name, dtype):
    q, k, v = tensors(301, dtype=dtype)
    args, sparse = AttentionArgs(scale=0.25), SparsePrefill(config(name, **ALL[name]))
    out, exact = sparse.attend(q, k, v, args), causal(q, k, v, args)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(out.float(), exact.float(), rtol=tolerance, atol=tolerance)
    assert sparse.computed_frac == pytest.approx(1)


def test_a_chunk_chooses_what_the_whole_prompt_chooses():
    q, k, _ = tensors(240, heads=1, groups=1)
    options = config("xattention", **SOME["xattention"])
    whole = xattention.chosen_keys(q[0, 0], k[0, 0], 0.25, options)
    part = xattention.chosen_keys(q[0, 0, 160:], k[0, 0], 0.25, options)
    assert torch.equal(part, whole[10:])
    assert minference.chosen_keys(q[0, 0], k[0, 0], 0.25, config("minference")).all()


@pytest.mark.parametrize("name", ALL)
def test_a_model_reads_its_prompt_as_with_exact_attention_if_all_is_chosen(name, tiny_llama):
    hf.attach(tiny_llama)
    prompt = [random_ids(300)]
    exact = prefill(tiny_llama, prompt, clock=ticks(), chunk_tokens=128)
    sparse = SparsePrefill(config(name, **ALL[name]))
    found = prefill(tiny_llama, prompt, clock=ticks(), chunk_tokens=150, sparse=sparse)
    torch.testing.assert_close(found.logits_BV, exact.logits_BV, rtol=1e-4, atol=1e-4)
    for layer, part in exact.layers.items():
        other = found.layers[layer]
        torch.testing.assert_close(other.k_BGSD, part.k_BGSD, rtol=1e-4, atol=1e-4)
    assert found.computed_frac == pytest.approx(1) and exact.computed_frac is None
    with pytest.raises(ValueError, match=f"prefill={name} runs with engine.batch=1"):
        prefill(tiny_llama, 2 * prompt, clock=ticks(), sparse=sparse)


def test_a_row_says_how_its_prompt_was_read(tmp_path):
    task = {"name": "niah", "length": 1300, "samples": 1, "depths": 1}
    raw = runs.config(tmp_path, method={"name": "full"}, task=task)
    exact = cli.run_job(raw)
    kinds = {"name": "xattention", "block_tokens": 64, "threshold": 0.5}
    sparse = cli.run_job({**raw, "prefill": kinds})
    store = ResultStore(tmp_path)
    assert exact["key"] != sparse["key"]
    (row,) = store.read(sparse["key"]).rows.values()
    assert row["status"] == "ok" and 0 < row["prefill_computed_frac"] < 1
    assert row["prefill_attention"] == "xattention"
    (row,) = store.read(exact["key"]).rows.values()
    assert "prefill_computed_frac" not in row
    assert "prefill" not in store.cell(exact["key"])["cell"]["engine"]
    labels = store.cell(sparse["key"])["labels"]
    assert "prefill=xattention" in labels["changed"] and "threshold=0.5" in labels["changed"]


def test_options_are_refused_where_they_say_nothing():
    with pytest.raises(ValueError, match=r"prefill.threshold is an option of prefill=xattention"):
        parse(PrefillConfig, {"threshold": 0.5}, "prefill")
    with pytest.raises(ValueError, match=r"prefill.stride=24 must divide"):
        parse(PrefillConfig, {"name": "xattention", "stride": 24}, "prefill")
