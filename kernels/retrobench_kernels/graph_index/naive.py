"""Neighbour graphs over keys by inner product, as RetrievalAttention searches them.

The construction is RoarGraph's (matchyc/RoarGraph 7c9ef95): neighbours are taken from queries, so
that edges follow what queries ask for. There threads work on one graph and what they do first
decides; here queries and keys take their turns, and ties go to the lower number.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from retrobench_kernels.dispatch import op, op_of

Scored = list[tuple[float, int]]  # (minus inner product, key), ascending: the best first
Links = list[list[int]]  # neighbours of every key


class BuildArgs(NamedTuple):
    """Arguments of ``build_graph``."""

    k_GSD: Tensor
    near_HTN: Tensor
    entry_H: Tensor
    degree: int
    beam: int


class SearchArgs(NamedTuple):
    """Arguments of ``search_graph``."""

    q_HD: Tensor
    k_GSD: Tensor
    link_HSN: Tensor
    entry_HE: Tensor
    beam: int
    count: int


class Found(NamedTuple):
    """The best keys of each query head, -1 padded (inner product -inf), and what looking cost."""

    token_HR: Tensor  # int32
    product_HR: Tensor  # float32
    scanned_H: Tensor  # int64: keys whose product was computed
    entries_H: Tensor  # int64: numbers read from lists


@op_of(BuildArgs)
def build_graph(args: BuildArgs) -> Tensor:
    """H graphs over S keys: neighbours ``link_HSN``, int32, -1 padded, N = 2 ``degree``.

    ``near_HTN`` are distinct keys near each training query, the nearest first, -1 padded; they
    become neighbours of the first one. Then every key is searched for, from ``entry_H`` with a beam
    of ``beam`` nodes, and linked with what was found. Graphs share the keys of G heads evenly.
    """
    k_GSD, near_HTN, entry_H, degree, beam = args
    links = []
    for graph, near_TN in enumerate(near_HTN):
        keys = k_GSD[graph * len(k_GSD) // len(near_HTN)].float()
        links.append(_build(keys, near_TN.tolist(), int(entry_H[graph]), degree, beam))
    return torch.stack(links)


def _build(k_SD: Tensor, near_TN: Links, entry: int, degree: int, beam: int) -> Tensor:
    projection: Links = [[] for _ in k_SD]
    for pivot, *others in near_TN:
        if pivot >= 0:
            found = scored(k_SD, pivot, [key for key in others if key >= 0])
            projection[pivot] = prune(k_SD, found, degree, fill=True)
            add_reverse(k_SD, projection, pivot, degree, degree, fill=True)
    for i in range(len(k_SD)):
        add_reverse(k_SD, projection, i, degree, degree, fill=True)
    supply = [list(nodes) for nodes in projection]
    for i in range(len(k_SD)):
        _, expanded, _ = best_first(k_SD[i], k_SD, supply, [entry], beam, left_out=i)
        found = sorted(node for node in expanded if node[1] != i)
        if chosen := prune(k_SD, _new(found, projection[i]), degree, fill=False):
            supply[i] = chosen
            add_reverse(k_SD, supply, i, 2 * degree, degree, fill=False)
    link_SN = torch.full((len(k_SD), 2 * degree), -1, dtype=torch.int32)
    for i, (first, more) in enumerate(zip(projection, supply, strict=True)):
        if len(more) > degree:
            more = prune(k_SD, _new(scored(k_SD, i, more), first), degree, fill=False)
        both = [*first, *(node for node in more if node not in first)]
        link_SN[i, : len(both)] = torch.tensor(both, dtype=torch.int32)
    return link_SN


def _new(found: Scored, known: list[int]) -> Scored:
    """Without the best ones as long as they are known."""
    fresh = [node for _, node in found if node not in known]
    return found[[node for _, node in found].index(fresh[0]) :] if fresh else []


def add_reverse(
    k_SD: Tensor, links: Links, node: int, room: int, degree: int, *, fill: bool
) -> None:
    """Edges back to a node; a list that grows longer than ``room`` is pruned to ``degree``."""
    for other in list(links[node]):
        if node not in links[other]:
            links[other] = [*links[other], node]
            if len(links[other]) > room:
                found = scored(k_SD, other, links[other])
                links[other] = prune(k_SD, found, degree, fill=fill)


@op_of(SearchArgs, chosen_by="k_GSD")
def search_graph(args: SearchArgs) -> Found:
    """The best ``count`` keys of all that each query head's search looks at.

    The beam has ``beam`` nodes. The search starts at the nodes ``entry_HE``, int32, -1 padded.
    Query heads share keys and graphs evenly.
    """
    q_HD, k_GSD, link_HSN, entry_HE, beam, count = args
    heads, found = len(q_HD), []
    for head in range(heads):
        keys = k_GSD[head * len(k_GSD) // heads].float()
        links = _lists(link_HSN[head * len(link_HSN) // heads, : len(keys)])
        entries = [node for node in entry_HE[head].tolist() if node >= 0]
        best, expanded, scanned = best_first(q_HD[head].float(), keys, links, entries, beam, count)
        read = sum(len(links[node]) for _, node in expanded)
        found.append((best[:count], scanned, read))
    token = torch.full((heads, count), -1, dtype=torch.int32)
    product = torch.full((heads, count), -torch.inf)
    for head, (best, _, _) in enumerate(found):
        token[head, : len(best)] = torch.tensor([node for _, node in best], dtype=torch.int32)
        product[head, : len(best)] = torch.tensor([-far for far, _ in best])
    scanned_H, entries_H = (torch.tensor([x[i] for x in found]) for i in (1, 2))
    return Found(token, product, scanned_H, entries_H)


@op
def insert_key(k_GSD: Tensor, link_HSN: Tensor, entry_H: Tensor, beam: int) -> None:
    """The last key joins every graph, in place: its edges, and edges back to it."""
    new, degree = k_GSD.shape[1] - 1, link_HSN.shape[-1] // 2
    for graph, link_SN in enumerate(link_HSN):
        keys = k_GSD[graph * len(k_GSD) // len(link_HSN)].float()
        links = _lists(link_SN[:new])
        _, expanded, _ = best_first(keys[new], keys, links, [int(entry_H[graph])], beam)
        chosen = prune(keys, sorted(expanded), degree, fill=False)
        links.append(chosen)
        for node in chosen:
            longer = [*links[node], new]
            if len(longer) > 2 * degree:
                longer = prune(keys, scored(keys, node, longer), 2 * degree, fill=True)
            links[node] = longer
        for node in (new, *chosen):
            link_SN[node] = -1
            link_SN[node, : len(links[node])] = torch.tensor(links[node], dtype=torch.int32)


def best_first(
    q_D: Tensor,
    k_SD: Tensor,
    links: Links,
    entries: list[int],
    beam: int,
    wanted: int = 0,
    left_out: int = -1,
) -> tuple[Scored, Scored, int]:
    """(the best nodes found, all nodes that were expanded, keys whose product was taken).

    Expands the best node of the ``beam`` best that is not expanded yet, until there is none.
    ``wanted`` nodes are remembered, if they are more than the beam. Key ``left_out`` is no
    neighbour of others.
    """
    if not links:
        return [], [], 0
    room, best = max(beam, wanted), [(-float(k_SD[node] @ q_D), node) for node in set(entries)]
    best, scanned = sorted(best)[:room], len(best)
    seen, expanded = {*entries, left_out}, []
    while left := [node for node in best[:beam] if node not in expanded]:
        expanded.append(left[0])
        fresh = [node for node in links[left[0][1]] if node not in seen]
        seen.update(fresh)
        scanned += len(fresh)
        far = (-(k_SD[fresh] @ q_D)).tolist() if fresh else []
        best = sorted([*best, *zip(far, fresh, strict=True)])[:room]
    return best, expanded, scanned


def prune(k_SD: Tensor, candidates: Scored, limit: int, *, fill: bool) -> list[int]:
    """The best candidates that no kept one hides: one that is closer to it than the source is.

    ``fill`` adds the best of the hidden ones up to the limit.
    """
    kept: list[int] = []
    hidden: list[int] = []
    for far, node in candidates:
        if len(kept) == limit:
            break
        hides = bool((k_SD[kept] @ k_SD[node] > -far).any()) if kept else False
        (hidden if hides else kept).append(node)
    return [*kept, *hidden[: limit - len(kept)]] if fill else kept


def scored(k_SD: Tensor, node: int, others: list[int]) -> Scored:
    """Keys by their product with a node, the best first."""
    return sorted(zip((-(k_SD[others] @ k_SD[node])).tolist(), others, strict=True))


def _lists(link_SN: Tensor) -> Links:
    return [[node for node in nodes if node >= 0] for nodes in link_SN.tolist()]
