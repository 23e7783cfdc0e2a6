"""Search structures over the keys of a model: recall of the true best against keys looked at.

Two kinds of queries ask: the decode steps' own, and keys that were held out of the structure. An
ordinary structure serves the second kind well and the first badly, because queries lie outside the
distribution of the keys; the distances of both to that distribution are measured, too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retrobench.core.method import ALL_QUERIES, AttentionArgs, Needs, PromptLayer
from retrobench.core.registry import method_class, method_names
from retrobench.engine.attention.dense import DenseMethod
from retrobench.engine.attention.key_search import SEARCHES, SearchConfig
from retrobench.engine.attention.key_search.base import nearest
from retrobench.engine.generation import Decoding, Generation
from retrobench.engine.session import Session
from retrobench.evaluate import search_controls
from retrobench.evaluate.search_controls import TOP

LEAST_BEAM = 10
LAYERS = HEADS = 3  # that are looked at, spread over the model
HELD_OUT = 100  # keys, at most
SAMPLED = 5000  # queries and keys whose distance is measured
GROWTH = 1.5  # of the effort from one point of a curve to the next
FEW = 0.05  # share of keys scanned at which recall is told
PERCENTS = tuple(range(0, 101, 5))
# (found keys, keys scanned); a query that is not the first of a series may use what was found
Search = Callable[[Tensor, int, bool], tuple[list[int], float]]


class QueryRecorder(DenseMethod):
    """Full attention that keeps the queries of some layers."""

    name = "query_recorder"
    needs = Needs(prompt_queries=ALL_QUERIES)

    def setup(self) -> None:
        """Choose the layers."""
        super().setup()
        self.queries: dict[int, list[Tensor]] = {i: [] for i in spread(self.shape.layers, LAYERS)}

    def build(self, layer: int, prompt: PromptLayer) -> None:
        """Keep the prompt's queries."""
        super().build(layer, prompt)
        if layer in self.queries:
            assert prompt.q_BHWD is not None
            self.queries[layer].append(prompt.q_BHWD.cpu())

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Keep the step's queries."""
        if layer in self.queries:
            self.queries[layer].append(q_BHTD.cpu())
        return super().decode(layer, q_BHTD, k_BGTD, v_BGTD, args)


