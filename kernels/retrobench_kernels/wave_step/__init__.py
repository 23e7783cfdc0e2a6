"""Wave attention of one decode step with its cache: look up, attend, admit what was missed."""

from retrobench_kernels.dispatch import op
from retrobench_kernels.wave_attention.zones import CacheTable
from retrobench_kernels.wave_step import naive

wave_step = op(naive.wave_step)

__all__ = ["CacheTable", "wave_step"]
