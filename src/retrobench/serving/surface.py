"""Step times between measured points: batch and context, with what interpolation gets wrong."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Curve = list[tuple[float, float]]  # (context, seconds), by context


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measured step: seconds of reading the prompts and of one decode step."""

    context: int
    batch: int
    prefill_s: float
    step_s: float


@dataclass(slots=True)
class Surface:
    """A ``StepCost`` of measured points.

    Decode steps are linear in the mean context along each measured batch, and linear in the batch
    between two of them. Prompts are those measured at batch 1; a chunk costs the difference of two
    prompts. Outside of what was measured nothing is answered, unless ``extrapolate`` says so: then
    the nearest two points are continued.
    """

    points: Sequence[Point]
    extrapolate: bool = False
    outside: int = 0  # answers beyond what was measured
    prefill: Curve = field(init=False)
    decode: dict[int, Curve] = field(init=False)

    def __post_init__(self) -> None:
        single = {p.context: p.prefill_s for p in self.points if p.batch == 1}
        self.prefill = sorted(single.items())
        by_batch: dict[int, dict[int, float]] = {}
        for point in self.points:
            by_batch.setdefault(point.batch, {})[point.context] = point.step_s
        self.decode = {batch: sorted(by_batch[batch].items()) for batch in sorted(by_batch)}
        if 1 not in self.decode or min(len(curve) for curve in self.decode.values()) < 2:
            raise ValueError("needs measured points at batch 1, and two contexts for every batch")

    @property
    def max_batch(self) -> int:
        """The largest batch that was measured."""
        return max(self.decode)

    def step_s(self, batch: int, tokens: float, chunk: int = 0, done: int = 0) -> float:
        """Decode step of ``batch`` requests, and a piece of a prompt after it."""
        seconds = self.decode_s(batch, tokens / batch) if batch else 0.0
        if chunk:
            seconds += self._on(self.prefill, done + chunk, "prompt")
            seconds -= self._on(self.prefill, done, "prompt") if done else 0.0
        return max(0.0, seconds)

    def chunk_tokens(self, batch: int, tokens: float, left: int, done: int) -> int:
        """Not adaptive: all that is left."""
        return left

    def decode_s(self, batch: int, context: float) -> float:
        """A decode step at a mean context."""
        batches = list(self.decode)
        place = min(max(1, bisect_right(batches, batch)), len(batches) - 1)
        if batch in self.decode:
            return self._on(self.decode[batch], context, f"batch {batch}")
        low, high = batches[place - 1], batches[place]
        if not low < batch < high:
            self._leave(f"batch {batch}", f"{batches[0]}-{batches[-1]}")
        near = self._on(self.decode[low], context, f"batch {low}")
        far = self._on(self.decode[high], context, f"batch {high}")
        return max(0.0, near + (far - near) * (batch - low) / (high - low))

    def _on(self, curve: Curve, context: float, what: str) -> float:
        if not curve[0][0] <= context <= curve[-1][0]:
            span = f"{curve[0][0]:g}-{curve[-1][0]:g} tokens"
            self._leave(f"{context:g} tokens at {what}", span)
        return max(0.0, _between(curve, context))

    def _leave(self, asked: str, measured: str) -> None:
        if not self.extrapolate:
            raise ValueError(
                f"{asked}: only {measured} were measured; measure more (experiment=surface), or "
                "continue the lines with hardware.extrapolate=true"
            )
        self.outside += 1

    def errors(self) -> Mapping[str, float | None]:
        """Largest relative error at measured points that are left out, by what is interpolated.

        An inner point is predicted from its neighbours, twice as far apart as in use: for smooth
        costs an upper estimate. None where there is no inner point.
        """
        lines = list(self.decode.values())
        contexts = sorted({context for curve in lines for context, _ in curve})
        across = [
            [(batch, dict(curve)[c]) for batch, curve in self.decode.items() if c in dict(curve)]
            for c in contexts
        ]
        return {
            "prefill_context": _left_out([self.prefill]),
            "decode_context": _left_out(lines),
            "decode_batch": _left_out(across),
        }


def _between(curve: Sequence[tuple[float, float]], x: float) -> float:
    """On the line through the two points around ``x``, or through the last two before it."""
    place = min(max(1, bisect_right(curve, (x, float("inf")))), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[place - 1], curve[place]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _left_out(curves: Sequence[Sequence[tuple[float, float]]]) -> float | None:
    found = [
        abs(_between([*curve[:i], *curve[i + 1 :]], curve[i][0]) / curve[i][1] - 1)
        for curve in curves
        for i in range(1, len(curve) - 1)
    ]
    return max(found, default=None)
