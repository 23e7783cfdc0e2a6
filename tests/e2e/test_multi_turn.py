"""protocol=multi_turn: one prefill, then questions and answers through the decode path."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from retrobench.core.budget import Budget
from retrobench.core.task import FollowUp, Sample
from retrobench.engine.embedded import build_tokenizer
from retrobench.engine.generation import Decoding
from retrobench.store.results import ResultStore
from retrobench.tasks.prompt import PromptBuilder
from retrobench.tasks.ruler import RulerConfig, RulerTask
from tests.e2e.test_run import job
from tests.methods.test_contract import OPTIONS, prompt
from tests.support import make_calibrations, open_on

CONTEXT, QUESTIONS, ANSWER = 400, 3, 6
TURNS = {"name": "multi_turn", "turns": 3}
TASK = {"name": "ruler", "tasks": ["niah_multikey_2"], "length": 1400, "samples": 1}


def session(model, name, ids, new_tokens, budget, tail_tokens=0):
    return open_on(
        model, name, [ids], OPTIONS.get(name, {}), new_tokens=new_tokens, budget=budget,
        tail_tokens=tail_tokens,
    )  # fmt: skip


def converse(model, name, budget=None):
    """(answers, all tokens that the model saw before each of them) of three turns."""
    context, *questions = (prompt(n, seed) for seed, n in enumerate([CONTEXT, 9, 11, 7]))
    decoding = Decoding(max_new_tokens=ANSWER)
    room = QUESTIONS * (ANSWER + 11)
    talk = session(model, name, context + questions[0], room, budget, len(questions[0]))
    try:
        result = talk.generate(decoding, frozenset())
        answers, seen = [result.token_ids[0]], [context + questions[0]]
        for question in questions[1:]:
            given = [*result.pending(), *question]
            seen.append(seen[-1] + answers[-1] + question)
            result = talk.generate(decoding, frozenset(), given=given)
            answers.append(result.token_ids[0])
            assert result.decode_steps == len(given) + ANSWER - 1
            assert talk.length == len(seen[-1]) + ANSWER - 1
    finally:
        talk.close()
    return answers, seen


def test_full_attention_answers_as_after_a_prefill_of_the_conversation(tiny_llama):
    answers, seen = converse(tiny_llama, "full")
    assert len({tuple(answer) for answer in answers}) > 1
    for answer, ids in zip(answers, seen, strict=True):
        fresh = session(tiny_llama, "full", ids, ANSWER, None)
        again = fresh.generate(Decoding(max_new_tokens=ANSWER), frozenset())
        fresh.close()
        assert again.token_ids[0] == answer


@pytest.mark.parametrize("name", ["retroinfer", "quest", "infinigen", "oracle_topk"])
def test_a_budget_of_everything_answers_as_full_attention(name, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_calibrations(tiny_llama)
    assert converse(tiny_llama, name, Budget.parse("100%")) == converse(tiny_llama, "full")
    small, _ = converse(tiny_llama, name, Budget.parse("30%"))
    assert len(small) == QUESTIONS


@pytest.mark.parametrize("method", ["full", "retroinfer", "quest", "infinigen"])
def test_a_row_per_turn(method, tmp_path):
    options = {"dense_layers": [0]} if method in ("quest", "infinigen") else {}
    extra = {"calibration_dir": str(tmp_path)} if method == "infinigen" else {}
    outcome = job(
        tmp_path,
        method={"name": method, **options, **extra},
        task=TASK,
        protocol=TURNS,
        budget=None if method == "full" else "20%",
    )
    assert (outcome["ran"], outcome["failed"]) == (3, {})
    rows = list(ResultStore(tmp_path).read(outcome["key"]).rows.values())
    assert [row["sample"] for row in rows] == [f"niah_multikey_2/1400/0/turn{i}" for i in (1, 2, 3)]
    assert [row["meta"]["turn"] for row in rows] == [1, 2, 3]
    assert len({row["references"][0] for row in rows}) == len({r["prompt_hash"] for r in rows}) == 3
    assert all("special magic" in row["prompt_tail"] for row in rows)
    assert len({row["prompt_tail"] for row in rows}) == 3
    lengths = [row["prompt_tokens"] for row in rows]
    assert lengths == sorted(set(lengths)) and rows[1]["prefill_s"] is None
    assert all(set(row["live"]["decode_calls"].values()) == {row["decode_steps"]} for row in rows)
    about = ResultStore(tmp_path).cell(outcome["key"])
    assert about["labels"]["protocol"] == about["cell"]["protocol"] == "multi_turn:3"
    if method == "full":
        assert all(row["score"] == 1 for row in rows)


def test_finished_conversations_are_not_held_again(tmp_path):
    first = job(tmp_path, method={"name": "full"}, task=TASK, protocol=TURNS)
    again = job(tmp_path, method={"name": "full"}, task=TASK, protocol=TURNS)
    assert (again["key"], again["ran"], again["cached"]) == (first["key"], 0, 3)
    more = job(tmp_path, method={"name": "full"}, task={**TASK, "samples": 2}, protocol=TURNS)
    assert (more["key"], more["ran"], more["cached"]) == (first["key"], 3, 3)


@pytest.mark.slow
def test_fidelity_covers_the_whole_conversation(tmp_path):
    measured = {"name": "fidelity", "score": True, "steps": 12}
    outcome = job(tmp_path, task=TASK, protocol=TURNS, measure=measured)
    first, *later = ResultStore(tmp_path).read(outcome["key"]).rows.values()
    assert first["fidelity"]["steps"] > first["decode_steps"] and first["score"] is not None
    assert all("fidelity" not in row for row in later)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": {"batch": 2}}, "engine.batch=1"),
        ({"task": {"name": "speed"}}, "no questions to go on with"),
        ({"protocol": {**TURNS, "turns": 1}}, "turns"),
    ],
)
def test_what_cannot_be_a_conversation_is_refused(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        job(tmp_path, **{"task": TASK, "protocol": TURNS, **changes})


@pytest.mark.parametrize("name", ["niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "qa_1"])
def test_further_questions_have_their_answers_in_the_context(name):
    builder = PromptBuilder(build_tokenizer())
    config = RulerConfig(tasks=(name,), length=(4096,), samples=2)
    for sample in RulerTask(config).samples(builder):
        assert 2 <= len(sample.follow_ups) <= 15
        asked = [sample.question, *(other.question for other in sample.follow_ups)]
        assert len(set(asked)) == len(asked)
        for other in sample.follow_ups:
            assert any(answer in sample.context for answer in other.references)
    for single in ("niah_single_2", "niah_multiquery", "cwe"):
        config = RulerConfig(tasks=(single,), length=(4096,), samples=1)
        assert next(iter(RulerTask(config).samples(builder))).follow_ups == ()


def test_the_text_between_two_answers():
    backend = build_tokenizer()
    sample = Sample(
        id="a", task="t", context="c", question="Who?", references=(), max_new_tokens=3,
        answer_prefix=" It is", follow_ups=(FollowUp(question="Why?", references=("x",)),),
    )  # fmt: skip
    first, second = sample.turns(5)
    assert (first.id, second.id, second.answer_prefix) == ("a/turn1", "a/turn2", "")
    base = PromptBuilder(backend)
    assert base.follow_up(second) == base.tokens("\nWhy?")
    chat = PreTrainedTokenizerFast(tokenizer_object=backend.backend_tokenizer)
    chat.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}<assistant>"
    )
    talk = PromptBuilder(chat)
    assert talk.follow_up(first) == talk.tokens("</><user>Who?</><assistant> It is")


def test_a_stop_string_ends_a_turn(tiny_llama):
    answer = converse(tiny_llama, "full")[0][0]
    ids = prompt(CONTEXT, 0) + prompt(9, 1)
    talk = session(tiny_llama, "full", ids, ANSWER, None, tail_tokens=9)
    decoding = Decoding(max_new_tokens=ANSWER)
    result = talk.generate(decoding, frozenset(), lambda ids: len(ids) == 2)
    talk.close()
    assert result.token_ids == [answer[:2]] and result.stop_reasons == ["stop_string"]
    assert result.pending() == [answer[1]]
