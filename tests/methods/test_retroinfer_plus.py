"""``retroinfer_plus``: space and gains, and a step against the formula, written down once more."""

from __future__ import annotations

import math

import pytest
import torch
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from retrobench_methods.retroinfer_plus import VALUE_WEIGHT, QuerySpace, RetroInferPlus

from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.measure.probe import CountingProbe
from tests.support import kv_shape

ARGS = AttentionArgs(scale=0.2)


def prompt(kind, groups, length, dim, dtype):
    """Keys and values of awkward kinds, one token more than the prompt."""
    generator = torch.Generator().manual_seed(len(kind))
    k, v = torch.randn(2, 2, groups, length + 1, dim, generator=generator)
    if kind == "clustered":
        topic = 2 * torch.randn(2, groups, 30, dim, generator=generator)
        k = 0.3 * k + topic[:, :, torch.randint(0, 30, (length + 1,), generator=generator)]
    elif kind == "constant":
        k, v = torch.ones_like(k), torch.ones_like(v)
    elif kind == "duplicates":
        k = k[:, :, torch.arange(length + 1) % 7]
    elif kind == "outliers":
        k[:, :, ::97] *= 30
    return k.to(dtype), v.to(dtype)


def built(kind, heads=4, groups=2, dim=16, dtype=torch.float32, pads=(0, 13), **options):
    """A method after its prompt, with keys, values and a decode query."""
    length, generator = 420, torch.Generator().manual_seed(7)
    shape = kv_shape(
        pad_tokens=pads,
        layers=(3,),
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=dim,
        prompt_tokens=length,
        max_tokens=length + 1,
        dtype=str(dtype)[6:],
    )
    k, v = (x[: len(pads)] for x in prompt(kind, groups, length, dim, dtype))
    config = RetroInferPlus.Config(update_tokens=64, **options)
    method = RetroInferPlus(config, shape, CountingProbe())
    q = torch.randn(len(pads), heads, 129, dim, generator=generator).to(dtype)
    rows = PromptLayer(
        k_BGSD=k[:, :, :length], v_BGSD=v[:, :, :length], args=ARGS, q_BHWD=q[:, :, :128]
    )
    method.build(3, rows)
    return method, k, v, 2 * q[:, :, 128:]


def int4(x_CD, exists):
    """4 bits in blocks of 32 dims (or all of them) around the mean of the clusters there are."""
    dim = x_CD.shape[1]
    mean = x_CD[exists].mean(0)
    blocks = (x_CD - mean).reshape(len(x_CD), -1, 32 if dim % 32 == 0 else dim)
    step = (blocks.abs().amax(-1, keepdim=True) / 7).clamp_min(1e-7).half().float()
    return ((blocks / step).round().clamp(-7, 7) * step).flatten(1) + mean


def formula(method, row, head, q_D, k_SD, v_SD):
    """The output of one query head, from the clusters' tokens alone; all query heads rank alone."""
    index, store, dim = method.index, method.store, q_D.shape[-1]
    g = head // (index.shape.num_heads // index.shape.num_kv_heads)
    size, first = index.size_LBGC[0, row, g], index.first_LBGC[0, row, g]
    members = [slice(int(a), int(a + n)) for a, n in zip(first, size, strict=True)]
    pool = [p[0][row, g].float() for p in (store.k_pool, store.v_pool)]
    k_C, v_C = ([p[m] for m in members] for p in pool)
    exists = size > 0
    centroid, mean = (
        torch.stack([x.mean(0) if len(x) else torch.zeros(dim) for x in part])
        for part in (k_C, v_C)
    )
    root = index.space.metric_LBGDD[0, row, g]
    spread = [((k - c) @ root).square().sum(-1).mean() for k, c in zip(k_C, centroid, strict=True)]
    gain = (0.25 * ARGS.scale**2 * torch.stack(spread)).clamp_max(2).half().float()
    logit = q_D.float() @ int4(centroid, exists).T * ARGS.scale + gain
    logit = (logit + size.log()).masked_fill(~exists, -torch.inf)
    mean = int4(mean, exists)
    total = torch.stack([v.sum(0) for v in v_C]).sum(0)
    return logit, size, mean, total, members, pool


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("random", {}),
        ("clustered", {}),
        ("clustered", {"heads": 9, "groups": 3, "dim": 32}),
        ("clustered", {"heads": 3, "groups": 1, "pads": (0,)}),
        ("random", {"dtype": torch.bfloat16, "dim": 64}),
        ("constant", {}),
        ("duplicates", {}),
        ("outliers", {}),
        ("outliers", {"tokens_per_cluster": 2, "retrieval_frac": 0.2, "estimation_frac": 0.0}),
    ],
)
def test_a_step_equals_the_formula(kind, options):
    method, k, v, q = built(kind, **options)
    got = method.decode(3, q, k[:, :, -1:], v[:, :, -1:], ARGS)
    shape, index = method.shape, method.index
    group = shape.num_heads // shape.num_kv_heads
    for row in range(shape.batch):
        for g in range(shape.num_kv_heads):
            heads = range(g * group, (g + 1) * group)
            found = [formula(method, row, h, q[row, h, 0], k[row, g], v[row, g]) for h in heads]
            _, size, mean, total, members, pool = found[0]
            logit = torch.stack([f[0] for f in found])
            order = logit.softmax(-1).sum(0).masked_fill(size == 0, -1).sort(descending=True)
            clusters = int((order.values >= 0).sum())
            limit, most = int(index.token_limit_LB[0, row]), int(index.retrieved_LB[0, row])
            within = int((size[order.indices].cumsum(0) <= limit)[:clusters].sum())
            best = min(most, max(1, within))
            last = min(clusters, best + int(index.estimated_LB[0, row]))
            if kind in ("constant", "duplicates"):  # equal ranks may fall either way
                chosen = index.select(3, q, method.store, ARGS)
                retrieved = [c for c in chosen.chosen_BGN[row, g].tolist() if c >= 0]
                estimated = [c for c in chosen.estimated_BGE[row, g].tolist() if c >= 0]
                assert len(estimated) <= int(index.estimated_LB[0, row])
            else:
                retrieved = order.indices[:best].tolist()
                estimated = order.indices[best:last].tolist()
            steady = method.store.steady(0)
            count = int(steady.count_B[row])
            exact = [slice(0, 0)] + [members[c] for c in retrieved]
            keys = torch.cat([steady.k_BGWD[row, g, :count].float()] + [pool[0][m] for m in exact])
            values = [steady.v_BGWD[row, g, :count].float()] + [pool[1][m] for m in exact]
            named = torch.tensor([*retrieved, *estimated])
            rest = torch.ones_like(size, dtype=torch.bool).index_fill(0, named, False) & (size > 0)
            left = total - (mean[named] * size[named, None]).sum(0)
            values += [mean[estimated], left[None] / max(1, int(size[rest].sum()))]
            for n, head in enumerate(heads):
                weight = [keys @ q[row, head, 0].float() * ARGS.scale, logit[n, estimated]]
                weight += [logit[n, rest].logsumexp(0)[None]]
                expected = torch.cat(weight).softmax(0) @ torch.cat(values)
                close = 2e-2 if k.dtype == torch.bfloat16 else 2e-4
                torch.testing.assert_close(
                    got[row, head, 0].float(), expected, atol=close, rtol=close
                )


