"""A vector for every cluster: as it is, or in 8 or 4 bits around the mean over the clusters."""

import torch
from retrobench_kernels.codes import Codes
from retrobench_kernels.segmented_kmeans import cluster_sums
from torch import Tensor

from retrobench.core.shapes import KVShape
from retrobench.memory.codec import Quantised, make_codec
from retrobench.memory.placement import Holder


class ClusterVectors(Holder):
    """Centroids or values of all layers, rows and heads.

    The mean is that of the first clusters that a layer's row gets, and stays: keys and values of a
    head share an offset that a few bits must not be spent on.
    """

    def __init__(self, codec: str, head: tuple[int, ...], clusters: int, shape: KVShape) -> None:
        size, device = (*head, clusters), shape.device
        self.codec = make_codec(codec, shape.head_dim, shape.dtype)
        self.coded = isinstance(self.codec, Quantised)
        width, scales, dtype = shape.head_dim, 0, getattr(torch, shape.dtype)
        if isinstance(self.codec, Quantised):
            scales, dtype = shape.head_dim // self.codec.group, torch.int8
            width = shape.head_dim * self.codec.bits // 8
        self.row_LBGCM = torch.zeros(*size, width, dtype=dtype, device=device)
        self.scale_LBGCN = torch.zeros(*size, scales, dtype=torch.float16, device=device)
        means = shape.head_dim * self.coded
        self.mean_LBGD = torch.zeros(*head, means, dtype=torch.float32, device=device)

    def store(self, at: tuple, vector_GCD: Tensor, exists_GC: Tensor) -> None:
        """Vectors of new clusters; ``at`` is (layer, row, heads, clusters)."""
        if not self.coded:
            self.row_LBGCM[at] = vector_GCD.to(self.row_LBGCM.dtype)
            return
        mean_GD, vector_GCD = self.mean_LBGD[at[:2]], vector_GCD.float()
        if not bool(mean_GD.any()):
            count = exists_GC.sum(1, keepdim=True).clamp_min(1)
            mean_GD.copy_((vector_GCD * exists_GC[..., None]).sum(1) / count)
        stored = self.codec.encode(vector_GCD - mean_GD[:, None])
        self.row_LBGCM[at], self.scale_LBGCN[at] = stored

    def read(self, i: int) -> Tensor | Codes:
        """Vectors of a layer, ``BGCD`` or their codes."""
        if not self.coded:
            return self.row_LBGCM[i]
        return Codes(self.row_LBGCM[i], self.scale_LBGCN[i], self.mean_LBGD[i])

    def bytes_read(self, vectors: Tensor, heads: int) -> Tensor:
        """Bytes of so many vectors, and of the means of so many heads."""
        return vectors * self.codec.bytes_per_vector() + heads * 4 * self.mean_LBGD.shape[-1]


def vector_sums(x_GSD: Tensor, cluster_GS: Tensor, clusters: int) -> Tensor:
    """Float32 sums of the vectors of each cluster, ``GCD``, in an order that stays."""
    nothing = torch.zeros(len(x_GSD), x_GSD.shape[-1], device=x_GSD.device)
    return cluster_sums(x_GSD, nothing, cluster_GS, clusters)[0]
