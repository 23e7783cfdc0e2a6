"""Where Triton kernels run in tests, their tolerances, random inputs, poisoned outputs."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from retrobench_kernels.wave_attention.zones import PageCache, Pool

from tests.kernels.inputs import num_pages, page_spans

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
needs_triton = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None or not (INTERPRETED or DEVICE == "cuda"),
        reason="needs a CUDA device, or TRITON_INTERPRET=1",
    ),
]
# of the output against float32 arithmetic on the same (rounded) inputs
TOLERANCE = {
    torch.float32: {"atol": 2e-5, "rtol": 2e-5},
    torch.float16: {"atol": 2e-3, "rtol": 2e-3},
    torch.bfloat16: {"atol": 2e-2, "rtol": 2e-2},
}


def random_tensor(*shape, dtype=torch.float32, scale=1.0):
    """Normal values, made in float32 and rounded."""
    return (torch.randn(*shape, device=DEVICE) * scale).to(dtype)


@contextlib.contextmanager
def poisoned():
    """Fresh memory holds NaN (or a large negative integer), so that reading it shows."""
    make = {name: getattr(torch, name) for name in ("empty", "empty_like")}

    def poison(name):
        def poisoned_make(*args, **kwargs):
            tensor = make[name](*args, **kwargs)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else -(2**30))

        return poisoned_make

    with contextlib.ExitStack() as stack:
        for name in make:
            stack.enter_context(mock.patch.object(torch, name, poison(name)))
        yield


@dataclass
class RandomIndex:
    """A pool of ragged clusters, some of them empty."""

    pool: Pool
    page_tokens: int

    @property
    def clusters(self):
        return self.pool.size_BGC.shape[2]

    @property
    def pages(self):
        return num_pages(self.pool, self.page_tokens)

    def poisoned_pool(self):
        """The pool with NaN between clusters."""
        token = torch.arange(self.pool.k_BGSD.shape[2], device=DEVICE)
        first, size = self.pool.first_BGC[..., None], self.pool.size_BGC[..., None]
        used = ((token >= first) & (token < first + size)).any(2)[..., None]
        k, v = (t.masked_fill(~used, torch.nan) for t in self.pool[:2])
        return self.pool._replace(k_BGSD=k, v_BGSD=v)

    def cache(self, slots):
        """Every second of the first pages cached, in random slots."""
        batch, groups, _, dim = self.pool.k_BGSD.shape
        slot = torch.full((batch, groups, self.pages), -1, dtype=torch.int32, device=DEVICE)
        k, v = (
            torch.full((batch, groups, slots * self.page_tokens, dim), torch.nan).to(t)
            for t in self.pool[:2]
        )
        for b in range(batch):
            for g in range(groups):
                spans = page_spans(self.pool, self.page_tokens, b, g)
                for page, place in zip(
                    range(0, 2 * slots, 2), torch.randperm(slots).tolist(), strict=True
                ):
                    slot[b, g, page], at = place, spans[page]
                    begin = place * self.page_tokens
                    to = slice(begin, begin + at.stop - at.start)
                    k[b, g, to], v[b, g, to] = (t[b, g, at] for t in self.pool[:2])
        return PageCache(slot, k, v, self.page_tokens)


def random_index(batch, groups, dim, dtype, *, clusters=23, page_tokens=1, most=20):
    """Packed clusters of 0 to ``most`` tokens (one of them three times that)."""
    size = torch.randint(0, most + 1, (batch, groups, clusters), dtype=torch.int32)
    size[..., 5], size[..., 2] = 3 * most, 1
    pages = (size + page_tokens - 1) // page_tokens
    first, page = ((x.cumsum(-1) - x).int().to(DEVICE) for x in (size, pages))
    tokens = int(size.sum(-1).max()) + 2 * page_tokens
    k, v = (random_tensor(batch, groups, tokens, dim, dtype=dtype) for _ in range(2))
    numbers = page if page_tokens > 1 else None
    return RandomIndex(Pool(k, v, first, size.to(DEVICE), numbers), page_tokens)
