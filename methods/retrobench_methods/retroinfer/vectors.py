"""A vector for every cluster: as it is, or in 8 or 4 bits around the mean over the clusters."""

import torch
from retrobench_kernels.codes import BLOCK_DIMS, SIDE, Codes, LaneCodes, unpack, words
from retrobench_kernels.segmented_kmeans import cluster_sums
from torch import Tensor

from retrobench.core.shapes import KVShape
from retrobench.memory.codec import Quantised, make_codec
from retrobench.memory.placement import Holder


class ClusterVectors(Holder):
    """Centroids or values of all layers, rows and heads.

    The mean is that of the first clusters that a layer's row gets, and stays: keys and values of a
    head share an offset that a few bits must not be spent on. On a CPU, the codes of vectors to be
    ``scored`` lie side by side (``LaneCodes``).
    """

    def __init__(
        self,
        codec: str,
        head: tuple[int, ...],
        clusters: int,
        shape: KVShape,
        *,
        scored: bool = False,
    ) -> None:
        dim, device = shape.head_dim, torch.device(shape.device)
        self.codec = make_codec(codec, dim, shape.dtype)
        self.coded = isinstance(self.codec, Quantised)
        self.lanes = self.coded and scored and device.type == "cpu" and dim % BLOCK_DIMS == 0
        width, scales, dtype = dim, 0, getattr(torch, shape.dtype)
        if isinstance(self.codec, Quantised):
            width, scales = dim * self.codec.bits // 8, dim // self.codec.group
            width, dtype = (width // 4, torch.int32) if self.lanes else (width, torch.int8)

        def memory(width: int, dtype: torch.dtype) -> Tensor:
            side = (clusters // SIDE, width, SIDE) if self.lanes else (clusters, width)
            return torch.zeros(*head, *side, dtype=dtype, device=device)

        self.code = memory(width, dtype)  # or the vectors
        self.scale = memory(scales, torch.float16)
        self.mean_LBGD = torch.zeros(*head, dim * self.coded, device=device)

    def store(self, at: tuple, vector_GCD: Tensor, exists_GC: Tensor) -> None:
        """Vectors of new clusters; ``at`` is (layer, row, heads, clusters)."""
        if not isinstance(self.codec, Quantised):
            self.code[at] = vector_GCD.to(self.code.dtype)
            return
        mean_GD, vector_GCD = self.mean_LBGD[at[:2]], vector_GCD.float()
        if not bool(mean_GD.any()):
            count = exists_GC.sum(1, keepdim=True).clamp_min(1)
            mean_GD.copy_((vector_GCD * exists_GC[..., None]).sum(1) / count)
        code, scale = self.codec.encode(vector_GCD - mean_GD[:, None])
        if not self.lanes:
            self.code[at], self.scale[at] = code, scale
            return
        number = unpack(code, scale.shape[-1], self.codec.bits).flatten(-2)
        place = torch.arange(at[3].start, at[3].stop)
        for held, part_GCE in ((self.code, words(number, self.codec.bits)), (self.scale, scale)):
            held[at[:2]][:, place // SIDE, :, place % SIDE] = part_GCE.transpose(0, 1)

    def read(self, i: int) -> Tensor | Codes:
        """Vectors of a layer, ``BGCD`` or their codes."""
        assert not self.lanes
        if not self.coded:
            return self.code[i]
        return Codes(self.code[i], self.scale[i], self.mean_LBGD[i])

    def read_scored(self, i: int) -> Tensor | Codes | LaneCodes:
        """The same of vectors to be ``scored``."""
        if not self.lanes:
            return self.read(i)
        return LaneCodes(self.code[i], self.scale[i], self.mean_LBGD[i])

    def bytes_read(self, vectors: Tensor, heads: int) -> Tensor:
        """Bytes of so many vectors, and of the means of so many heads."""
        return vectors * self.codec.bytes_per_vector() + heads * 4 * self.mean_LBGD.shape[-1]


def vector_sums(x_GSD: Tensor, cluster_GS: Tensor, clusters: int) -> Tensor:
    """Float32 sums of the vectors of each cluster, ``GCD``, in an order that stays."""
    nothing = torch.zeros(len(x_GSD), x_GSD.shape[-1], device=x_GSD.device)
    return cluster_sums(x_GSD, nothing, cluster_GS, clusters)[0]
