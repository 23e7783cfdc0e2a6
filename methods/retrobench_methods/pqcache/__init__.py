"""PQCache: tokens ranked by product-quantised keys, fetched through a block cache.

arXiv 2407.12820. Keys and values may live in host memory; codes and centroids are on the device.
"""

from collections.abc import Mapping
from typing import Any

from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.pool import make_store
from retrobench.memory.store import KVStore
from retrobench_methods.pqcache.config import PQCacheConfig
from retrobench_methods.pqcache.quantised import QuantisedKeys


class PQCache(SelectiveMethod):
    """Sinks, a recent window, and the best tokens between them by quantised keys."""

    name = "pqcache"
    index_class = QuantisedKeys
    memory_knob = "cache_frac"
    Config = PQCacheConfig
    index: QuantisedKeys

    def make_store(self) -> KVStore:
        """Missed tokens are fetched one by one; the blocks asked most enter the cache."""
        return make_store(self.config, self.shape, by_token=True)

    def stats(self) -> Mapping[str, Any]:
        """Tokens of the first row's window, and retrieved ones."""
        recent, retrieved = self.index.zones[0]
        return {"recent_tokens": recent, "retrieved_tokens": retrieved}
