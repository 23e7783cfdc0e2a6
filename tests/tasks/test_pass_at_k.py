"""pass@k: the estimator against enumeration, repeats with seeds of their own, top-k sampling."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
import torch

from retrobench.engine.executor import EagerExecutor
from retrobench.engine.generation import Decoding
from retrobench.report.benchmarks import averages
from retrobench.run.spec import parse_run
from retrobench.store.results import ResultStore
from retrobench.tasks.pass_at_k import pass_at_k
from tests.benchmarks import RANDOM, run, samples

SAMPLED = {
    "temperature": 1.0,
    "top_p": 0.95,
    "top_k": 20,
    "batch": 1,
    "chunk_tokens": 4096,
    "seed": 0,
}


def questions(root, count=2):
    entries = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(count)]
    path = root / "reasoning" / "aime25.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(entries))


@pytest.mark.parametrize("answers", [1, 2, 5, 8])
def test_the_estimator_is_the_mean_over_all_draws(answers):
    for right in range(answers + 1):
        marks = [1] * right + [0] * (answers - right)
        for k in range(1, answers + 1):
            draws = [any(draw) for draw in combinations(marks, k)]
            assert pass_at_k(answers, right, k) == pytest.approx(sum(draws) / len(draws))
    assert pass_at_k(4, 1, 1) == 1 / 4 and pass_at_k(200, 3, 100) == pytest.approx(
        0.876884, abs=1e-6
    )


@pytest.mark.parametrize(("answers", "right", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_impossible_counts_are_refused(answers, right, k):
    with pytest.raises(ValueError, match=f"pass@{k} of"):
        pass_at_k(answers, right, k)


def test_repeats_keep_the_first_ids_and_the_cell(tmp_path):
    questions(tmp_path)
    _, one = samples(tmp_path, "reasoning", tasks=["aime25"])
    task, many = samples(tmp_path, "reasoning", tasks=["aime25"], repeats=3)
    assert [sample.id for sample in many] == [
        f"aime25/{index}{end}" for index in (0, 1) for end in ("", "/repeat1", "/repeat2")
    ]
    assert many[::3] == one and many[1].user_text == many[0].user_text
    assert task.score(many[4], "\\boxed{2}") == 1


def test_more_repeats_go_on_with_the_cell_and_are_drawn_apart(tmp_path):
    questions(tmp_path)
    task = {"name": "reasoning", "tasks": ["aime25"], "max_new_tokens": 16}
    first, _ = run(tmp_path, tmp_path / "r", {**task, "repeats": 2}, engine=SAMPLED)
    outcome, rows = run(tmp_path, tmp_path / "r", {**task, "repeats": 4}, engine=SAMPLED)
    assert outcome["key"] == first["key"] and outcome["cached"] == 4 and len(rows) == 8
    answers = [row["prediction"] for row in rows if row["sample"].startswith("aime25/0")]
    assert len(set(answers)) == 4
    _, again = run(tmp_path, tmp_path / "again", {**task, "repeats": 4}, engine=SAMPLED)
    assert {r["sample"]: r["prediction"] for r in again} == {
        r["sample"]: r["prediction"] for r in rows
    }
    frame = ResultStore(tmp_path / "r").columns()
    frame["score"] = frame["sample"].isin(["aime25/0", "aime25/1/repeat1", "aime25/1/repeat2"])
    frame["score"] = frame["score"].astype(float)
    (table,) = [table for title, table in averages(frame) if "pass@k" in title]
    (row,) = table.to_dict("records")
    # question 0: 1 of 4 right, question 1: 2 of 4
    assert (row["questions"], row["answers"], row["failed"]) == ("2", "4", "0")
    assert row["pass@1"] == f"{100 * (1 / 4 + 2 / 4) / 2:.1f}"
    assert row["pass@2"] == f"{100 * ((1 - 3 / 6) + (1 - 1 / 6)) / 2:.1f}"
    assert row["pass@4"] == "100.0"


def test_repeats_without_sampling_are_refused():
    raw = {"model": RANDOM, "method": {"name": "full"}, "task": {"name": "reasoning", "repeats": 8}}
    with pytest.raises(ValueError, match=r"task.repeats=8 with engine.temperature=0 .*sample"):
        parse_run(raw)
    assert parse_run({**raw, "engine": SAMPLED}).engine.top_k == 20


def test_top_k_and_top_p_leave_the_likeliest_tokens():
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04]]))[:, [3, 0, 4, 1, 2]].repeat(
        4000, 1
    )
    executor = EagerExecutor.__new__(EagerExecutor)

    def drawn(**options):
        generator = torch.Generator().manual_seed(1)
        token = executor.choose(logits, Decoding(max_new_tokens=1, **options), generator)
        return torch.bincount(token[:, 0], minlength=5)[[1, 3, 4, 0, 2]] / 4000

    for options, kept in (
        ({"temperature": 1.0}, [0.4, 0.3, 0.2, 0.06, 0.04]),
        ({"temperature": 1.0, "top_k": 2}, [0.4, 0.3, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.6}, [0.4, 0.3, 0, 0, 0]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.7}, [0.4, 0.3, 0, 0, 0]),  # of 0.9
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.8}, [0.4, 0.3, 0.2, 0, 0]),
        ({"temperature": 0.5, "top_k": 2}, [0.16, 0.09, 0, 0, 0]),
        ({"temperature": 1.0, "top_k": 99}, [0.4, 0.3, 0.2, 0.06, 0.04]),
    ):
        expected = torch.tensor(kept) / sum(kept)
        assert torch.allclose(drawn(**options), expected, atol=0.03), options
        assert bool((drawn(**options)[expected == 0] == 0).all()), options
