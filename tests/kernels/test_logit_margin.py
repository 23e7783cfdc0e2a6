"""InfiniGen's scores in C++ against plain torch: layouts, odd sizes, missing tokens, poison."""

from __future__ import annotations

import pytest
import torch
from retrobench_kernels import native
from retrobench_kernels.logit_margin import cpu, logit_margin

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(("group", "channels"), [(1, 1), (4, 38), (7, 13), (2, 4)])
@pytest.mark.parametrize("tokens", [1, 511, 1500])
def test_logit_margin(dtype, per_head, group, channels, tokens, poisoned_empty):
    store = torch.randn(2, 3, channels, tokens + 5).to(dtype)  # channel by channel, and longer
    exists = (
        torch.arange(tokens).expand(2, 3, -1) >= torch.tensor([0, min(9, tokens)])[:, None, None]
    )
    store[..., :tokens].masked_fill_(~exists[:, :, None], torch.nan)
    store[..., tokens:] = torch.nan
    q = torch.randn(2, 3, group, channels).to(dtype).float()
    keys = store.mT[:, :, :tokens]
    # in float32: plain torch rounds bfloat16 logits once more
    expected = logit_margin.reference(q, keys.float(), exists, 0.3, per_head=per_head)
    for layout in (keys, keys.contiguous()):
        got = logit_margin.form("cpu")(q, layout, exists, 0.3, per_head=per_head)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    assert expected.shape == (2, 3 * group if per_head else 3, tokens)


def test_other_dtypes_run_in_plain_torch():
    q, keys = torch.randn(1, 1, 2, 5), torch.randn(1, 1, 9, 5).half()
    exists = torch.ones(1, 1, 9, dtype=torch.bool)
    assert cpu.unsupported(keys) == "dtype torch.float16"
    torch.testing.assert_close(
        logit_margin(q, keys, exists, 1.0, per_head=False),
        logit_margin.reference(q, keys, exists, 1.0, per_head=False),
    )
