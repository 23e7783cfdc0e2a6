"""Prefill that cells share: the same output bit for bit, within its memory, and no false time."""

from __future__ import annotations

import pytest
import torch

from retrobench.cli import app as cli
from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.math import causal
from retrobench.engine.prefill_memo import reusing
from retrobench.store.results import ResultStore

ARGS = AttentionArgs(scale=0.2)


def chunk(seed, dtype=torch.float32, tokens=40, new=24):
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(2, 2, tokens, 8, generator=generator).to(dtype) for _ in range(2))
    # a view into a longer store, as methods hand it over
    return torch.randn(2, 4, new, 8, generator=generator).to(dtype), k[:, :, :33], v[:, :, :33]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_inputs_give_the_same_output_and_others_their_own(dtype):
    q, k, v = chunk(1, dtype)
    padded = torch.ones(2, 33, dtype=torch.bool).index_fill_(1, torch.arange(3), False)
    calls = [(q, k, v, ARGS, None), (q, k, v, ARGS, (0, 5)), (q, k, v, ARGS, padded)]
    calls += [(q, k, v + 1, ARGS, None), (q, k, v, AttentionArgs(scale=0.3), None)]
    plain = [causal(*call) for call in calls]
    with reusing(2**20) as memo:
        before = memo.hits
        for expected in (plain, plain):
            for call, output in zip(calls, expected, strict=True):
                assert torch.equal(causal(*call).nan_to_num(7), output.nan_to_num(7))
        assert memo.hits - before == len(calls)
        causal(q[:, :, -1:], k, v, ARGS)
        causal(q[:, :, -1:], k, v, ARGS)
        assert memo.hits - before == len(calls)  # decode steps are never kept
    causal(*calls[0])
    assert memo.hits - before == len(calls)  # nor anything outside


def test_outputs_beyond_the_memory_are_forgotten_oldest_first():
    first, second = chunk(2), chunk(3)
    size = causal(*first, ARGS).nbytes
    with reusing(size) as memo:
        for inputs, hit in ((first, False), (first, True), (second, False), (first, False)):
            before = memo.hits
            causal(*inputs, ARGS)
            assert (memo.hits > before) == hit and memo.held_bytes <= size


def test_cells_that_share_prefill_answer_alike_and_have_no_time_for_it(tmp_path):
    def rows(method, gib):
        raw = {
            "model": {"name": "constructed", "source": "constructed"},
            "method": {"name": method},
            "task": {"name": "ruler", "tasks": ["niah_single_2"], "length": 900, "samples": 1},
            "engine": {"reuse_prefill_gib": gib},
            "results_dir": str(tmp_path / str(gib)),
            "progress": False,
        }
        key = cli.run_job(raw)["key"]
        return key, next(iter(ResultStore(raw["results_dir"]).read(key).rows.values()))

    _, first = rows("full", 0.5)
    assert first["prefill_s"] > 0
    (key, alone), (same, shared) = rows("quest", 0.0), rows("quest", 0.5)
    assert key == same and alone["prefill_s"] > 0 and shared["prefill_s"] is None
    measured = {name for name in alone if name.endswith("_s")} | {"time", "peak_bytes"}
    for row in (alone, shared):
        assert row["status"] == "ok" and row["score"] == 1.0
    for name in alone.keys() - measured:
        assert shared[name] == alone[name], name
