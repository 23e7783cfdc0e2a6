"""SCBench: official rules by hand, prompts of all modes, shared prefills, substitutes."""

from __future__ import annotations

import json

import pytest

from retrobench.core.spec import parse
from retrobench.engine.generation import Decoding
from retrobench.engine.loader import resident
from retrobench.engine.model_config import ModelConfig
from retrobench.report.tables.scores import caption
from retrobench.run.conversation import Conversation
from retrobench.store.results import ResultStore
from retrobench.tasks.prompt import PromptBuilder, PromptTooLong
from retrobench.tasks.scbench.turns import MIXED, NEW_TOKENS, TASKS
from retrobench.tasks.scorers.bleu import bleu
from retrobench.tasks.scorers.scbench import function, score
from tests.benchmarks import CHATML, RANDOM, prompt, run, samples, substitutes, write
from tests.support import open_on

TALK = {"name": "multi_turn", "turns": 3}


@pytest.mark.parametrize(
    ("kind", "prediction", "references", "expected"),
    [
        ("scbench_kv", 'x"ab-1"y', ["ab-1"], 1),
        ("scbench_kv", "AB-1", ["ab-1"], 0),
        ("scbench_vt", "abc and QRS", ["ABC", "QRS", "XYZ"], 0.67),  # 2 of 3, two decimals
        ("scbench_qa_eng", "in new york!", ["New York"], 1),
        ("scbench_qa_chn", "青石镇", ["青石", "木"], 2 * (2 / 3) / (2 / 3 + 1)),
        ("scbench_choice_eng", "B", ["lake", "B"], 1),
        ("scbench_many_shot", "no (", ["(", "A", ")"], 1),  # one of the characters is enough
        ("scbench_many_shot", "b", ["(", "A", ")"], 0),
        ("scbench_mf", "12.9", ["12"], 1),  # decimals are cut off
        ("scbench_mf", "12.9", ["12.0"], 0),
        ("scbench_mf", "none", ["12"], 0),
        ("scbench_passkey", "It is 123.", ["123"], 1),
        ("scbench_passkey", "0123", ["123"], 0),
        ("scbench_summary", "a\nb", ["b a"], 1),
    ],
)
def test_the_rules_by_hand(kind, prediction, references, expected):
    assert score(kind, prediction, references) == pytest.approx(expected)


def test_bleu_by_hand():
    words = "a b c d e".split()
    assert bleu(words, words) == pytest.approx(1)
    # 4 of 5 words, 3 of 4 pairs, 2 of 3, 1 of 2
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert bleu(words, "a b c d x".split()) == pytest.approx(expected)
    assert bleu(words[:4], words) == pytest.approx(2.718281828**-0.25)  # too short
    assert bleu(["x"], words) == bleu([""], words) == 0


def test_the_function_that_is_most_similar_must_be_the_one_asked_for():
    functions = {"one": "def one(a):\n    return a + 1 - 2", "two": "def two(b):\n    return b * 3"}
    good = f"Here it is:\n```python\n{functions['one']}\n```\nand more words"
    assert function(good, "one", functions) == function(functions["one"], "one", functions) == 1
    assert function(good, "two", functions) == 0
    assert function("def one(a): return a", "one", functions) == 0  # under 0.8
    assert function("", "one", functions) == 0


def record(task, **changes):
    """Two turns in the schema of a data set, and what the answers are compared with."""
    kinds = list(MIXED[task]) if task in MIXED else [task, task]
    turns = []
    for number, kind in enumerate(kinds, 1):
        turn = {"input": f"Question {number}?", "answer": f"answer {number}", "task": kind}
        if kind == "scbench_mf":
            turn |= {"input": f"The number {number} is:", "answer": number}
        if kind == "scbench_choice_eng":
            turn |= {"options": ["w", "x", f"answer {number}", "z"]}
        if kind == "scbench_repoqa":
            turn |= {"name": f"step_{number}"}
        if kind == "scbench_vt":
            turn |= {"answer": ["ABC", "XYZ"]}
        turns.append(turn)
    found = {"id": 7, "context": "CONTEXT {x}", "multi_turns": turns, "repo": "r", "lang": "python"}
    return {**found, **changes}


