"""Triton kernels of the index build and of Quest's bounds equal the naive forms."""

from __future__ import annotations

import pytest
import torch
from kernel_parity import DEVICE, TOLERANCE, needs_triton, poisoned, random_tensor
from retrobench_kernels.cluster_layout import cluster_layout, place_tokens
from retrobench_kernels.page_bounds import page_extrema, upper_bound
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from retrobench_kernels.segmented_kmeans.lloyd import Segment

pytestmark = needs_triton


@pytest.mark.parametrize(
    ("dtype", "dim"), [(torch.float32, 64), (torch.float16, 96), (torch.bfloat16, 128)]
)
def test_assign_picks_a_best_centroid_of_its_segment(dtype, dim):
    from retrobench_kernels.segmented_kmeans.triton import assign, key_tiles

    k, centroid = random_tensor(2, 150, dim, dtype=dtype), random_tensor(2, 90, dim, dtype=dtype)
    mean, bias = random_tensor(2, dim), random_tensor(2, 90)
    segments = Segment(0, 70, 0, 75), Segment(70, 150, 75, 90)
    with poisoned():
        label = assign(k, mean, centroid, bias, key_tiles(segments, k)).long()
    score = (k.double() - mean.double()[:, None]) @ centroid.double().transpose(1, 2)
    score -= bias.double()[:, None]
    for start, end, first, last in segments:
        part = score[:, start:end, first:last]
        chosen = label[:, start:end] - first
        assert ((chosen >= 0) & (chosen < last - first)).all()
        gap = part.amax(-1) - part.gather(-1, chosen[..., None])[..., 0]
        assert gap.max() < 1e-3


def test_cluster_sums():
    from retrobench_kernels.segmented_kmeans.triton import cluster_sums

    x, mean = random_tensor(2, 61, 24, dtype=torch.bfloat16), random_tensor(2, 24)
    label = torch.randint(0, 9, (2, 61), device=DEVICE).int()
    label[label == 4] = 5
    with poisoned():
        total, size = cluster_sums(x, mean, label, 9)
    expected = torch.zeros(2, 9, 24, dtype=torch.float64, device=DEVICE)
    spread = label.long()[..., None].expand(-1, -1, 24)
    expected.scatter_add_(1, spread, x.double() - mean.double()[:, None])
    torch.testing.assert_close(total.double(), expected, atol=1e-4, rtol=1e-4)
    assert size.sum(-1).tolist() == [61, 61] and (size[:, 4] == 0).all()


@pytest.mark.parametrize("start", [("unit", "even"), ("raw", "floor")])
@pytest.mark.parametrize("final_assign", ["global", "segment"])
def test_segmented_kmeans_equals_naive_on_separated_keys(final_assign, start):
    topic = random_tensor(1, 16, 64, scale=4.0)
    k = topic[:, torch.arange(201, device=DEVICE) * 16 // 201] + random_tensor(
        1, 201, 64, scale=0.1
    )
    settings = {"iterations": 3, "final_assign": final_assign}
    settings |= {"init": start[0], "edges": start[1]}
    got = segmented_kmeans.form("triton")(k, 16, 2, **settings)
    expected = segmented_kmeans.reference(k, 16, 2, **settings)
    assert got[1].dtype == expected[1].dtype and torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[0], expected[0], atol=1e-4, rtol=1e-4)


def test_place_tokens():
    label = torch.randint(0, 7, (2, 45), device=DEVICE)
    layout = cluster_layout(label, 7, page_tokens=4)
    kv = random_tensor(2, 50, 96, dtype=torch.float16)[:, :45]
    pools = [torch.full((2, 80, 96), 3.0, dtype=torch.float16, device=DEVICE) for _ in "ab"]
    place_tokens.form("triton")(kv, layout, pools[0])
    place_tokens.reference(kv, layout, pools[1])
    assert torch.equal(*pools)


@pytest.mark.parametrize(
    ("dtype", "dim", "group"), [(torch.float32, 64, 4), (torch.bfloat16, 96, 1)]
)
def test_page_bounds(dtype, dim, group):
    k = random_tensor(2, 2, 19 * 8, dim, dtype=dtype)
    valid = torch.ones(2, 19 * 8, dtype=torch.bool, device=DEVICE)
    valid[1, :11] = False  # one page without tokens, one in part
    expected = page_extrema.reference(k, 8, valid)
    with poisoned():
        got = page_extrema.form("triton")(
            k.masked_fill(~valid[:, None, :, None], torch.nan), 8, valid
        )
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    q = random_tensor(2, 2 * group, dim, dtype=dtype)
    low, high = (t[:, :, 2:] for t in expected)
    with poisoned():
        bound = upper_bound.form("triton")(q, low, high)
    torch.testing.assert_close(
        bound, upper_bound.reference(q, low, high), **TOLERANCE[torch.float16]
    )
