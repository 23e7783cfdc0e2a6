"""Stage 2: every kernel of a step: parity with the naive form, time, and GB/s against the floor.

A kernel whose parity fails has no time in its row.
"""

from __future__ import annotations

import torch
from retrobench_kernels.cluster_select import cluster_select
from retrobench_kernels.cluster_select import naive as select_naive
from retrobench_kernels.dense_decode import dense_decode
from retrobench_kernels.dense_decode import naive as dense_naive
from retrobench_kernels.segmented_kmeans import naive as kmeans_naive
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from retrobench_kernels.wave_attention import naive as wave_naive
from retrobench_kernels.wave_attention import wave_attention

from gpu_stages.common import Bench, Index, Inputs, Shape, error_of, with_rate

SHAPES = [
    Shape(batch=batch, context=context) for context in (30_000, 60_000, 120_000) for batch in (1, 7)
]
WORST = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 1e-4}
COLD = 8  # inputs that take turns, so that the L2 cache is cold


def run(bench: Bench) -> None:
    """Selection, attention and dense decode at every shape; k-means at one."""
    for shape in bench.shapes(*SHAPES):
        turns = 2 if bench.smoke else COLD
        layers = [Inputs(shape, bench.device).index() for _ in range(turns)]
        _select(bench, shape, layers)
        _attention(bench, shape, layers)
        del layers
        _dense(bench, shape)
    _kmeans(bench)


def _select(bench: Bench, shape: Shape, layers: list[Index]) -> None:
    calls = [layer.select_arguments(shape.scale) for layer in layers]

    @bench.case("cluster_select", shape=shape)
    def _(row: dict) -> None:
        got = cluster_select(*calls[0][0], **calls[0][1])
        expected = select_naive.cluster_select(*calls[0][0], **calls[0][1])
        row["same_retrieved_frac"] = _overlap(got[0], expected[0])
        if row["same_retrieved_frac"] < 0.99:
            row.update(status="parity", error="other clusters than the naive form")
            return
        timing = bench.time(lambda: [cluster_select(*a, **k) for a, k in calls], len(calls))
        row.update(with_rate(timing, layers[0].read_bytes(got[0])[0]))

    @bench.case("torch_topk", shape=shape)
    def _(row: dict) -> None:
        mass = [torch.rand(shape.batch * shape.kv_heads, x.clusters, device=bench.device)
                for x in layers]  # fmt: skip
        count = sum(layers[0].widths)
        row.update(
            bench.time(lambda: [m.topk(count, -1, sorted=False) for m in mass], len(mass)),
            rows=mass[0].shape[0], clusters=mass[0].shape[1], k=count,
        )  # fmt: skip


def _attention(bench: Bench, shape: Shape, layers: list[Index]) -> None:
    @bench.case("wave_attention", shape=shape)
    def _(row: dict) -> None:
        zones = []
        for layer in layers:
            arguments, limits = layer.select_arguments(shape.scale)
            zones.append(layer.zones(cluster_select(*arguments, **limits), shape.scale))
        exact, estimation = zones[0]
        got = wave_attention(*exact, estimation=estimation)[0]
        expected = wave_naive.wave_attention(*exact, estimation=estimation)[0]
        if not _agrees(row, got, expected, shape):
            return
        timing = bench.time(
            lambda: [wave_attention(*x, estimation=e) for x, e in zones], len(zones)
        )
        row.update(with_rate(timing, layers[0].read_bytes(exact[3])[1]))


def _dense(bench: Bench, shape: Shape) -> None:
    @bench.case("dense_decode", shape=shape)
    def _(row: dict) -> None:
        inputs = Inputs(shape, bench.device)
        turns = max(2, min(COLD, int(8e9 // shape.layer_bytes)))
        layers = [(inputs.query(), *inputs.dense()) for _ in range(turns)]
        got = dense_decode(*layers[0], shape.scale)[0]
        one = [x[:1] for x in layers[0]]  # the naive form holds float32 copies: one row of it
        if not _agrees(row, got[:1], dense_naive.dense_decode(*one, shape.scale)[0], shape):
            return
        timing = bench.time(lambda: [dense_decode(*x, shape.scale) for x in layers], turns)
        row.update(with_rate(timing, shape.layer_bytes))


def _kmeans(bench: Bench) -> None:
    tokens, heads, dim = (600, 2, 64) if bench.smoke else (8192, 8, 128)

    @bench.case("segmented_kmeans", tokens=tokens, heads=heads, dim=dim)
    def _(row: dict) -> None:
        k = Inputs(bench.shapes(Shape(batch=1, context=tokens))[0], bench.device).random(
            heads, tokens, dim
        )
        clusters, iterations = tokens // 16, 10
        got = segmented_kmeans(k, clusters, 1, iterations)
        expected = kmeans_naive.segmented_kmeans(k, clusters, 1, iterations)
        scatter = [float((k.float() - c.gather(1, l[..., None].expand_as(k))).norm()) for c, l in
                   (got, expected)]  # fmt: skip
        row["scatter_over_naive"] = scatter[0] / scatter[1]
        if row["scatter_over_naive"] > 1.01:
            row.update(status="parity", error="looser clusters than the naive form")
            return
        timing = bench.time(lambda: segmented_kmeans(k, clusters, 1, iterations))
        flops = 2 * iterations * heads * tokens * clusters * dim
        row.update(timing, flops=flops, tflop_per_s=flops / timing["median_s"] / 1e12)


def _agrees(row: dict, got: torch.Tensor, expected: torch.Tensor, shape: Shape) -> bool:
    row["relative_error"] = error_of(got, expected)
    if row["relative_error"] <= WORST[shape.dtype]:
        return True
    row.update(status="parity", error="output differs from the naive form")
    return False


def _overlap(got: torch.Tensor, expected: torch.Tensor) -> float:
    same = (got[..., :, None] == expected[..., None, :]).any(-1)
    return float(same.float().mean())
