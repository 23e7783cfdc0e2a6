"""RetroInfer's step of one layer with its arguments prepared: append, choose clusters, attend.

All that stays the same from step to step is given once, so that a step costs little beside its
kernels. What is given must keep its memory; lengths and counts may change in it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from retrobench_kernels.cluster_select import SelectArgs, cluster_select
from retrobench_kernels.codes import Codes
from retrobench_kernels.dispatch import op_of
from retrobench_kernels.wave_attention import Estimation, Pool, Steady, wave_attention


class StepArgs(NamedTuple):
    """The whole steady zone, its length (int32) and what ``cluster_select`` and
    ``wave_attention`` take. The queries in ``select`` only say what the steps' will be like.

    Without ``value_sum_BGCD`` nothing is estimated.
    """

    k_BGWD: Tensor
    v_BGWD: Tensor
    count_B: Tensor
    select: SelectArgs
    pool: Pool
    value_sum_BGCD: Tensor | Codes | None
    total_BGD: Tensor | None = None


class Chosen(NamedTuple):
    """Clusters that a step retrieved and estimated, and all logits, as of ``cluster_select``."""

    retrieved_BGR: Tensor
    estimated_BGE: Tensor
    logit_BHC: Tensor


class Step:
    """One layer's decode steps."""

    def __init__(self, args: StepArgs) -> None:
        self.args = args

    def __call__(
        self, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, tell: bool = False
    ) -> tuple[Tensor, Chosen | None]:
        """``o_BHTD`` of one token, which the steady zone has from now on.

        ``tell``: also what was chosen.
        """
        args, row = self.args, torch.arange(len(q_BHTD), device=q_BHTD.device)
        place = args.count_B.long()
        args.k_BGWD[row, :, place], args.v_BGWD[row, :, place] = k_BGTD[:, :, 0], v_BGTD[:, :, 0]
        args.count_B.add_(1)
        q_BHD = q_BHTD[:, :, 0].contiguous()
        chosen = Chosen(*cluster_select(q_BHD, *args.select[1:]))
        estimation = None
        if args.value_sum_BGCD is not None:
            estimation = Estimation(*chosen[1:], args.value_sum_BGCD, args.total_BGD)
        out_BHD, _ = wave_attention(
            q_BHD, Steady(args.k_BGWD, args.v_BGWD, args.count_B), args.pool, chosen[0],
            args.select.scale, estimation, softcap=args.select.softcap,
        )  # fmt: skip
        return out_BHD[:, :, None], chosen if tell else None


@op_of(StepArgs)
def prepare_step(args: StepArgs) -> Step:
    """The steps of a layer; to be prepared anew when clusters were added."""
    return Step(args)