HEADS = {
    "scbench_kv": "Extract the value corresponding to the specified key in the JSON object below."
    "\n\n",
    "scbench_choice_eng": "Read the book and answer the question.\n\n",
    "scbench_qa_eng": "Read the book and answer the question. Be very concise in your answer.\n\n",
    "scbench_qa_chn": "阅读以下书籍然后回答问题。\n\n",
    "scbench_repoqa": "Based on the function description and code context, please retrieve and "
    "repeat the exact described function from the code context in a code block wrapped by ```:\n\n",
}
OPTIONS = "\nA. w\nB. x\nC. answer {}\nD. z\n\n"


def asked(task, number, mode):
    """The text of a question: ``first``, ``next`` (base models), ``chat`` or ``alone``."""
    if task == "scbench_mf":
        text = f"The number {number} is:"
        return text if mode == "first" else f"What is the number {number}?\n\n{text}"
    text = f"Question {number}?"
    if task == "scbench_choice_eng":
        letter = (
            "The letter of the correct answer is" if mode == "next" else "The the correct answer is"
        )
        return f"Question: {text}{OPTIONS.format(number)}{letter}"
    if task == "scbench_qa_eng":
        return f"Question: {text}\nAnswer:"
    return f"问题：{text}\n答案：" if task == "scbench_qa_chn" else text


@pytest.mark.parametrize("task", TASKS)
def test_prompts_of_the_modes_are_the_official_ones(tmp_path, task):
    write(tmp_path / "scbench" / f"{task}.jsonl", record(task))
    head = HEADS.get(task, "What is the number 1?\n\n" if task == "scbench_mf" else "")
    for builder, mode in ((prompt(), "next"), (prompt(CHATML), "chat")):
        _, (sample,) = samples(tmp_path, "scbench", builder, tasks=[task])
        assert sample.context == head + "CONTEXT {x}" and not sample.error
        assert sample.question == "\n\n" + asked(task, 1, "first")
        (other,) = sample.follow_ups
        between = "\n\n" if mode == "next" else ""
        assert other.question == between + asked(task, 2, mode)
        starts = mode == "chat" and task == "scbench_summary"
        assert other.answer_prefix == ("This paper" if starts else "")
        _, (alone,) = samples(tmp_path, "scbench", builder, tasks=[task], earlier="none")
        head_alone = "The number 1 is:\n\n" if task == "scbench_mf" else head
        assert alone.context == head_alone + "CONTEXT {x}"
        assert alone.question == asked(task, 1, "alone")
        assert alone.follow_ups[0].question == asked(task, 2, "alone")
    rooms = list(MIXED[task].values()) if task in MIXED else [NEW_TOKENS[task]] * 2
    assert [turn.max_new_tokens for turn in sample.turns(9)] == rooms
    assert [turn.meta["kind"] for turn in sample.turns(9)] == (
        list(MIXED[task]) if task in MIXED else [task] * 2
    )


def test_reference_answers_stand_between_the_questions(tmp_path):
    write(tmp_path / "scbench" / "scbench_kv.jsonl", record("scbench_kv"))
    for template in (None, CHATML):
        builder = prompt(template)
        _, (sample,) = samples(tmp_path, "scbench", builder, tasks=["scbench_kv"])
        whole = Conversation.encode(builder, sample.turns(2), None)
        first, second = whole.apart
        assert first.prompt.ids == builder.encode(sample).ids == whole.prompt.ids
        text = builder.tokenizer.decode(second.prompt.ids)
        assert text.startswith(builder.tokenizer.decode(first.prompt.ids))
        between = "<|im_end|>\n<|im_start|>user\n" if template else "\n\n"
        assert f"answer 1{between}Question 2?" in text
        assert first.prompt.context_tokens == second.prompt.context_tokens
        assert first.prompt.text_hash != second.prompt.text_hash
        assert whole.new_tokens == len(second.prompt.ids) + 150 - len(first.prompt.ids)
        room = len(second.prompt.ids) + 150
        assert Conversation.encode(builder, sample.turns(2), room).apart
        with pytest.raises(PromptTooLong, match=f"turn2: .* takes {room - 151} beside 150"):
            Conversation.encode(builder, sample.turns(2), room - 1)


