"""Probes that count: liveness per layer, a byte ledger, cache accesses and spans."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from retrobench.core.method import Bytes
from retrobench.measure.clock import monotonic_s


class CountingProbe:
    """Accumulates over a session; ``row()`` gives per-step means ready for JSON."""

    detail = False

    def __init__(self, spans: bool = False) -> None:
        self.calls: dict[int, int] = defaultdict(int)
        self.attended: dict[int, float] = defaultdict(float)
        self.estimated: dict[int, float] = defaultdict(float)
        self.num_bytes: dict[str, int] = defaultdict(int)
        self.span_s: dict[str, float] = defaultdict(float)
        self.pages: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
        self._timed = spans

    def reset(self) -> None:
        """Forget everything counted so far (a warm-up)."""
        CountingProbe.__init__(self, spans=self._timed)

    def span(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Time a named part, if spans were asked for."""
        return self._span(name) if self._timed else contextlib.nullcontext()

    @contextlib.contextmanager
    def _span(self, name: str) -> Iterator[None]:
        start = monotonic_s()
        try:
            yield
        finally:
            self.span_s[name] += monotonic_s() - start

    def moved(self, kind: Bytes, num_bytes: int) -> None:
        """Add bytes to the ledger."""
        self.num_bytes[kind] += num_bytes

    def access(self, layer: int, hits: int, misses: int, evictions: int = 0) -> None:
        """Add fast-tier accesses of a layer."""
        counts = self.pages[layer]
        for i, number in enumerate((hits, misses, evictions)):
            counts[i] += number

    def live(self, layer: int, *, attended: float, estimated: float = 0.0) -> None:
        """One decode call of a layer."""
        self.calls[layer] += 1
        self.attended[layer] += attended
        self.estimated[layer] += estimated

    def selected(
        self, layer: int, token_BGR: Any, estimate: Any = None, member_BGE: Any = None
    ) -> None:
        """Counts need no token sets."""

    def missing(self, layers: tuple[int, ...], steps: int) -> list[int]:
        """Layers that did not report one call for each of ``steps`` decode steps."""
        return [layer for layer in layers if self.calls[layer] != steps]

    def row(self) -> dict[str, Any]:
        """Per-step means: tokens attended and estimated per layer, bytes per kind, hit ratio."""
        steps = max(self.calls.values(), default=0)
        per_step = max(1, steps)
        return {
            "decode_calls": {str(layer): count for layer, count in sorted(self.calls.items())},
            "attended_tokens": _mean(self.attended, self.calls),
            "estimated_tokens": _mean(self.estimated, self.calls),
            "bytes_per_step": {k: round(v / per_step) for k, v in sorted(self.num_bytes.items())},
            "hit_ratio": _hit_ratio(map(sum, zip(*self.pages.values(), strict=True))),
            "hit_ratio_of_layer": {
                str(layer): _hit_ratio(counts) for layer, counts in sorted(self.pages.items())
            },
            "pages_per_step": {
                name: round(sum(counts[i] for counts in self.pages.values()) / per_step, 1)
                for i, name in enumerate(("hits", "misses", "evictions"))
            },
            "span_s": {name: seconds for name, seconds in sorted(self.span_s.items())},
            "fetch_hidden_frac": _hidden(self.span_s),
        }


def _hit_ratio(counts: Iterable[int]) -> float | None:
    hits, misses, *_ = (*counts, 0, 0)
    return hits / (hits + misses) if hits + misses else None


def _hidden(span_s: Mapping[str, float]) -> float | None:
    """Share of the time of fetches that the model did not wait for; host clock, so on a CPU."""
    fetch_s = span_s.get("fetch", 0.0)
    return max(0.0, 1 - span_s.get("fetch_wait", 0.0) / fetch_s) if fetch_s else None


def _mean(total: dict[int, float], calls: dict[int, int]) -> float:
    count = sum(calls.values())
    return sum(total.values()) / count if count else 0.0
