"""RetroInfer's step of one layer in one call of C++, with its arguments packed once."""

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.cluster_select.cpu import pack as pack_select
from retrobench_kernels.cluster_step.naive import Chosen, Step, StepArgs
from retrobench_kernels.cpu_common import DTYPES
from retrobench_kernels.wave_attention import Estimation, Steady
from retrobench_kernels.wave_attention.cpu import pack as pack_wave
from retrobench_kernels.wave_attention.zones import WaveArgs


class NativeStep(Step):
    """See ``Step``."""

    def __init__(self, args: StepArgs) -> None:
        super().__init__(args)
        select, zones = args.select, (args.k_BGWD, args.v_BGWD)
        self.dtype, batch = zones[0].dtype, len(zones[0])
        groups, clusters = select.size_BGC.shape[1:3]
        none = torch.empty(0)
        widths = (select.max_retrieved, select.max_estimated)
        lists = [torch.empty(batch, groups, width, dtype=torch.int32) for width in widths]
        logit = torch.empty(batch, select.q_BHD.shape[1], clusters)
        self.shapes = (lists[0].shape, lists[1].shape, logit.shape)
        estimation = None
        if args.value_sum_BGCD is not None:
            estimation = Estimation(lists[1], logit, args.value_sum_BGCD, args.total_BGD)
        steady = Steady(*zones, args.count_B)
        wave = WaveArgs(
            select.q_BHD, steady, args.pool, lists[0], select.scale, estimation,
            softcap=select.softcap,
        )  # fmt: skip
        # what the packed addresses point to lives as long as this
        self.select, self._kept = pack_select(select, (none, none, none))
        self.wave, self._kept_too = pack_wave(wave, none, none)
        self.call = native.function("cluster_step")

    def __call__(
        self, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, tell: bool = False
    ) -> tuple[Tensor, Chosen | None]:
        q, k, v = q_BHTD.contiguous(), k_BGTD.contiguous(), v_BGTD.contiguous()
        assert k.dtype == v.dtype == self.dtype, "one dtype for all keys and values"
        if q.dtype == torch.float16:
            q = q.float()
        out = torch.empty_like(q)
        chosen, places = None, (None, None, None)
        if tell:
            best, rest = (torch.empty(shape, dtype=torch.int32) for shape in self.shapes[:2])
            chosen = Chosen(best, rest, torch.empty(self.shapes[2]))
            places = tuple(x.data_ptr() for x in chosen)
        self.call(
            self.select, self.wave, q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(),
            *places,
        )  # fmt: skip
        return (out if out.dtype == q_BHTD.dtype else out.to(q_BHTD.dtype)), chosen


def prepare_step(args: StepArgs) -> Step:
    """As ``prepare_step``."""
    assert args.k_BGWD.dtype in DTYPES
    return NativeStep(args)
