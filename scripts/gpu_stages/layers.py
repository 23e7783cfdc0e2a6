"""Stage 4: attention of all layers in one graph: full, on the device, offloaded by hit ratio.

Queries drift between replays (``q <- rho q + noise``, inside the graph), which sets the hit ratio
of an offloaded cache; the row carries the ratio that was measured while timing.
"""

from __future__ import annotations

import torch
from retrobench_kernels.cluster_select import cluster_select
from retrobench_kernels.wave_attention import wave_attention
from retrobench_kernels.wave_step import CacheTable, wave_step

from gpu_stages.baselines import BACKENDS
from gpu_stages.common import Bench, Index, Inputs, Shape, with_rate

SHAPES = [
    Shape(batch=1, context=30_000),
    Shape(batch=28, context=30_000),
    Shape(batch=1, context=120_000),
    Shape(batch=7, context=120_000),
]
OFFLOADED = [Shape(batch=1, context=120_000), Shape(batch=6, context=120_000)]
DRIFTS = (0.999, 0.99, 0.97, 0.9)
CACHE_FRAC, PAGE_TOKENS = 0.05, 8
LAYERS = 8  # distinct layers: enough to keep the L2 cache cold, few enough to fit


def run(bench: Bench) -> None:
    """Full attention and RetroInfer on the device, then RetroInfer over a pinned pool."""
    for shape in bench.shapes(*SHAPES):
        for name in ("sdpa_flash", "own") if not bench.smoke else ("own",):
            _full(bench, shape, name)
        _resident(bench, shape)
    for shape in bench.shapes(*OFFLOADED):
        _offloaded(bench, shape)


def _full(bench: Bench, shape: Shape, name: str) -> None:
    @bench.case("full_layer", shape=shape, backend=name)
    def _(row: dict) -> None:
        inputs = Inputs(shape, bench.device)
        turns = max(2, min(LAYERS, int(60e9 // shape.layer_bytes)))
        attends = [BACKENDS[name](*inputs.dense(), shape) for _ in range(turns)]
        q_BHD = inputs.query()
        timing = bench.time(lambda: [attend(q_BHD) for attend in attends], turns)
        row.update(with_rate(timing, shape.layer_bytes))


def _resident(bench: Bench, shape: Shape) -> None:
    @bench.case("retroinfer_layer", shape=shape, place="gpu")
    def _(row: dict) -> None:
        turns = max(2, min(LAYERS, int(60e9 // shape.layer_bytes)))
        layers = [Inputs(shape, bench.device).index() for _ in range(turns)]
        calls = [layer.select_arguments(shape.scale) for layer in layers]

        def step() -> None:
            for layer, (arguments, limits) in zip(layers, calls, strict=True):
                exact, estimation = layer.zones(cluster_select(*arguments, **limits), shape.scale)
                wave_attention(*exact, estimation=estimation)

        retrieved = cluster_select(*calls[0][0], **calls[0][1])[0]
        row.update(with_rate(bench.time(step, turns), sum(layers[0].read_bytes(retrieved))))


def _offloaded(bench: Bench, shape: Shape) -> None:
    layers: list[Index] = []
    turns = 2 if bench.smoke else max(1, min(4, int(24e9 // shape.layer_bytes)))

    @bench.case("offload", shape=shape, layers=turns)
    def _(row: dict) -> None:
        inputs = Inputs(shape, bench.device, PAGE_TOKENS, place="pinned")
        layers.extend(inputs.index() for _ in range(turns))
        row["pinned_bytes"] = sum(x.pool.k_BGSD.nbytes + x.pool.v_BGSD.nbytes for x in layers)

    for rho in DRIFTS:

        @bench.case("retroinfer_layer", shape=shape, place="pinned", rho=rho, cache_frac=CACHE_FRAC)
        def _(row: dict, rho: float = rho) -> None:
            if not layers:
                raise RuntimeError("the pinned pool could not be made")
            tables = [_table(layer, shape) for layer in layers]
            calls = [layer.select_arguments(shape.scale) for layer in layers]

            def step() -> None:
                for layer, table, (arguments, limits) in zip(layers, tables, calls, strict=True):
                    noise = torch.randn_like(layer.q_BHD)
                    layer.q_BHD.mul_(rho).add_(noise, alpha=(1 - rho**2) ** 0.5)
                    table.step_1.add_(1)
                    selected = cluster_select(*arguments, **limits)
                    exact, estimation = layer.zones(selected, shape.scale)
                    wave_step(*exact, table=table, estimation=estimation)

            for _ in range(2 if bench.smoke else 20):  # fill the cache
                step()
            for table in tables:
                table.tally_BG2.zero_()
            row.update(bench.time(step, turns))
            hits, misses = sum(table.tally_BG2.sum((0, 1)) for table in tables).tolist()  # type: ignore
            row["hit_ratio"] = hits / max(1, hits + misses)


def _table(layer: Index, shape: Shape) -> CacheTable:
    head, device = (shape.batch, shape.kv_heads), layer.q_BHD.device
    pages = -(-layer.pool.k_BGSD.shape[2] // PAGE_TOKENS)
    slots = max(1, round(CACHE_FRAC * shape.context / PAGE_TOKENS))

    def ints(*size: int, fill: int = -1, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.full(size, fill, dtype=dtype, device=device)

    k_BGQD = torch.zeros(
        *head, slots * PAGE_TOKENS, shape.dim, dtype=layer.q_BHD.dtype, device=device
    )
    return CacheTable(
        ints(*head, pages), ints(*head, slots), ints(*head, slots), ints(1, fill=0),
        ints(*head, 2, fill=0, dtype=torch.int64), k_BGQD, torch.zeros_like(k_BGQD), PAGE_TOKENS,
    )  # fmt: skip
