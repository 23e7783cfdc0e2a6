"""What the stages share: shapes, timing, rows that cannot get lost, synthetic indexes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from retrobench_kernels.wave_attention import Estimation, Pool, Steady

from retrobench.core.shapes import DTYPE_BYTES, KVShape

STAGE_S = 540.0  # a stage stops adding cases after this, so that it ends within ten minutes
RETRIEVAL_FRAC, ESTIMATION_FRAC, STEADY_TOKENS = 0.018, 0.232, 580  # 68 + mean unindexed tail


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One attention workload; the defaults are Llama-3.1-8B's."""

    batch: int
    context: int
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    layers: int = 32
    dtype: str = "bfloat16"

    @property
    def layer_bytes(self) -> int:
        """K and V of one layer, all rows."""
        return 2 * self.batch * self.kv_heads * self.context * self.dim * DTYPE_BYTES[self.dtype]

    @property
    def scale(self) -> float:
        """Logit scale."""
        return self.dim**-0.5

    def kv_shape(self, device: str, new_tokens: int = 1) -> KVShape:
        """As methods want it."""
        return KVShape(
            pad_tokens=(0,) * self.batch,
            layers=tuple(range(self.layers)),
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.dim,
            prompt_tokens=self.context,
            max_tokens=self.context + new_tokens,
            dtype=self.dtype,
            device=device,
        )


SMOKE = Shape(batch=2, context=1500, heads=4, kv_heads=2, dim=64, layers=2, dtype="float32")


@dataclass(slots=True)
class Bench:
    """Device, deadline, measured ceilings, and the rows of one stage."""

    device: str
    smoke: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def shapes(self, *shapes: Shape) -> tuple[Shape, ...]:
        """The given shapes, or the tiny one for a smoke run."""
        return (SMOKE,) if self.smoke else shapes

    def case(self, name: str, **facts: Any) -> Callable[[Callable[[dict[str, Any]], None]], None]:
        """Decorator that runs a function at once and keeps its row whatever happens inside.

        Status: ``ok``, ``parity``, ``oom``, ``absent`` (not installed, or not for this device),
        ``error`` or ``late`` (the stage's time was up).
        """
        row: dict[str, Any] = {"case": name}
        for key, value in facts.items():
            row.update(asdict(value) if isinstance(value, Shape) else {key: value})

        def keep(body: Callable[[dict[str, Any]], None]) -> None:
            self.rows.append(row)
            if time.perf_counter() - self.started > STAGE_S:
                row.update(status="late")
                return
            try:
                body(row)
                row.setdefault("status", "ok")
            except ImportError as error:
                row.update(status="absent", error=str(error))
            except torch.OutOfMemoryError as error:
                row.update(status="oom", error=str(error).splitlines()[0])
            except Exception as error:  # the other cases must still run
                row.update(status="error", error=f"{type(error).__name__}: {error}"[:300])
            if self.device == "cuda":
                torch.cuda.empty_cache()

        return keep

    def time(self, run: Callable[[], Any], calls: int = 1, repeats: int = 20) -> dict[str, Any]:
        """Seconds of one of the ``calls`` that ``run`` makes: median, 10th and 90th percentile.

        On a GPU ``run`` is captured and replayed between events, so launch costs of Python do not
        count; what cannot be captured runs eagerly and the row says so.
        """
        if self.smoke:
            repeats = 2
        if self.device != "cuda":
            return {**summary(_wall(run, repeats), calls), "mode": "eager"}
        replay, mode = _captured(run)
        spent = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in "se")
            start.record()
            replay()
            end.record()
            end.synchronize()
            spent.append(start.elapsed_time(end) / 1e3)
        return {**summary(spent, calls), "mode": mode}


def _captured(run: Callable[[], Any]) -> tuple[Callable[[], Any], str]:
    run()  # compiles
    torch.cuda.synchronize()
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return run, "eager"
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, "graph"


def _wall(run: Callable[[], Any], repeats: int) -> list[float]:
    run()
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return spent


def summary(spent: list[float], calls: int = 1) -> dict[str, float]:
    """Median, 10th and 90th percentile of measured seconds, for one of ``calls`` calls."""
    ordered = sorted(value / calls for value in spent)
    tenth = len(ordered) // 10
    return {
        "median_s": statistics.median(ordered),
        "p10_s": ordered[tenth],
        "p90_s": ordered[-1 - tenth],
    }


