"""Measured steps between points: exact where costs are affine, refused beyond, with its errors."""

from __future__ import annotations

import pytest

from retrobench.serving.surface import Point, Surface


def affine(context, batch):
    return 0.01 + 1e-6 * context * batch + 0.001 * batch


def points(step=affine, contexts=(100, 200, 400), batches=(1, 2, 4)):
    return [
        Point(context=c, batch=b, prefill_s=1e-3 * c, step_s=step(c, b))
        for c in contexts
        for b in batches
    ]


def test_affine_costs_are_met_everywhere():
    surface = Surface(points())
    assert surface.max_batch == 4
    for batch in (1, 2, 3, 4):
        for context in (100, 150, 333, 400):
            assert surface.step_s(batch, batch * context) == pytest.approx(affine(context, batch))
    assert surface.step_s(0, 0, 250) == pytest.approx(0.25)
    assert surface.step_s(2, 300, 100, 200) == pytest.approx(affine(150, 2) + 0.1)
    assert surface.errors() == pytest.approx(
        {"prefill_context": 0, "decode_context": 0, "decode_batch": 0}, abs=1e-12
    )


def test_errors_are_those_of_left_out_points():
    surface = Surface(points(lambda c, b: (c / 100) ** 2))
    # at 200: between 1 at 100 and 16 at 400 lies 6, measured 4
    assert surface.errors()["decode_context"] == pytest.approx(0.5)
    assert surface.errors()["decode_batch"] == pytest.approx(0)
    few = Surface(points(contexts=(100, 200), batches=(1,)))
    assert few.errors() == {"prefill_context": None, "decode_context": None, "decode_batch": None}


def test_nothing_is_told_beyond_what_was_measured():
    surface = Surface(points())
    for batch, context in ((1, 99), (1, 401), (5, 200)):
        with pytest.raises(ValueError, match="experiment=surface"):
            surface.step_s(batch, batch * context)
    with pytest.raises(ValueError, match="50 tokens at prompt: only 100-400 tokens were measured"):
        surface.step_s(0, 0, 50)
    asked = Surface(points(), extrapolate=True)
    assert asked.step_s(5, 5 * 800) == pytest.approx(affine(800, 5)) and asked.outside > 0
    assert asked.step_s(0, 0, 50) == pytest.approx(0.05)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="batch 1, and two contexts"):
        Surface(points(batches=(2, 4)))
    with pytest.raises(ValueError, match="batch 1, and two contexts"):
        Surface(points(contexts=(100,)))
