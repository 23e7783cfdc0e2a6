"""Options of searching keys by inner product."""

import math
from dataclasses import dataclass

from retrobench.core.spec import choice, option, share

KINDS = ("flat", "ivf", "keys", "roar")
DEFAULT_BEAM = 128  # of a decode step


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Which keys are searched, by which structure, how it is built and how far it looks.

    Where RetrievalAttention's paper gives no number, the default is ours (docs/methods.md).
    """

    sink_tokens: int = option(128, "first tokens, attended without a search", low=0)
    local_tokens: int = option(512, "last tokens, attended without a search", low=1)
    index: str = option(
        "roar",
        "flat: every key; ivf: lists around centroids; keys: a graph of the keys' own neighbours; "
        "roar: a graph of the neighbours that the prompt's queries have (RoarGraph)",
        choices=KINDS,
    )
    scope: str = choice(
        ("query_head", "kv_head"),
        "graphs: one for each query head (paper) or one per kv_head, trained by the queries of all "
        "its heads (ours)",
    )
    knn: int = option(64, "nearest keys of each training query (RoarGraph's N_q)", low=2)
    degree: int = option(16, "edges of a key in each of two passes (RoarGraph's M)", low=1)
    build_beam: int = option(32, "beam of the search that connects every key (L)", low=1)
    key_space: str = choice(
        ("queries", "raw"),
        "roar: where keys are compared with keys while the graph is built. raw: as they are "
        "(RoarGraph); queries: centred, weighted by how the prompt's queries vary, and of one "
        "length (ours)",
    )
    start: str = choice(
        ("last", "central"),
        "graphs: a search starts at the key nearest to the mean of all (central, RoarGraph), or "
        "also at what the head's last search found, the prompt's last query first (last, ours)",
    )
    search_beam: int | None = option(
        None, "beam of a decode step's search; null: 128, or top_k where that is more", low=1
    )
    query_every: int = option(8, "one in so many of the prompt's queries trains the graph", low=1)
    causal_knn: bool = option(
        False, "a training query sees only the keys before it; false: all, as decode queries do"
    )
    keys_per_list: int = option(
        256, "ivf: keys for each centroid (published code: 512 lists at 128K)", low=1
    )
    probe_frac: float = share(
        0.293, "ivf: share of the lists that are scanned (published code: 150 of 512)"
    )

    def lists(self, num_keys: int) -> int:
        """Centroids over so many keys."""
        return min(num_keys, max(1, round(num_keys / self.keys_per_list)))

    def effort(self, num_keys: int, count: int) -> int:
        """How far a decode step looks for ``count`` keys: lists to scan, or width of the beam."""
        if self.index == "ivf":
            return math.ceil(self.probe_frac * self.lists(num_keys))
        return self.search_beam or max(DEFAULT_BEAM, count)
