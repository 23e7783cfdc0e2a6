"""Neighbour graphs in C++ equal plain torch exactly, ties included: building, search, insertion.

Numbers lie on a grid, so that sums are exact in any order.
"""

from __future__ import annotations

import pytest
import torch
from retrobench_kernels import native
from retrobench_kernels.graph_index import build_graph, insert_key, search_graph

needs_library = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
KINDS = ("random", "clustered", "duplicates", "constant", "outliers")
DEGREE, BEAM = 4, 12


def grid(*size):
    return torch.randint(-16, 17, size) / 8


def make_keys(kind, groups, tokens, dim):
    keys = grid(groups, tokens, dim)
    if kind == "clustered":
        centre = grid(groups, 6, dim)[:, torch.randint(0, 6, (tokens,))]
        return centre + torch.randint(-1, 2, keys.shape) / 8
    if kind == "duplicates":
        keys[:, ::3] = keys[:, :1]
    if kind == "constant":
        keys[:] = keys[:, :1]
    if kind == "outliers":
        keys[:, ::17] *= 16
    return keys


def make_near(keys, graphs, queries=60, count=10):
    """Nearest keys of random queries; a row that is absent, and one that ends early."""
    per_group = graphs // len(keys)
    asked = grid(graphs, queries, keys.shape[-1])
    near = (asked @ keys.repeat_interleave(per_group, 0).mT).topk(count).indices
    near[:, 3] = -1
    near[:, 5, 4:] = -1
    return near


@needs_library
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dim", "groups", "graphs"), [(24, 1, 3), (32, 2, 2)])
def test_everything_equals_plain_torch(kind, dim, groups, graphs, poisoned_empty):
    memory = torch.full((groups * 90 * dim + 64,), torch.nan)  # nothing behind the last key is read
    keys, entry = memory[: groups * 90 * dim].view(groups, 90, dim), torch.arange(graphs) * 7
    keys[:] = make_keys(kind, groups, 90, dim)
    build = keys, make_near(keys, graphs), entry, DEGREE, BEAM
    link = build_graph.reference(*build)
    assert torch.equal(build_graph.form("cpu")(*build), link)
    assert link.amax() < 90
    queries = grid(2 * graphs, dim)
    starts = torch.randint(-1, 90, (2 * graphs, 4))
    starts[:, 0] = starts[:, 3] = 5  # twice the same
    for dtype in (torch.float32, torch.bfloat16):
        for beam, count in ((20, 15), (6, 15)):  # also fewer than are wanted
            asked = queries, keys.to(dtype), link, starts, beam, count
            both = search_graph.form("cpu")(*asked), search_graph.reference(*asked)
            assert all(map(torch.equal, *both))
    longer = torch.cat([keys, make_keys(kind, groups, 6, dim)], 1)
    room = [torch.nn.functional.pad(link, (0, 0, 0, 6), value=-1) for _ in range(2)]
    for end in range(91, 97):
        insert_key.form("cpu")(longer[:, :end], room[0], entry, BEAM)
        insert_key.reference(longer[:, :end], room[1], entry, BEAM)
    assert torch.equal(*room)


@needs_library
def test_threads_change_nothing():
    keys, entry = make_keys("random", 2, 200, 32), torch.tensor([0, 5, 9, 9])
    build = keys, make_near(keys, 4), entry, DEGREE, BEAM
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        link = build_graph.form("cpu")(*build)
        found.append(
            (link, *search_graph.form("cpu")(grid(4, 32) * 0 + 1, keys, link, entry[:, None], 9, 9))
        )
    torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_a_list_never_names_its_key_nor_a_key_twice():
    keys = make_keys("duplicates", 1, 80, 16)
    link = build_graph(keys, make_near(keys, 1), torch.tensor([0]), DEGREE, BEAM)[0]
    for node, nodes in enumerate(link.tolist()):
        named = [other for other in nodes if other >= 0]
        assert node not in named
        assert len(set(named)) == len(named)
        assert nodes == named + [-1] * (2 * DEGREE - len(named))


def test_a_beam_of_everything_finds_the_exact_best_of_what_is_connected():
    keys, entry = make_keys("random", 1, 70, 16), torch.tensor([4])
    link = build_graph(keys, make_near(keys, 1), entry, DEGREE, BEAM)
    reached, front = {4}, [4]
    while front:
        fresh = {n for node in front for n in link[0, node].tolist() if n >= 0} - reached
        reached |= fresh
        front = list(fresh)
    query = grid(1, 16)
    found = search_graph(query, keys, link, entry[:, None], 70, 9)
    product = (keys[0] @ query[0]).tolist()
    best = sorted(reached, key=lambda node: (-product[node], node))[:9]
    assert found.token_HR[0].tolist() == best
    assert found.product_HR[0].tolist() == [product[node] for node in best]
    assert int(found.scanned_H) == len(reached)
    assert len(reached) > 60


def test_an_empty_graph_finds_nothing():
    nothing = torch.empty(1, 0, 16), torch.empty(1, 0, 8, dtype=torch.int32)
    found = search_graph(grid(2, 16), *nothing, torch.zeros(2, 1).int(), 5, 3)
    assert found.token_HR.tolist() == [[-1] * 3] * 2
    assert found.scanned_H.tolist() == [0, 0]


def test_a_narrow_beam_returns_the_best_of_all_that_it_looked_at():
    keys, entry = make_keys("random", 1, 70, 16), torch.tensor([4])
    link = build_graph(keys, make_near(keys, 1), entry, DEGREE, BEAM)
    query = grid(1, 16)
    found = search_graph(query, keys, link, entry[:, None], 1, 9)  # the beam has one node
    product = (keys[0] @ query[0]).tolist()
    looked, node = {4}, 4
    while True:  # a beam of one climbs from neighbour to neighbour
        looked |= {n for n in link[0, node].tolist() if n >= 0}
        higher = min(looked, key=lambda n: (-product[n], n))
        if higher == node:
            break
        node = higher
    assert int(found.scanned_H) == len(looked) > 1
    best = sorted(looked, key=lambda n: (-product[n], n))[:9]
    assert found.token_HR[0].tolist() == best + [-1] * (9 - len(best))


def test_a_search_may_start_at_several_keys():
    """Two islands: each start reaches its own, and a start that is named twice counts once."""
    keys = make_keys("random", 1, 20, 16)
    link = torch.full((1, 20, 2), -1, dtype=torch.int32)
    for first in (0, 10):
        island = torch.arange(10)
        link[0, first : first + 10, 0] = (first + (island + 1) % 10).int()
    for starts, reached in (([3, -1, 3], 10), ([3, 15, -1], 20)):
        found = search_graph(grid(1, 16), keys, link, torch.tensor([starts]), 20, 20)
        assert int(found.scanned_H) == reached == int((found.token_HR >= 0).sum())