@dataclass(slots=True)
class Curve:
    """Sums over queries, for every effort."""

    recall: dict[int, list[float]] = field(default_factory=dict)
    scanned: dict[int, list[float]] = field(default_factory=dict)

    def ask(self, search: Search, q_TD: Tensor, k_SD: Tensor, efforts: Iterator[int]) -> None:
        """Search for all queries with every effort."""
        best = [set(found) for found in nearest(q_TD, k_SD, TOP).tolist()]
        for effort in efforts:
            recall = []
            for i, (query, true) in enumerate(zip(q_TD, best, strict=True)):
                found, scanned = search(query, effort, i == 0)
                recall.append(len(true.intersection(found)) / len(true))
                self.scanned.setdefault(effort, []).append(scanned / len(k_SD))
            self.recall.setdefault(effort, []).extend(recall)

    def plain(self, layers: int) -> dict[str, Any]:
        """Means by effort; recall at ``FEW``, and the share scanned for a recall of 0.95.

        The last one also layer by layer: all of them asked equally often.
        """
        recall, scanned = self._means(0, 1)
        by_layer = (self._means(layer, layers) for layer in range(layers))
        return {
            "effort": sorted(self.recall),
            "recall": recall,
            "scanned": scanned,
            "recall_5": between(scanned, recall, FEW),
            "scanned_95": _enough(recall, scanned),
            "scanned_95_by_layer": [_enough(*means) for means in by_layer],
        }

    def _means(self, part: int, parts: int) -> tuple[list[float], list[float]]:
        """Recall and share scanned by effort, over one of equal parts of what was asked."""
        found = []
        for of in (self.recall, self.scanned):
            chunks = (
                of[e][part * len(of[e]) // parts :][: len(of[e]) // parts] for e in sorted(of)
            )
            found.append([round(sum(chunk) / len(chunk), 5) for chunk in chunks])
        return found[0], found[1]


def check(method: str, config: Any, batch: int, protocol: str) -> None:
    """ValueError where there is no search to measure, or where several prompts go together."""
    if not isinstance(config, SearchConfig):
        able = [n for n in method_names() if issubclass(method_class(n).Config, SearchConfig)]
        known = " or ".join(f"method={name}" for name in able)
        raise ValueError(f"measure=search: method={method} searches no keys; use {known}")
    if batch > 1 or protocol == "multi_turn":
        raise ValueError("measure=search takes one prompt at a time: engine.batch=1, one turn")


@torch.inference_mode()
def measure(
    open_session: Callable[..., Session],
    clock: Callable[[], float],
    config: SearchConfig,
    *,
    steps: int,
    stop_ids: frozenset[int],
) -> tuple[Generation, dict[str, Any]]:
    """Decode with full attention, then search its keys: (times, what was found)."""
    with open_session(steps, method_class=QueryRecorder) as session:
        result = session.generate(Decoding(max_new_tokens=steps), stop_ids)
        recorder, split = session.method, session.prompt.num_tokens
        assert isinstance(recorder, QueryRecorder)
        if split < (least := config.sink_tokens + config.local_tokens + 2 * TOP):
            raise ValueError(f"measure=search: a prompt of {split} tokens is too short; {least} do")
        study = Study(config, clock)
        for layer, queries in recorder.queries.items():
            study.add(torch.cat(queries, 2)[0], recorder.store.keys(layer)[0].cpu(), split)
    return result, {"layers": list(recorder.queries), **study.plain()}


class Study:
    """Curves of one configuration, and of the libraries' structures of the same kind."""

    def __init__(self, config: SearchConfig, clock: Callable[[], float]) -> None:
        self.config, self.clock, self.build_s = config, clock, 0.0
        self.curves: dict[str, dict[str, Curve]] = {}
        self.distances: dict[str, list[Tensor]] = {"queries": [], "keys": []}
        self.counts: dict[str, int] = {}
        self.layers = 0

    def add(self, q_HSD: Tensor, k_GSD: Tensor, split: int) -> None:
        """One layer: queries of all positions, keys, and where decoding began."""
        self.layers += 1
        first, end = self.config.sink_tokens, split - self.config.local_tokens
        held = torch.arange(first, end, -(-(end - first) // HELD_OUT))
        indexed = torch.ones(k_GSD.shape[1], dtype=torch.bool)
        indexed[:first], indexed[end:], indexed[held] = False, False, False
        for head in spread(range(len(q_HSD)), HEADS):
            keys = k_GSD[head * len(k_GSD) // len(q_HSD)]
            self._head(q_HSD[head, :split], q_HSD[head, split:], keys[indexed], keys[held])
            self._distance(q_HSD[head, first:end], keys[first:end])

    def _head(self, train_TD: Tensor, q_TD: Tensor, k_SD: Tensor, held_TD: Tensor) -> None:
        """A graph per query head; with ``scope=kv_head`` it would be trained by more heads."""
        asked = {"queries": q_TD, "keys": held_TD}
        self.counts = {"keys": len(k_SD)} | {f"asked_{name}": len(q) for name, q in asked.items()}
        own = SEARCHES[self.config.index](self.config, k_SD[None].contiguous(), 1)
        start = self.clock()
        own.build(k_SD[None], train_TD[None], self.config.sink_tokens)
        self.build_s += self.clock() - start

        def search(query: Tensor, effort: int, first: bool) -> tuple[list[int], float]:
            if first:
                own.restart()
            found = own.search(query[None], TOP, effort)
            return found.token_HR[0].tolist(), float(found.scanned_H)

        structures = {"": search, **search_controls.make(self.config, k_SD)}
        for name, structure in structures.items():
            curves = self.curves.setdefault(name, {kind: Curve() for kind in asked})
            for kind, queries in asked.items():
                curves[kind].ask(structure, queries, k_SD, self._efforts(len(k_SD)))

    def _efforts(self, num_keys: int) -> Iterator[int]:
        """Beams from the least one, or lists from one, up to the largest."""
        index = self.config.index
        most = self.config.lists(num_keys) if index == "ivf" else max(TOP, num_keys // 4)
        effort = {"flat": most, "ivf": 1}.get(index, LEAST_BEAM)
        while effort <= most:
            yield effort
            effort = max(effort + 1, round(effort * GROWTH))

    def _distance(self, q_SD: Tensor, k_SD: Tensor) -> None:
        """Mahalanobis distances of sampled queries and keys to the keys' distribution."""
        step = -(-len(k_SD) // SAMPLED)
        keys = k_SD.double()
        mean = keys.mean(0)
        covariance = (keys - mean).T @ (keys - mean) / len(keys)
        ridge = 1e-6 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=torch.double)
        root = torch.linalg.cholesky(covariance + ridge)
        for kind, x_SD in (("queries", q_SD), ("keys", k_SD)):
            away = (x_SD[::step].double() - mean).T
            distance = torch.linalg.solve_triangular(root, away, upper=False).norm(dim=0)
            shares = torch.tensor(PERCENTS, dtype=torch.double) / 100
            self.distances[kind].append(distance.quantile(shares))

    def plain(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        named = {
            name: {kind: curve.plain(self.layers) for kind, curve in curves.items()}
            for name, curves in self.curves.items()
        }
        distance = {
            kind: [round(x, 4) for x in torch.stack(found).mean(0).tolist()]
            for kind, found in self.distances.items()
        }
        own = named.pop("")
        return {
            **self.counts,
            "build_s": self.build_s,
            "of": own,
            "controls": named,
            "distance": {"percent": list(PERCENTS), **distance},
        }


def spread(items: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the items, from the first to the last."""
    count = min(count, len(items))
    return [items[i * (len(items) - 1) // max(1, count - 1)] for i in range(count)]


def _enough(recall: Sequence[float], scanned: Sequence[float]) -> float | None:
    """Share scanned for a recall of 0.95; that of the least effort, if it finds as much."""
    return scanned[0] if recall[0] >= 0.95 else between(recall, scanned, 0.95)


def between(x: Sequence[float], y: Sequence[float], at: float) -> float | None:
    """``y`` where ``x``, which grows, first reaches ``at``; None outside of what was measured."""
    for i in range(len(x)):
        if x[i] >= at:
            if i == 0:
                return y[0] if x[0] == at else None
            share = (at - x[i - 1]) / (x[i] - x[i - 1])
            return round(y[i - 1] + share * (y[i] - y[i - 1]), 5)
    return None
