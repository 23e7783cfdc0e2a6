"""Probes that count: liveness per layer, byte counters, cache accesses and spans."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from retrobench.core.counts import BYTES, COUNTS, PAGES
from retrobench.core.method import Probe
from retrobench.measure.clock import monotonic_s


class CountingProbe(Probe):
    """Accumulates over a session; ``row()`` gives per-step means ready for JSON.

    Amounts that a method knows on the device stay there: they are added in place and read once,
    by ``row``. ``counting`` off makes a session pay nothing for its accounting.
    """

    def __init__(self, spans: bool = False, counting: bool = True) -> None:
        self.counting, self.timing = counting, spans
        self._calls: dict[int, int] = defaultdict(int)
        self._host: dict[tuple[int, str], float] = defaultdict(float)
        self._device: dict[tuple[int, str], Tensor] = {}
        self._spans: dict[str, list[Any]] = defaultdict(list)
        self._graph: list[tuple[int, dict[str, float]]] = []  # host's amounts of a captured step
        self._capturing = False

    def reset(self) -> None:
        """Forget everything counted so far (a warm-up). Device tensors keep their addresses."""
        self._calls.clear()
        self._host.clear()
        self._spans.clear()
        for total in self._device.values():
            total.zero_()

    def span(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Time a named part, if spans were asked for."""
        return self._span(name) if self.timing else contextlib.nullcontext()

    @contextlib.contextmanager
    def _span(self, name: str) -> Iterator[None]:
        start = _mark()
        try:
            yield
        finally:
            self._spans[name].append((start, _mark()))

    def count(self, layer: int, **amounts: float | Tensor) -> None:
        """Add what a decode call of a layer cost."""
        known: dict[str, float] = {}
        for name, amount in amounts.items():
            assert name in COUNTS, name
            if not isinstance(amount, (int, float)):
                if (layer, name) not in self._device:
                    zero = torch.zeros((), dtype=torch.float64, device=amount.device)
                    self._device[layer, name] = zero
                self._device[layer, name].add_(amount)
            else:
                known[name] = amount
        if "attended" in amounts:
            known["calls"] = 1
        if self._capturing:  # nothing runs while a graph is captured
            self._graph.append((layer, known))
        else:
            self._add(layer, known)

    def _add(self, layer: int, known: Mapping[str, float]) -> None:
        for name, amount in known.items():
            if name == "calls":
                self._calls[layer] += 1
            else:
                self._host[layer, name] += amount

    def capture(self) -> None:
        """A graph is captured from here on: remember the host's amounts of one step."""
        self._graph, self._capturing = [], True

    def replayed(self) -> None:
        """The captured step ran: its device amounts added themselves, the host's follow."""
        self._capturing = False
        for layer, known in self._graph:
            self._add(layer, known)

    def missing(self, layers: tuple[int, ...], steps: int) -> list[int]:
        """Layers that did not report one call for each of ``steps`` decode steps."""
        return [layer for layer in layers if self._calls[layer] != steps]

    def by_layer(self, name: str) -> dict[int, float]:
        """Totals of one amount (waits for the device)."""
        total: dict[int, float] = defaultdict(float)
        for (layer, counted), amount in self._host.items():
            if counted == name:
                total[layer] += amount
        for (layer, counted), tensor in self._device.items():
            if counted == name:
                total[layer] += float(tensor)
        return total

    def row(self) -> dict[str, Any]:
        """Per-step means: tokens attended and estimated per layer, bytes per kind, hit ratio."""
        per_step = max(1, *self._calls.values(), 1)
        pages = {name: self.by_layer(name) for name in PAGES}
        layers = sorted({layer for counted in pages.values() for layer in counted})
        num_bytes = {name: sum(total.values()) for name in BYTES if (total := self.by_layer(name))}
        span_s = {name: sum(map(_seconds, marks)) for name, marks in sorted(self._spans.items())}
        return {
            "decode_calls": {str(layer): count for layer, count in sorted(self._calls.items())},
            "attended_tokens": self._mean("attended"),
            "estimated_tokens": self._mean("estimated"),
            "bytes_per_step": {k: round(v / per_step) for k, v in sorted(num_bytes.items())},
            "hit_ratio": _hit_ratio(sum(pages[name].values()) for name in PAGES),
            "hit_ratio_of_layer": {
                str(layer): _hit_ratio(pages[name].get(layer, 0) for name in PAGES)
                for layer in layers
            },
            "pages_per_step": {
                name: round(sum(counted.values()) / per_step, 1) for name, counted in pages.items()
            },
            "span_s": span_s,
            "fetch_hidden_frac": _hidden(span_s),
        }

    def _mean(self, name: str) -> float:
        count = sum(self._calls.values())
        return sum(self.by_layer(name).values()) / count if count else 0.0


def _mark() -> Any:
    """A point in time: of the device's current stream where there is a GPU, else of the host."""
    if not torch.cuda.is_initialized():
        return monotonic_s()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(marks: tuple[Any, Any]) -> float:
    start, end = marks
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000


def _hit_ratio(counts: Iterable[float]) -> float | None:
    hits, misses, *_ = (*counts, 0, 0)
    return hits / (hits + misses) if hits + misses else None


def _hidden(span_s: Mapping[str, float]) -> float | None:
    """Share of the time of fetches that the model did not wait for; host clock, so on a CPU."""
    fetch_s = span_s.get("fetch", 0.0)
    return max(0.0, 1 - span_s.get("fetch_wait", 0.0) / fetch_s) if fetch_s else None
