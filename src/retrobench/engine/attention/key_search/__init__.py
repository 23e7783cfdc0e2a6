"""Search of keys by inner product: exact, in lists (IVF), and in graphs."""

from retrobench.engine.attention.key_search.base import KeySearch
from retrobench.engine.attention.key_search.config import SearchConfig
from retrobench.engine.attention.key_search.graph import GraphSearch
from retrobench.engine.attention.key_search.lists import ListSearch

SEARCHES: dict[str, type[KeySearch]] = {
    "flat": KeySearch,
    "ivf": ListSearch,
    "keys": GraphSearch,
    "roar": GraphSearch,
}

__all__ = ["SEARCHES", "KeySearch", "SearchConfig"]
