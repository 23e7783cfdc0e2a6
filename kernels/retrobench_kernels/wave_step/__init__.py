"""Wave attention of one decode step with its cache: look up, attend, admit what was missed."""

from retrobench_kernels.wave_step.naive import cluster_pages, wave_step

__all__ = ["cluster_pages", "wave_step"]
