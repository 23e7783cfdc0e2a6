"""RetroInfer's step of one layer with its arguments prepared: append, choose clusters, attend."""

from retrobench_kernels.cluster_step.naive import Chosen, Step, StepArgs, prepare_step

__all__ = ["Chosen", "Step", "StepArgs", "prepare_step"]
