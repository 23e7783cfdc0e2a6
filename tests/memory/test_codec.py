"""Stores that quantise: near the exact output, and counted as small as they are."""

from __future__ import annotations

import pytest
import torch

from retrobench.memory.store import ResidentStore

from .indexes import All, make_shape, outputs


@pytest.mark.parametrize(
    ("codec", "tolerance", "share"), [("int8", 0.02, 0.32), ("int4", 0.3, 0.2)]
)
def test_quantised_vectors_are_near_and_counted_small(codec, tolerance, share):
    expected, row, held, *_ = outputs(All)
    got, small, less, *_ = outputs(All, codec=codec)
    assert (got - expected).norm() < tolerance * expected.norm()
    assert small["bytes_per_step"]["kv"] < share * row["bytes_per_step"]["kv"] * 1.2
    assert less.total < 1.2 * share * held.total
    vectors = torch.randn(3, 2, 11, 8)
    store = ResidentStore(make_shape(), codec=codec)
    again = store.codec.decode(store.codec.encode(vectors))
    step = vectors.abs().amax(-1, keepdim=True) / store.codec.top
    assert ((again - vectors).abs() <= 0.51 * step + 1e-2 * step).all()
    assert ResidentStore.plan(make_shape(), codec=codec) == less