def test_questions_on_their_own_share_the_context(tmp_path):
    write(tmp_path / "scbench" / "scbench_kv.jsonl", record("scbench_kv"))
    builder = prompt(CHATML)
    _, (sample,) = samples(tmp_path, "scbench", builder, tasks=["scbench_kv"], earlier="none")
    whole = Conversation.encode(builder, sample.turns(2), None)
    for one, turn in zip(whole.apart, sample.turns(2), strict=True):
        assert one.prompt.ids == builder.encode(turn).ids
        assert one.prompt.context_tokens == whole.prompt.context_tokens > 20
        assert one.rest == one.prompt.ids[one.prompt.context_tokens :]
    assert "answer 1" not in builder.tokenizer.decode(whole.apart[1].prompt.ids)


@pytest.mark.parametrize(("earlier", "of"), [("reference", "prompt"), ("none", "context")])
def test_long_contexts_lose_their_middle_by_ids(tmp_path, earlier, of):
    text = " ".join(f"w{i}" for i in range(3000))
    write(tmp_path / "scbench" / "scbench_kv.jsonl", record("scbench_kv", context=text))
    builder = prompt(CHATML)
    options = {"tasks": ["scbench_kv"], "earlier": earlier}
    _, (whole,) = samples(tmp_path, "scbench", builder, **options)
    _, (sample,) = samples(tmp_path, "scbench", builder, max_tokens=3001, **options)
    full, cut = builder.encode(whole), builder.encode(sample)
    kept = 3001 - 2 * 150 - (1000 if of == "context" else 0)
    assert sample.meta["truncate"] == {"side": "middle", "tokens": kept, "of": of}
    rest = full.ids[full.context_tokens :]
    part = full.ids if of == "prompt" else full.ids[: full.context_tokens]
    expected = part[: kept // 2] + part[-(kept // 2) :] + (rest if of == "context" else [])
    assert cut.ids == expected and cut.truncated and not full.truncated
    assert cut.ids[cut.context_tokens :] == rest


@pytest.mark.parametrize("earlier", ["reference", "own", "none"])
def test_every_mode_runs_on_one_prefill_and_equals_fresh_prompts(tmp_path, earlier):
    task = {"name": "scbench", "tasks": ["scbench_kv"], "substitute_tokens": 1024, "samples": 1}
    task |= {"earlier": earlier}
    outcome, rows = run(tmp_path, tmp_path / "r", task, protocol=TALK)
    assert outcome["failed"] == {} and len(rows) == 3
    assert [row["meta"]["turn"] for row in rows] == [1, 2, 3]
    assert len({row["prompt_hash"] for row in rows}) == 3
    assert {row["prefill_s"] for row in rows[:1]} != {None}
    if earlier == "own":
        return
    # Full attention answers as if each turn's whole prompt were asked by itself.
    loaded = resident(parse(ModelConfig, RANDOM, "model"))
    builder = PromptBuilder(loaded.tokenizer)
    options = {name: value for name, value in task.items() if name != "name"}
    _, (sample,) = samples(tmp_path, "scbench", builder, **options)
    apart = Conversation.encode(builder, sample.turns(3), None).apart
    for one, row in zip(apart, rows, strict=True):
        with open_on(loaded.model, "full", [one.prompt.ids], new_tokens=150) as session:
            ids = session.generate(Decoding(max_new_tokens=150), frozenset()).token_ids[0]
        assert builder.answer(ids)[:200] == row["prediction"][:200]
        assert row["prompt_tokens"] == len(one.prompt.ids)


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["latency", "fidelity"])
def test_other_measures_of_separate_turns(tmp_path, measure):
    task = {"name": "scbench", "tasks": ["scbench_kv"], "substitute_tokens": 512, "samples": 1}
    method = {"name": "quest", "dense_layers": []}
    config = {"protocol": TALK, "measure": {"name": measure, "steps": 4}, "method": method}
    outcome, rows = run(tmp_path, tmp_path / "r", task, budget="50%", **config)
    assert outcome["failed"] == {} and len(rows) == 3
    assert ("fidelity" in rows[0]) == (measure == "fidelity")


