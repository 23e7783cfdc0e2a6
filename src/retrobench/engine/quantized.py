"""Weights in int8: one scale for each output channel; activations stay in bfloat16.

A decode step on a CPU reads every weight once, so half the bytes take about half the time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

_FEW_ROWS = 16  # above, torch's int8 product is slower than a bfloat16 one of expanded weights
_WIDTH = 32  # of its inputs, in one load: at other multiples it reads beyond a row
_LARGEST = 127


class Int8Linear(nn.Module):
    """The linear layer ``linear`` with weights rounded to int8, on the device that it is on."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_NK = linear.weight.detach().float()
        scale_N = (weight_NK.abs().amax(1) / _LARGEST).to(linear.weight.dtype)
        scale_N = scale_N.where(scale_N > 0, torch.ones_like(scale_N))  # a channel of zeros
        codes_NK = (weight_NK / scale_N.float()[:, None]).round().clamp(-_LARGEST, _LARGEST)
        self.codes_NK = nn.Parameter(codes_NK.to(torch.int8), requires_grad=False)
        self.scale_N = nn.Parameter(scale_N, requires_grad=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """The weights that the codes stand for, in the dtype of the scales."""
        return self.codes_NK.to(self.scale_N.dtype) * self.scale_N[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``."""
        rows_MK = x.reshape(-1, self.in_features)
        if x.is_cpu and len(rows_MK) <= _FEW_ROWS and self.in_features % _WIDTH == 0:
            out_MN = torch._weight_int8pack_mm(rows_MK.contiguous(), self.codes_NK, self.scale_N)
        else:
            out_MN = F.linear(rows_MK, self.codes_NK.to(x.dtype)) * self.scale_N
        if self.bias is not None:
            out_MN = out_MN + self.bias
        return out_MN.view(*x.shape[:-1], self.out_features)


def quantize(model: PreTrainedModel) -> None:
    """Put ``Int8Linear`` in the place of every linear layer, the output head included.

    A head that shares its weights with the embedding gets codes of its own.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
