"""Requests of a replay: arrival times and lengths, drawn by a seed or read from a trace file."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

_YEAR_S = 366 * 24 * 3600
FIELDS = ("arrival_s", "input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, and when."""

    arrival_s: float
    input_tokens: int
    output_tokens: int


class Lengths(NamedTuple):
    """Mean and standard deviation of tokens in and out."""

    input_mean: float
    input_sd: float
    output_mean: float
    output_sd: float


# reasoning data sets as CHIME describes them (arXiv 2504.17584, VII-A)
_DOLPHIN = Lengths(201.9, 563.0, 3926.2, 4216.0)
PRESETS = {
    "openr1_math": Lengths(96.0, 75.1, 12684.1, 8464.6),
    "dolphin_r1": _DOLPHIN,
    "openthoughts_math": Lengths(89.4, 66.7, 6366.7, 4662.9),
    "dolphin_short": Lengths(*(0.1 * tokens for tokens in _DOLPHIN)),
}


def drawn_lengths(
    lengths: Lengths, count: int, max_context: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Tokens in and out of each request, log-normal with the given moments, at least one each.

    The sources state moments only; the distribution is ours. What is longer than ``max_context``
    is cut: the answer first, as an engine's limit does.
    """
    into = _lognormal(lengths.input_mean, lengths.input_sd, count, rng)
    out = _lognormal(lengths.output_mean, lengths.output_sd, count, rng)
    into = np.minimum(into, max_context - 1)
    out = np.minimum(out, max_context - into)
    return list(zip(into.tolist(), out.tolist(), strict=True))


def _lognormal(mean: float, sd: float, count: int, rng: np.random.Generator) -> np.ndarray:
    variance = np.log1p((sd / mean) ** 2)
    drawn = rng.lognormal(np.log(mean) - variance / 2, variance**0.5, count)
    return np.maximum(1, drawn.round()).astype(int)


def arrivals(
    count: int, rate_per_s: float, burstiness: float, rng: np.random.Generator
) -> np.ndarray:
    """Times of arrival: gaps of a gamma distribution of shape ``burstiness`` (1: Poisson)."""
    return rng.gamma(burstiness, 1 / (rate_per_s * burstiness), count).cumsum()


def at_rate(requests: Iterable[Request], rate_per_s: float) -> list[Request]:
    """The same requests with their gaps stretched to another mean rate."""
    requests = list(requests)
    span = max(request.arrival_s for request in requests)
    factor = len(requests) / rate_per_s / span if span else 0.0
    return [Request(r.arrival_s * factor, r.input_tokens, r.output_tokens) for r in requests]


def read_trace(path: Path) -> list[Request]:
    """Requests of a file, in order of arrival: CSV with a header, or a JSON object per line.

    ValueError naming file and line for what cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"task.trace={path} cannot be read: {error}") from error
    lines = text.splitlines()
    read = _json_lines if path.suffix in (".jsonl", ".json") else _csv_lines
    found = [_request(values, f"{path}:{number}") for number, values in read(lines, path)]
    if not found:
        raise ValueError(f"{path}: no requests; write one per line: {', '.join(FIELDS)}")
    return sorted(found, key=lambda request: request.arrival_s)


def _json_lines(lines: list[str], path: Path) -> Iterable[tuple[int, Mapping[str, object]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error})") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}:{number}: not a JSON object with {', '.join(FIELDS)}")
        yield number, values


def _csv_lines(lines: list[str], path: Path) -> Iterable[tuple[int, Mapping[str, object]]]:
    reader = csv.DictReader(lines)
    if missing := set(FIELDS) - set(reader.fieldnames or ()):
        names = ", ".join(sorted(missing))
        raise ValueError(f"{path}:1: the header lacks {names}; it must name {', '.join(FIELDS)}")
    for values in reader:
        yield reader.line_num, values


def _request(values: Mapping[str, object], where: str) -> Request:
    arrival, into, out = (_number(values.get(name), name, where) for name in FIELDS)
    if not 0 <= arrival < _YEAR_S:  # times of day would make one burst of a trace
        raise ValueError(f"{where}: arrival_s must be 0 or more, from the start, got {arrival:g}")
    for name, value in (("input_tokens", into), ("output_tokens", out)):
        if value < 1 or value != int(value):
            raise ValueError(f"{where}: {name} must be a whole number from 1, got {value:g}")
    return Request(arrival, int(into), int(out))


def _number(value: object, name: str, where: str) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if abs(number) < 2**53:
            return number
    raise ValueError(f"{where}: {name} must be a number, got {value!r}")
