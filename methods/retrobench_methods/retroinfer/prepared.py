"""Decode steps of layers with everything that stays the same prepared once (``prepare_step``).

For an index and a buffer that add nothing to the plain step: all keys and values in one place on
the CPU, no block cache, and estimates by value sums or mean values alone.
"""

import torch
from retrobench_kernels.cluster_step import Chosen, Step, prepare_step
from retrobench_kernels.wave_attention import Pool
from torch import Tensor

from retrobench.core.method import AttentionArgs, Probe
from retrobench_methods.retroinfer.selection import ClusterSelection
from retrobench_methods.retroinfer.wave_buffer import WaveBuffer
from retrobench_methods.retroinfer.wave_index import WaveIndex


class PreparedSteps:
    """The step of each layer, made when it is first asked for."""

    def __init__(self, index: WaveIndex, store: WaveBuffer) -> None:
        self.index, self.store = index, store
        self.steps: dict[int, Step] = {}
        on_cpu = torch.device(index.shape.device).type == "cpu"
        parts = (index.spread, index.bound, index.top_p, index.means, store.cache)
        self.possible = on_cpu and all(part is None for part in parts)

    def fits(self, i: int, probe: Probe) -> bool:
        """Whether a layer's step may run here; a probe that times parts needs them apart."""
        if not self.possible or self.index.static or probe.detail:
            return False
        return not probe.timing and max(self.index.retrieved[i]) > 0

    def forget(self, i: int) -> None:
        """Clusters or keys of a layer have changed."""
        self.steps.pop(i, None)

    def run(
        self,
        i: int,
        q_BHTD: Tensor,
        k_BGTD: Tensor,
        v_BGTD: Tensor,
        args: AttentionArgs,
        tell: bool,
    ) -> tuple[Tensor, Chosen | None]:
        """One step of layer number ``i``; see ``Step``."""
        step = self.steps.get(i)
        if step is None:
            step = self.steps[i] = self._prepared(i, q_BHTD, args)
        result = step(q_BHTD, k_BGTD, v_BGTD, tell)
        self.store.count_recent(i)
        return result

    def _prepared(self, i: int, q_BHTD: Tensor, args: AttentionArgs) -> Step:
        index, store = self.index, self.store
        select = index.select_args(i, q_BHTD[:, :, 0].contiguous(), args)
        values = None
        if index.values is not None and (select.max_estimated or index.config.tail):
            values = index.values.read(i)
        pool = Pool(store.k_pool[i], store.v_pool[i], index.first_LBGC[i], index.size_LBGC[i])
        total = index.total_LBGD[i] if index.config.tail else None
        zone = store.k_recent[i], store.v_recent[i], store.count_LB[i]
        return prepare_step(*zone, select, pool, values, total)

    def selection(self, i: int, chosen: Chosen) -> ClusterSelection:
        """What was chosen, for the probe."""
        return ClusterSelection(
            first_BGC=self.index.first_LBGC[i],
            page_BGC=None,
            size_BGC=self.index.size_LBGC[i],
            chosen_BGN=chosen.retrieved_BGR,
            estimated_BGE=chosen.estimated_BGE,
            logit_BHC=chosen.logit_BHC,
        )
