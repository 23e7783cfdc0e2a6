"""Building an index adds nothing up in an order that a GPU does not keep."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retrobench.core.registry import method_class
from retrobench.core.spec import parse
from tests.methods.inputs import shape_of, tensors
from tests.support import build

ATOMIC = {"scatter_add", "index_add", "scatter_reduce", "index_reduce", "index_put", "put"}
SMALL = {"update_tokens": 16, "tokens_per_cluster": 8, "kmeans_iterations": 3}


class NoAtomicSums(TorchDispatchMode):
    """Refuses what CUDA computes by atomic additions of floating-point numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.rstrip("_")
        values = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        adds = name not in ("index_put", "put") or True in args[3:]
        atomic = name in ATOMIC and adds and values[0].is_floating_point()
        assert not atomic, f"{name} adds in any order"
        return func(*args, **(kwargs or {}))


def test_the_detector_sees_them():
    with pytest.raises(AssertionError, match="any order"), NoAtomicSums():
        torch.zeros(4).scatter_add_(0, torch.tensor([1]), torch.ones(1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("retroinfer", SMALL),
        ("retroinfer", {**SMALL, "int4_values": True, "second_order": True}),
        ("retroinfer_plus", SMALL),
        ("pqcache", {}),
    ],
)
def test_twice_the_same_prompt_is_the_same_index(name, options, monkeypatch):
    monkeypatch.setenv("RETROBENCH_KERNELS", "naive")
    q, k, v = tensors("clustered", (4, 2), 400, dim=32)
    shape, kind = shape_of(q, k, 380), method_class(name)
    with torch.inference_mode(), NoAtomicSums():
        build(kind(parse(kind.Config, options, "method"), shape), {0: (q, k, v)})
