"""Better estimates of clusters that are not retrieved. Ours, not the paper's; all off by default.

- ``KeyCovariance``: ``exp(q.c)`` times the size is a lower bound of a cluster's mass (Jensen).
  With keys spread around the centroid, the log of the mean weight grows by half the variance of
  ``q.k``.
- ``Int4Values``: mean values of all clusters in 4 bits take the bytes of full values for a quarter
  of them, so that every cluster is estimated and nothing is dropped.
"""

import torch
from torch import Tensor

from retrobench.core.shapes import KVShape
from retrobench.engine.attention.parts import partial
from retrobench.memory.codec import Quantised
from retrobench.memory.placement import Holder
from retrobench.memory.selection import Partial
from retrobench_methods.retroinfer.vectors import vector_sums
from retrobench_methods.retroinfer.weights import log_weights

_RIDGE = 1e-3  # of the mean variance: keeps the pooled covariance invertible


class KeyCovariance(Holder):
    """Covariance of keys around their centroid: one matrix per head, one scale per cluster.

    The covariance of cluster j is modelled as ``scale_j`` times the pooled one. The matrix is that
    of the prompt (of the first segment, if the prompt was too short for an index).
    """

    def __init__(self, head: tuple[int, ...], clusters: int, shape: KVShape) -> None:
        size, dim = (*head, clusters), shape.head_dim
        self.scale = torch.zeros(size, dtype=torch.float16, device=shape.device)
        self.covariance = torch.zeros(*head, dim, dim, device=shape.device)

    def store(
        self, at: tuple, k_GSD: Tensor, centroid_GCD: Tensor, cluster_GS: Tensor, size_GC: Tensor
    ) -> None:
        """Measure new clusters; ``at`` is (layer, row, heads, clusters)."""
        spread = cluster_GS[..., None].expand_as(k_GSD)
        residual_GSD = k_GSD.float() - centroid_GCD.gather(1, spread)
        pooled_GDD = self.covariance[at[:2]]
        dim = k_GSD.shape[-1]
        if not bool(pooled_GDD.any()):
            pooled_GDD.copy_(residual_GSD.transpose(1, 2) @ residual_GSD / k_GSD.shape[1])
        variance = pooled_GDD.diagonal(dim1=-2, dim2=-1).mean(-1)
        ridge = torch.eye(dim, device=k_GSD.device) * (_RIDGE * variance + 1e-12)[:, None, None]
        whitened_GSD = residual_GSD @ torch.linalg.inv(pooled_GDD + ridge)
        distance_GS = (whitened_GSD * residual_GSD).sum(-1) / dim
        total_GC = vector_sums(distance_GS[..., None], cluster_GS, size_GC.shape[1])[..., 0]
        self.scale[at] = (total_GC / size_GC.clamp_min(1)).to(self.scale.dtype)

    def variance(self, layer: int, q_BHD: Tensor, scale: float) -> Tensor:
        """Variance of ``scale * q.k`` inside each cluster, ``BHC``."""
        batch, heads, dim = q_BHD.shape
        groups = self.scale.shape[2]
        q_BGND = q_BHD.reshape(batch, groups, heads // groups, dim).float() * scale
        form_BGN1 = ((q_BGND @ self.covariance[layer]) * q_BGND).sum(-1, keepdim=True)
        return (form_BGN1 * self.scale[layer].float()[:, :, None]).flatten(1, 2)

    def correction(self, layer: int, q_BHD: Tensor, size_BGC: Tensor, scale: float) -> Tensor:
        """What to add to centroid logits, ``BHC``: log mean weight of a cluster's keys.

        Half the variance of the logit, until the heaviest of n keys carries the sum: n draws from
        a normal distribution freeze at a variance of 2 ln n (the random energy model).
        """
        groups = size_BGC.shape[1]
        variance = self.variance(layer, q_BHD, scale).unflatten(1, (groups, -1))
        log_size = size_BGC[:, :, None].float().clamp_min(1).log()
        frozen = (2 * variance * log_size).sqrt() - log_size
        gain = torch.where(variance <= 2 * log_size, variance / 2, frozen)
        return gain.clamp_min(0).flatten(1, 2)


class Int4Values(Holder):
    """Vectors in 4 bits with one scale each."""

    def __init__(self, size: tuple[int, ...], dim: int, device: str) -> None:
        self.codec = Quantised(dim, "float32", 4, group=dim)
        self.code = torch.zeros(*size, dim // 2, dtype=torch.int8, device=device)
        self.scale = torch.zeros(*size, 1, dtype=torch.float16, device=device)

    def store(self, at: tuple, mean_GCD: Tensor) -> None:
        """Quantise vectors symmetrically to -7 .. 7."""
        self.code[at], self.scale[at] = self.codec.encode(mean_GCD)

    def read(self, layer: int) -> Tensor:
        """``mean_BGCD`` of a layer, float32."""
        return self.codec.decode((self.code[layer], self.scale[layer]))


def estimate_all(logit_BHC: Tensor, size_BGC: Tensor, mean_BGCD: Tensor) -> Partial:
    """Every cluster (size 0: none) through its mean value."""
    out_BGND, lse_BGN = partial(log_weights(logit_BHC, size_BGC), mean_BGCD)
    return out_BGND.flatten(1, 2), lse_BGN.flatten(1, 2)
