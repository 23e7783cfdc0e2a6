"""Accelerators that are not there: tensors with data in host memory and a device of their own.

Operations on tensors of two devices raise, as CUDA does; copies between devices are allowed.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FIRST, SECOND = "cpu:0", "cpu:1"  # host memory is "cpu", without a number


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a device."""

    @staticmethod
    def __new__(cls, data, device):
        return torch.Tensor._make_wrapper_subclass(
            cls, data.shape, strides=data.stride(), storage_offset=data.storage_offset(),
            dtype=data.dtype, device=torch.device(device),
        )  # fmt: skip

    def __init__(self, data, device):
        self.data_on_host = data

    def __repr__(self):
        return f"OnDevice({self.data_on_host}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


class FromNumbers(TorchFunctionMode):
    """What a dispatch mode does not see: numbers that become a tensor, and the other way."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].data_on_host.tolist()
        device = str(kwargs.get("device"))
        if func is not torch.tensor or not device.startswith("cpu:"):
            return func(*args, **kwargs)
        return OnDevice(func(*args, **{**kwargs, "device": "cpu"}), device)


class Emulated(TorchDispatchMode):
    """Makes tensors on the emulated devices, and refuses operations across devices."""

    def __enter__(self):
        self.numbers = FromNumbers()
        self.numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.numbers.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


def dispatched(func, args, kwargs):
    """The operation on the host's data; its result is where its operands are, or where asked."""
    if func.overloadpacket is torch.ops.aten.to:  # comes whole in inference mode
        names = (argument.name for argument in func._schema.arguments)
        return moved(**{**dict(zip(names, args, strict=False)), **kwargs})
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    devices = {str(x.device) for x in tensors if x.dim() or isinstance(x, OnDevice)}
    if func not in MOVES and len(devices) > 1:
        raise RuntimeError(f"{func} on two devices: {sorted(devices)}")
    asked = kwargs.get("device")
    where = str(torch.device(asked)) if asked is not None else None
    if where is None and tensors:
        where = str(tensors[0].device) if func in MOVES else next(iter(devices), "cpu")
    if where is not None and where.startswith("cpu:") and asked is not None:
        kwargs = {**kwargs, "device": "cpu"}
    inner = tree_map(lambda x: x.data_on_host if isinstance(x, OnDevice) else x, (args, kwargs))
    out = func(*inner[0], **inner[1])
    if func is torch.ops.aten.copy_.default or (
        args and isinstance(args[0], OnDevice) and out is inner[0][0]
    ):
        return args[0]
    if where is None or not where.startswith("cpu:"):
        return out
    return tree_map(lambda x: OnDevice(x, where) if isinstance(x, torch.Tensor) else x, out)


def moved(self, device=None, dtype=None, other=None, **_):
    """``Tensor.to``: a copy, or the tensor itself."""
    device, dtype = (device, dtype) if other is None else (other.device, other.dtype)
    here = str(self.device)
    where = here if device is None else str(torch.device(device))
    data = self.data_on_host if isinstance(self, OnDevice) else self
    if where == here and dtype in (None, data.dtype):
        return self
    made = data.clone() if dtype is None else data.to(dtype, copy=True)
    return OnDevice(made, where) if where.startswith("cpu:") else made


def on_device(data, device):
    """A copy of a tensor on a device."""
    return OnDevice(data.clone(), device)