def test_bad_records_are_named_by_file_line_and_turn(tmp_path):
    def turns(kind="scbench_kv", /, **changes):
        made = record(kind)
        made["multi_turns"][1] |= changes
        return json.dumps(made)

    bad = {
        "scbench_kv": {
            "{": "not JSON",
            json.dumps(record("scbench_kv", multi_turns=[])): "'multi_turns' must be",
            json.dumps(record("scbench_kv", multi_turns=[3])): "turn 1: not an object",
            json.dumps(record("scbench_kv", context=3)): "'context'",
            turns(input=3): "turn 2: 'input'",
            turns(answer=3): "turn 2: 'answer' is missing or not a string",
        },
        "scbench_choice_eng": {
            turns("scbench_choice_eng", options=["a"]): "turn 2: 'options'",
            turns("scbench_choice_eng", answer="q"): "turn 2: 'answer' is none of",
        },
        "scbench_mf": {
            turns("scbench_mf", input="q"): "turn 2: 'input' asks for no number",
            turns("scbench_mf", answer="x"): "turn 2: 'answer' must be a number",
        },
        "scbench_repoqa_and_kv": {
            turns("scbench_repoqa_and_kv", task="x"): "turn 2: 'task' is 'x', not one of",
        },
        "scbench_repoqa": {turns("scbench_repoqa", name=None): "turn 2: 'name'"},
    }
    for task, lines in bad.items():
        write(tmp_path / "scbench" / f"{task}.jsonl", *lines)
        _, found = samples(tmp_path, "scbench", tasks=[task])
        for number, (sample, words) in enumerate(zip(found, lines.values(), strict=True), 1):
            assert f"{task}.jsonl line {number}: " in sample.error and words in sample.error


def test_functions_of_a_repository_come_from_all_its_records(tmp_path):
    code = "def f(rows):\n    return sum(rows) + {}\n"
    first, second = record("scbench_repoqa"), record("scbench_repoqa")
    for made, numbers in ((first, (1, 2)), (second, (3, 4))):
        for turn, number in zip(made["multi_turns"], numbers, strict=True):
            turn |= {"answer": code.format(number), "name": f"step_{number}"}
    write(tmp_path / "scbench" / "scbench_repoqa.jsonl", first, second)
    task, (one, two) = samples(tmp_path, "scbench", tasks=["scbench_repoqa"])
    assert task.score(one, code.format(1)) == 1 and task.score(one, code.format(3)) == 0
    assert task.score(two.turns(9)[1], code.format(4)) == 1


@pytest.mark.parametrize("task", TASKS)
def test_substitutes_have_the_schema_and_their_answers_score(tmp_path, task):
    builder, made, found = substitutes(tmp_path, "scbench", task)
    for sample in found:
        turns = sample.turns(9)
        assert not sample.error and len(turns) == 5
        for turn in turns:
            answer = turn.references[-1] if task == "scbench_choice_eng" else turn.gold
            assert made.score(turn, answer) == 1, (turn.meta, answer)
        assert 1500 < builder.encode(sample).num_tokens < 2700


def test_nothing_fetched_runs_on_labelled_substitutes(tmp_path):
    task = {"name": "scbench", "samples": 1, "substitute_tokens": 600}
    outcome, rows = run(tmp_path, tmp_path / "r", task)
    assert outcome["failed"] == {} and [row["task"] for row in rows] == list(TASKS)
    assert all(row["meta"]["stand_in"] and row["status"] == "ok" for row in rows)
    assert "substitute data" in caption(ResultStore(tmp_path / "r").columns())
