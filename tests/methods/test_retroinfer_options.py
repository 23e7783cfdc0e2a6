"""RetroInfer's own estimates and its adaptive budget: better, within bounds, rounded right."""

from __future__ import annotations

import itertools

import torch
from retrobench_methods.retroinfer import RetroInfer
from retrobench_methods.retroinfer.adaptive import keep_within
from retrobench_methods.retroinfer.estimation import Int4Values

from retrobench.engine.attention.exact import dense_decode

from .retroinfer_run import Run


def test_adaptive_budget_keeps_its_bound_and_retrieves_less():
    options = {"prompt": 1200, "new": 12, "retrieval_frac": 0.3}
    fixed = Run(**options)
    runs = {tolerance: Run(error_tolerance=tolerance, **options) for tolerance in (1e-6, 0.1, 1.0)}
    for n in range(1200, 1212):
        query = torch.randn(1, 4, 1, 16)
        expected = fixed.step(n, query)
        for tolerance, run in runs.items():
            got = run.step(n, query)
            gap = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
            assert gap.max() < max(tolerance, 1e-4)
            if n == 1200:  # no output to compare with yet: nothing is left out
                torch.testing.assert_close(got, expected)
    attended = [fixed.row()["attended_tokens"]]
    attended += [run.row()["attended_tokens"] for run in runs.values()]
    assert attended == sorted(attended, reverse=True) and attended[-1] < 0.8 * attended[0]
    run = runs[1.0]
    assert run.method.allocated() == RetroInfer.plan(run.method.config, run.shape)


def test_what_is_left_out_stays_within_the_tolerance_of_every_head():
    torch.manual_seed(0)
    cluster = torch.arange(20).repeat(2, 3, 1).masked_fill(torch.rand(2, 3, 20) < 0.2, -1)
    error = torch.rand(2, 3, 4, 20) ** 4
    for tolerance in (0.0, 0.3, 2.0, 100.0):
        ordered, keep = keep_within(cluster, error, tolerance)
        assert torch.equal(ordered.sort(-1).values, cluster.sort(-1).values)
        for row, g in itertools.product(range(2), range(3)):
            kept = ordered[row, g][keep[row, g]].tolist()
            out = [c for c in ordered[row, g][~keep[row, g]].tolist() if c >= 0]
            assert keep[row, g, 0] and keep[row, g].tolist() == [True] * len(kept) + [False] * (
                20 - len(kept)
            )
            where = [cluster[row, g].tolist().index(c) for c in out]
            assert error[row, g][:, where].sum(-1).max() <= tolerance + 1e-5
            if len(kept) > 1:  # one more would be too many
                where.append(cluster[row, g].tolist().index(kept[-1]))
                assert error[row, g][:, where].sum(-1).max() > tolerance - 1e-5


def test_four_bits_round_to_the_nearest_of_fifteen_levels():
    torch.manual_seed(0)
    store, values = Int4Values((1, 1, 2, 9), 16, "cpu"), torch.randn(2, 9, 16)
    values[0, 3] = 0
    store.store((0, 0), values)
    step = values.abs().amax(-1, keepdim=True) / 7
    assert ((store.read(0)[0] - values).abs() <= step * 0.51 + 1e-6).all()


def test_better_estimates_are_better_on_diffuse_attention():
    """Not a claim about models (docs/retroinfer.md measures those): the arithmetic helps here."""

    def error(**options):
        run, total = Run(prompt=1200, new=1, **options), 0.0
        query = 0.7 * torch.randn(1, 4, 1, 16)
        got = run.step(1200, query)
        for i in range(2):
            exact = dense_decode(query, *run.kv[i][..., :1201, :], run.args)
            total += float((got[i] - exact).norm() / exact.norm())
        return total

    plain, tail = error(), error(tail=True)
    assert tail < plain
    assert error(tail=True, second_order=True) < tail
    assert error(int4_values=True, second_order=True) < tail
