"""Requests: moments of the presets, arrival times, trace files and their mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from retrobench.serving import requests as drawn
from retrobench.serving.requests import PRESETS, Request


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_have_the_published_moments(name):
    lengths = PRESETS[name]
    sizes = np.array(
        drawn.drawn_lengths(lengths, 200_000, 10**9, np.random.default_rng(1)), dtype=float
    )
    assert sizes.min() >= 1
    assert sizes[:, 0].mean() == pytest.approx(lengths.input_mean, rel=0.05)
    assert sizes[:, 1].mean() == pytest.approx(lengths.output_mean, rel=0.02)
    assert sizes[:, 1].std() == pytest.approx(lengths.output_sd, rel=0.05)


def test_long_requests_are_cut_to_the_context():
    sizes = drawn.drawn_lengths(PRESETS["openr1_math"], 1000, 500, np.random.default_rng(0))
    assert max(i + o for i, o in sizes) == 500 and min(o for _, o in sizes) >= 1


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_gamma_arrivals(burstiness):
    times = drawn.arrivals(100_000, 2.0, burstiness, np.random.default_rng(2))
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.5, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.02)


def test_traces_in_both_forms(tmp_path):
    csv, jsonl = tmp_path / "t.csv", tmp_path / "t.jsonl"
    csv.write_text("arrival_s,input_tokens,output_tokens,who\n2,10,3,a\n0.5,7,1,b\n")
    jsonl.write_text(
        '{"arrival_s": 2, "input_tokens": 10, "output_tokens": 3}\n\n'
        '{"arrival_s": 0.5, "input_tokens": 7, "output_tokens": 1}\n'
    )
    expected = [Request(0.5, 7, 1), Request(2.0, 10, 3)]
    assert drawn.read_trace(csv) == drawn.read_trace(jsonl) == expected
    faster = drawn.at_rate(expected, 4.0)
    assert [r.arrival_s for r in faster] == [0.125, 0.5]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "arrival_s,input_tokens\n1,2\n", "t.csv:1: the header lacks output_tokens"),
        ("t.csv", "arrival_s,input_tokens,output_tokens\n1,2,3\n1,x,3\n", "t.csv:3: input_tokens"),
        ("t.csv", "arrival_s,input_tokens,output_tokens\n1,2\n", "t.csv:2: output_tokens must be"),
        ("t.csv", "arrival_s,input_tokens,output_tokens\n-1,2,3\n", "t.csv:2: arrival_s must be 0"),
        ("t.csv", "arrival_s,input_tokens,output_tokens\n1e9,2,3\n", "from the start, got 1e+09"),
        ("t.csv", "arrival_s,input_tokens,output_tokens\n1,2,0\n", "t.csv:2: output_tokens must"),
        (
            "t.csv",
            "arrival_s,input_tokens,output_tokens\n1,2.5,3\n",
            "whole number from 1, got 2.5",
        ),
        (
            "t.csv",
            "arrival_s,input_tokens,output_tokens\nnan,2,3\n",
            "t.csv:2: arrival_s must be a",
        ),
        ("t.jsonl", '{"arrival_s": 1}\n', "t.jsonl:1: input_tokens must be a number, got None"),
        ("t.jsonl", "\n{broken\n", "t.jsonl:2: not JSON"),
        ("t.jsonl", "[1, 2, 3]\n", "t.jsonl:1: not a JSON object"),
        ("t.jsonl", "", "no requests; write one per line"),
        ("t.jsonl", None, "cannot be read"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as error:
        drawn.read_trace(tmp_path / name)
    assert message in str(error.value)
