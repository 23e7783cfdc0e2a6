"""Small parity checks that a freshly built library must pass before it is used."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retrobench_kernels.causal_attention import causal_attention
from retrobench_kernels.cluster_select import cluster_select
from retrobench_kernels.cpu_common import DTYPES
from retrobench_kernels.dense_decode import dense_decode
from retrobench_kernels.dispatch import Op
from retrobench_kernels.graph_index import build_graph, search_graph
from retrobench_kernels.logit_margin import logit_margin
from retrobench_kernels.page_select import page_select
from retrobench_kernels.wave_attention import Estimation, Pool, Steady, wave_attention

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
DIM = 96


class Case(NamedTuple):
    """One dtype and GQA group size, and where random inputs come from."""

    group: int
    dtype: torch.dtype
    generator: torch.Generator

    def forms(self, op: Op[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The C++ form and the reference of an op."""
        return op.form("cpu"), op.reference

    def normal(self, *shapes: tuple[int, ...]) -> list[Tensor]:
        """Normal vectors of the head dim."""
        made = [torch.randn(*shape, DIM, generator=self.generator) for shape in shapes]
        return [x.to(self.dtype) for x in made]

    def whole(self, *shape: int) -> Tensor:
        """Small whole numbers: sums of them are equal in any order."""
        return torch.randint(-3, 4, shape, generator=self.generator).to(self.dtype)


def disagreements() -> list[str]:
    """Names of ops that differ from plain torch by more than rounding."""
    generator = torch.Generator().manual_seed(0)
    wrong = []
    for dtype in DTYPES:
        for group in (1, 2, 4):
            case = Case(group, dtype, generator)
            for check in (_dense, _wave, _pages, _margins, _graph, _causal):
                if check in (_margins, _graph) and dtype == torch.float16:
                    continue  # the C++ forms have no float16
                if check is _causal and dtype != torch.bfloat16:
                    continue
                tolerance = 1e-4 if check in (_margins, _graph) else TOLERANCE[dtype]
                if not _close(*check(case), tolerance):
                    wrong.append(f"{check.__name__[1:]} {dtype} group {group}")
    return wrong


def _close(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool(torch.allclose(got.float(), expected.float(), atol=tolerance, rtol=tolerance))


def _dense(case: Case) -> tuple[Tensor, Tensor]:
    inputs = case.normal((1, 2 * case.group), (1, 2, 100), (1, 2, 100))
    got, expected = (form(*inputs, 0.1)[0] for form in case.forms(dense_decode))
    return got, expected


def _causal(case: Case) -> tuple[Tensor, Tensor]:
    inputs = case.normal((1, 2 * case.group, 70), (1, 2, 300), (1, 2, 300))
    got, expected = (form(*inputs, 0.1, 280) for form in case.forms(causal_attention))
    return got, expected


def _wave(case: Case) -> tuple[Tensor, Tensor]:
    """Selection and the attention over what it selected."""
    shapes = (1, 2 * case.group), (1, 2, 9), (1, 2, 9), (1, 2, 80), (1, 2, 80)
    q, ks, vs, k, v, centroid, value_sum = case.normal(*shapes, (1, 2, 20), (1, 2, 20))
    size = torch.full((1, 2, 20), 4, dtype=torch.int32)
    pool = Pool(k, v, size.cumsum(-1).int() - size, size)
    steady = Steady(ks, vs, torch.tensor([9], dtype=torch.int32))
    counts = [torch.tensor([n], dtype=torch.int32) for n in (20, 5, 9)]
    limits = {"max_retrieved": 5, "max_estimated": 9}
    outputs = []
    both = zip(case.forms(cluster_select), case.forms(wave_attention), strict=True)
    for select, attend in both:
        best, rest, logit = select(q, centroid, size, *counts, 0.1, **limits)
        estimation = Estimation(rest, logit, value_sum)
        outputs.append(attend(q, steady, pool, best, 0.1, estimation=estimation)[0])
    return outputs[0], outputs[1]


def _pages(case: Case) -> tuple[Tensor, Tensor]:
    low, q = case.whole(1, 2, 40, DIM), case.whole(1, 2 * case.group, DIM)
    inputs = (q, low, low + 1, torch.tensor([40]), torch.tensor([9]))
    limits = {"max_selected": 9, "newest": True}
    got, expected = (form(*inputs, **limits) for form in case.forms(page_select))
    return got.sort(-1).values, expected.sort(-1).values


def _margins(case: Case) -> tuple[Tensor, Tensor]:
    q, key = case.whole(1, 2, case.group, 11), case.whole(1, 2, 1500, 11)
    exists = torch.arange(1500).expand(1, 2, -1) > 2
    fast, reference = case.forms(logit_margin)
    got, expected = (form(q, key, exists, 0.5, per_head=False) for form in (fast, reference))
    return got, expected


def _graph(case: Case) -> tuple[Tensor, Tensor]:
    """A graph and what a search finds in it."""
    keys, q = case.whole(2, 40, DIM), case.whole(2 * case.group, DIM)
    near = (keys.repeat_interleave(case.group, 0) @ q[..., None]).mT.topk(9).indices
    entry, found = torch.zeros(len(q), dtype=torch.int32), []
    both = zip(case.forms(build_graph), case.forms(search_graph), strict=True)
    for build, search in both:
        link = build(keys, near, entry, 4, 8)
        found.append(
            torch.cat([link.flatten(), search(q, keys, link, entry[:, None], 8, 5)[0].flatten()])
        )
    return found[0], found[1]