def test_bytes_equal_the_formula():
    method, k, v, q = built("clustered", dim=32)
    method.decode(3, q, k[:, :, -1:], v[:, :, -1:], ARGS)
    found, index = method.probe.row(), method.index
    heads = 4  # KV heads of both rows
    clusters = sum(2 * row[0] for row in zip(*index.clusters, strict=True))
    chosen = index.select(3, q, method.store, ARGS)
    listed = int((chosen.estimated_BGE >= 0).sum() + (chosen.chosen_BGN >= 0).sum())
    vector = 32 // 2 + 2
    expected = clusters * (vector + 4 + 2) + listed * vector + heads * 3 * 4 * 32
    assert found["bytes_per_step"]["index"] == pytest.approx(expected)
    tokens = found["attended_tokens"] * heads
    assert found["bytes_per_step"]["kv"] == pytest.approx(tokens * 2 * 32 * 4, rel=0.01)


@pytest.mark.parametrize("dim", [16, 24])
def test_distances_are_those_of_logits_and_values(dim):
    """With as many axes as numbers, nothing is lost."""
    torch.manual_seed(0)
    shape = kv_shape(head_dim=dim, prompt_tokens=90, max_tokens=90)
    space, (k, v) = QuerySpace(shape), torch.randn(2, 2, 90, dim)
    q = torch.randn(4, 300, dim)
    space.learn(0, 0, k, v, q)
    joint = space.project(0, 0, k, v)
    for g in range(2):
        seen = q[2 * g : 2 * g + 2].flatten(0, 1)
        i, j = torch.randint(0, 90, (2, 40))
        logits = ((k[g, i] - k[g, j]) @ seen.T).square().mean(-1)
        norm = [
            ((k[g] - k[g].mean(0)) @ space.metric_LBGDD[0, 0, g]).norm(dim=-1).mean(),
            (v[g] - v[g].mean(0)).norm(dim=-1).mean() / VALUE_WEIGHT,
        ]
        expected = logits / norm[0] ** 2 + (v[g, i] - v[g, j]).square().sum(-1) / norm[1] ** 2
        got = (joint[g, i] - joint[g, j]).square().sum(-1)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)


def test_euclidean_kmeans_is_lloyds():
    """Every form against a loop over clusters, from the same first keys."""
    torch.manual_seed(3)
    k_GSD = torch.randn(2, 90, 64) + 4 * torch.randn(2, 9, 64)[:, torch.arange(90) // 10]
    centroid = k_GSD[:, torch.linspace(0, 89, 12).long()].clone()
    for _ in range(4):
        label = torch.cdist(k_GSD, centroid).argmin(-1)
        for g in range(2):
            for c in label[g].unique():
                centroid[g, c] = k_GSD[g][label[g] == c].mean(0)
    for form in (segmented_kmeans, segmented_kmeans.reference):
        got = form(k_GSD, 12, 1, 4, "segment", distance="euclidean")
        assert torch.equal(got[1], label)
        for g in range(2):
            for c in label[g].unique():
                torch.testing.assert_close(got[0][g, c], centroid[g, c], atol=1e-4, rtol=1e-4)


def test_gains_move_estimates_towards_the_truth():
    """On keys spread normally the sum of a cluster's weights is nearer with its gain."""
    method, k, _, q = built("clustered", dim=32, tokens_per_cluster=16)
    index, store = method.index, method.store
    wrong = {0.0: 0.0, 1.0: 0.0}
    for row in range(2):
        for g in range(2):
            for c in torch.nonzero(index.size_LBGC[0, row, g] > 1)[:, 0].tolist():
                first, size = (int(x[0, row, g, c]) for x in (index.first_LBGC, index.size_LBGC))
                keys = store.k_pool[0][row, g, first : first + size]
                for query in q[row, 2 * g : 2 * g + 2, 0] / 2:
                    true = (keys @ query * ARGS.scale).logsumexp(0) - math.log(size)
                    plain = keys.mean(0) @ query * ARGS.scale
                    for share in wrong:
                        guess = plain + share * index.gain_LBGC[0, row, g, c].float()
                        wrong[share] += float((true - guess).abs())
    assert wrong[1.0] < wrong[0.0]
