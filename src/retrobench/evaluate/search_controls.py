"""The same kinds of structures from faiss, where it is installed, as controls of ours."""

import importlib.util
from collections.abc import Callable

from torch import Tensor

from retrobench.engine.attention.key_search import SearchConfig

TOP = 100


def make(
    config: SearchConfig, k_SD: Tensor
) -> dict[str, Callable[[Tensor, int, bool], tuple[list[int], float]]]:
    """Search functions by name: IVF beside ``ivf``, HNSW beside ``keys``, each by inner product."""
    if config.index not in ("ivf", "keys") or importlib.util.find_spec("faiss") is None:
        return {}
    import faiss  # type: ignore

    keys, dim = k_SD.float().numpy(), k_SD.shape[1]
    if config.index == "ivf":
        name, counter = "faiss IVF", faiss.cvar.indexIVF_stats
        quantizer = faiss.IndexFlatIP(dim)
        lists = config.lists(len(keys))
        index = faiss.IndexIVFFlat(quantizer, dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1
        index.train(keys)
    else:
        name, counter = "faiss HNSW", faiss.cvar.hnsw_stats
        index = faiss.IndexHNSWFlat(dim, config.degree, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = config.build_beam
    index.add(keys)

    def search(query: Tensor, effort: int, first: bool) -> tuple[list[int], float]:
        if config.index == "ivf":
            index.nprobe = effort
        else:
            index.hnsw.efSearch = effort
        counter.reset()
        _, found = index.search(query[None].float().numpy(), TOP)
        centroids = config.lists(len(keys)) if config.index == "ivf" else 0
        return found[0].tolist(), counter.ndis + centroids

    return {name: search}
