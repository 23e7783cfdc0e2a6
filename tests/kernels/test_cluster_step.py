"""A prepared step against the ops one by one: several steps, types, rows of different lengths."""

from __future__ import annotations

import pytest
import torch
from retrobench_kernels import native
from retrobench_kernels.cluster_select import SelectArgs
from retrobench_kernels.cluster_step import StepArgs, prepare_step

from .inputs import clustered
from .test_codes import coded
from .test_cpu import close

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")


def step_args(data, estimated, finer=False):
    zone = [torch.full((2, data.pool.k_BGSD.shape[1], 12, 64), torch.nan) for _ in "kv"]
    zone = [x.to(data.q.dtype) for x in zone]
    for x, steady in zip(zone, data.steady[:2], strict=True):
        x[:, :, : steady.shape[2]] = steady
    counts = (torch.tensor([n, n], dtype=torch.int32) for n in (4, estimated))
    select = SelectArgs(
        data.q, data.centroid, data.pool.size_BGC, data.num_clusters, *counts, 0.2, 4, estimated
    )
    values, total = data.value_sum if estimated else None, None
    if finer:  # as retroinfer_plus has it
        torch.manual_seed(5)
        limit, gain = torch.tensor([30, 25], dtype=torch.int32), torch.rand(select.size_BGC.shape)
        centroid, values = coded(data.centroid, 4), coded(data.value_sum, 4)
        select = select._replace(centroid_BGCD=centroid, token_limit_B=limit, bias_BGC=gain.half())
        total = torch.randn(*data.centroid.shape[:2], 64)
    return StepArgs(*zone, data.steady.count_B.clone(), select, data.pool, values, total)


@pytest.mark.parametrize(("estimated", "finer"), [(0, False), (6, False), (0, True), (6, True)])
@pytest.mark.parametrize("heads", [(4, 2), (7, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_steps(dtype, heads, estimated, finer, poisoned_empty):
    data = clustered(*heads, 64, dtype=dtype)
    ours, theirs = (step_args(data, estimated, finer) for _ in "12")
    native_step, plain = prepare_step.form("cpu")(*ours), prepare_step.reference(*theirs)
    for turn in range(3):
        q = torch.randn(2, heads[0], 1, 64).to(dtype)
        k, v = (torch.randn(2, 1, heads[1], 64).to(dtype).transpose(1, 2) for _ in "kv")
        got, chosen = native_step(q, k, v, tell=turn > 0)
        expected, wanted = plain(q, k, v, tell=True)
        close(got, expected, dtype)
        assert got.dtype == dtype and got.shape == q.shape
        assert torch.equal(ours.count_B, theirs.count_B)
        assert torch.equal(ours.k_BGWD.nan_to_num(9), theirs.k_BGWD.nan_to_num(9))
        assert torch.equal(ours.v_BGWD.nan_to_num(9), theirs.v_BGWD.nan_to_num(9))
        assert (chosen is None) == (turn == 0)
        for mine, other in zip(chosen[:2] if chosen else (), wanted[:2], strict=False):
            assert torch.equal(mine.sort(-1).values, other.sort(-1).values)