def with_rate(timing: dict[str, Any], num_bytes: int) -> dict[str, Any]:
    """Timing with the bytes that had to move and the rate reached."""
    return {**timing, "bytes": num_bytes, "gb_per_s": num_bytes / timing["median_s"] / 1e9}


@dataclass(slots=True)
class Inputs:
    """Random queries, keys and values of one layer, and a random ragged index over them."""

    shape: Shape
    device: str
    page_tokens: int = 1
    place: str = "gpu"

    def random(self, *size: int) -> torch.Tensor:
        """Normal values in the shape's dtype."""
        return torch.randn(*size, dtype=getattr(torch, self.shape.dtype), device=self.device)

    def query(self) -> torch.Tensor:
        """``q_BHD``."""
        return self.random(self.shape.batch, self.shape.heads, self.shape.dim)

    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``k_BGSD`` and ``v_BGSD``."""
        s = self.shape
        return tuple(self.random(s.batch, s.kv_heads, s.context, s.dim) for _ in "kv")  # type: ignore

    def index(self) -> Index:
        """Clusters of 8 to 24 tokens that cover the context."""
        s, clusters = self.shape, self.shape.context // 16
        head = (s.batch, s.kv_heads)
        size = torch.randint(8, 25, (*head, clusters), dtype=torch.int32, device=self.device)
        aligned = (size + self.page_tokens - 1) // self.page_tokens * self.page_tokens
        first = (aligned.cumsum(-1) - aligned).int()
        tokens = int(aligned.sum(-1).max())
        pool = [self.random(*head, tokens, s.dim) for _ in "kv"]
        if self.place == "pinned" and self.device == "cuda":
            pool = [pool_kv.cpu().pin_memory() for pool_kv in pool]
        steady = [self.random(*head, STEADY_TOKENS, s.dim) for _ in "kv"]
        count = torch.full((s.batch,), STEADY_TOKENS, dtype=torch.int32, device=self.device)
        return Index(
            self.query(),
            Steady(*steady, count),
            Pool(*pool, first, size),
            self.random(*head, clusters, s.dim),
            self.random(*head, clusters, s.dim),
            self.page_tokens,
        )


@dataclass(slots=True)
class Index:
    """Inputs of the three kernels of a step."""

    q_BHD: torch.Tensor
    steady: Steady
    pool: Pool
    centroid_BGCD: torch.Tensor
    value_sum_BGCD: torch.Tensor
    page_tokens: int

    @property
    def clusters(self) -> int:
        """Clusters per head."""
        return self.centroid_BGCD.shape[2]

    @property
    def widths(self) -> tuple[int, int]:
        """Retrieved and estimated clusters."""
        return (
            max(1, round(RETRIEVAL_FRAC * self.clusters)),
            round(ESTIMATION_FRAC * self.clusters),
        )

    def select_arguments(self, scale: float) -> tuple[tuple[Any, ...], dict[str, int]]:
        """Arguments of ``cluster_select``."""
        batch = self.q_BHD.shape[0]
        counts = [
            torch.full((batch,), n, dtype=torch.int32, device=self.q_BHD.device)
            for n in (self.clusters, *self.widths)
        ]
        arguments = (self.q_BHD, self.centroid_BGCD, self.pool.size_BGC, *counts, scale)
        return arguments, {"max_retrieved": self.widths[0], "max_estimated": self.widths[1]}

    def zones(self, selected: tuple[torch.Tensor, ...], scale: float) -> tuple[Any, Estimation]:
        """Arguments of ``wave_attention``."""
        retrieved, estimated, logit = selected
        exact = (self.q_BHD, self.steady, self.pool, retrieved, scale)
        return exact, Estimation(estimated, logit, self.value_sum_BGCD)

    def read_bytes(self, retrieved_BGR: torch.Tensor) -> tuple[int, int]:
        """Bytes that selection and attention must read."""
        element, dim = self.q_BHD.element_size(), self.q_BHD.shape[-1]
        heads = retrieved_BGR.shape[0] * retrieved_BGR.shape[1]
        tokens = self.pool.size_BGC.gather(-1, retrieved_BGR.clamp_min(0).long()).sum().item()
        exact = 2 * (int(tokens) + heads * STEADY_TOKENS)
        score = heads * self.clusters * (dim * element + 4)
        return score, (exact + heads * self.widths[1]) * dim * element


def error_of(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 error."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())
