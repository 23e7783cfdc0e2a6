"""BABILong: the official rule by hand, prompts, files, substitute worlds."""

from __future__ import annotations

import json
import random

import pytest

from retrobench.report.tables.scores import caption
from retrobench.store.results import ResultStore
from retrobench.tasks.babilong.worlds import WORLDS
from retrobench.tasks.scorers.babilong import LABELS, TASKS, score
from retrobench.tasks.scoring import score_case
from tests.benchmarks import prompt, run, samples, write


# The first sentence, in lower case, must name the target and no other label of the set, except
# those that the question names.
@pytest.mark.parametrize(
    ("task", "answer", "target", "question", "expected"),
    [
        ("qa1", "The most recent location of Mary is Garden.", "garden", "Where is Mary? ", 1),
        ("qa1", "garden or office", "garden", "Where is Mary? ", 0),
        ("qa1", "garden. Not the office.", "garden", "Where is Mary? ", 1),
        ("qa1", "It is. The garden.", "garden", "Where is Mary? ", 0),
        ("qa1", "gardens", "garden", "Where is Mary? ", 1),
        ("qa1", "garden<example>office", "garden", "Where is Mary? ", 1),
        ("qa1", "garden <context> office", "garden", "Where is Mary? ", 1),
        ("qa1", "garden Question: office", "garden", "Where is Mary? ", 0),  # cut too late
        ("qa1", "", "garden", "Where is Mary? ", 0),
        ("qa3", "Before the office it was in the garden", "garden", "... before the office? ", 1),
        ("qa4", "office", "office", "What is the office south of? ", 0),
        ("qa5", "Mary gave it to Bill", "Bill", "Who did Mary give the apple to? ", 1),
        ("qa6", "nothing", "no", "Is Mary in the office? ", 1),  # "no" inside a word
        ("qa7", "none", "none", "How many? ", 0),  # "one" inside "none" is another label
        ("qa8", "apple, milk", "apple,milk", "What is Daniel carrying? ", 1),
        ("qa8", "milk and apple", "apple,milk", "What is Daniel carrying? ", 1),
        ("qa8", "apple", "apple,milk", "What is Daniel carrying? ", 0),
        ("qa8", "apple, milk, football", "apple,milk", "What is Daniel carrying? ", 0),
        ("qa19", "n,e", "n,e", "How do you go? ", 1),
        ("qa19", "n,e,e", "n,e", "How do you go? ", 0),  # also names e,e
        ("qa19", "n, e", "n,e", "How do you go? ", 0),
        ("qa20", "hungry", "hungry", "Why did yann go to the kitchen? ", 1),
    ],
)
def test_the_rule_by_hand(task, answer, target, question, expected):
    assert score(task, answer, [target], question) == expected
    case = {"benchmark": "babilong", "task": task, "prediction": answer, "references": [target]}
    assert score_case({**case, "question": question}) == expected


def record(**changes):
    found = {"input": "  Mary went to the office. It rained. ", "target": "office"}
    return {**found, "question": "Where is Mary? ", **changes}


def test_the_prompt_is_the_official_one(tmp_path):
    write(tmp_path / "babilong" / "4k" / "qa1.jsonl", record())
    task, (sample,) = samples(tmp_path, "babilong", tasks=["qa1"])
    assert sample.user_text == (
        "I will give you context with the facts about positions of different persons hidden in "
        "some random text and a question. You need to answer the question based only on the "
        "information from the facts. If a person was in different locations, use the latest "
        "location to answer the question.\n\n"
        "<example>\nCharlie went to the hallway. Judith come back to the kitchen. Charlie "
        "travelled to balcony. Where is Charlie?\nAnswer: The most recent location of Charlie is "
        "balcony.\n</example>\n\n"
        "<example>\nAlan moved to the garage. Charlie went to the beach. Alan went to the shop. "
        "Rouse travelled to balcony. Where is Alan?\nAnswer: The most recent location of Alan is "
        "shop.\n</example>\n\n"
        "Always return your answer in the following format: The most recent location of "
        "’person’ is ’location’. Do not write anything else after that.\n\n"
        "<context>\nMary went to the office. It rained.\n</context>\n\nQuestion: Where is Mary?"
    )
    assert sample.question == "\n</context>\n\nQuestion: Where is Mary?"
    assert (sample.max_new_tokens, sample.length, task.notes()) == (20, 4000, ())
    assert task.score(sample, "office") == 1 and not sample.meta["stand_in"]


@pytest.mark.parametrize("form", ["json", "jsonl", "parquet"])
def test_bad_records_are_named_by_file_and_place(tmp_path, form):
    path = tmp_path / "babilong" / "8k" / f"qa2.{form}"
    entries = [record(), record(target=""), record(question=None)]
    write(path, *entries)
    if form == "json":
        path.write_text(json.dumps([*entries, 3]))
    _, found = samples(tmp_path, "babilong", tasks=["qa2"], lengths=["8k"])
    word = {"json": "item", "jsonl": "line", "parquet": "row"}[form]
    assert not found[0].error and found[0].task == "qa2"
    assert f"qa2.{form} {word} 2: 'target' is empty" in found[1].error
    assert f"qa2.{form} {word} 3: 'question' is missing" in found[2].error
    assert form != "json" or "item 4: not a JSON object" in found[3].error
    assert {sample.task for sample in found} == {"qa2"}
    assert len({sample.id for sample in found}) == len(found)


@pytest.mark.parametrize("task", TASKS)
def test_every_world_has_one_answer_among_the_labels(task):
    for seed in range(40):
        facts, question, target = WORLDS[task](random.Random(seed))
        assert facts and question.endswith("?") and all(fact.endswith(".") for fact in facts)
        labels = LABELS[task]
        parts = target.lower().split(",") if task == "qa8" else [target.lower()]
        assert set(parts) <= set(labels), target
        asked = {label for label in labels if label in question.lower()}
        assert not asked & set(parts), (question, target)
        if task not in ("qa7", "qa8"):  # "none" and "nothing" hold other labels
            assert score(task, target, [target], question) == 1
            others = [label for label in labels if label not in {*parts, *asked}]
            assert all(score(task, label, [target], question) == 0 for label in others)


def test_substitutes_hide_the_facts_in_order_at_the_length(tmp_path):
    builder = prompt()
    task, found = samples(tmp_path, "babilong", builder, tasks=["qa1"], lengths=["0k", "4k"])
    assert len(found) == 8 and task.notes() == ("substitute records, not those of babilong",)
    for index, sample in enumerate(found[4:]):
        rng = random.Random(f"42/babilong/4k/qa1/{index}")
        facts, _, target = WORLDS["qa1"](rng)
        text = sample.context.split("<context>")[-1]
        places = [text.index(fact) for fact in dict.fromkeys(facts)]
        assert places == sorted(places) and sample.references == (target,)
        assert 3900 < builder.count(text) < 4200
    assert all(builder.count(sample.context) < 500 for sample in found[:4])


def test_nothing_fetched_runs_on_labelled_substitutes(tmp_path):
    task = {"name": "babilong", "samples": 1}
    outcome, rows = run(tmp_path, tmp_path / "r", task)
    assert outcome["failed"] == {} and len(rows) == 5
    assert all(row["meta"]["stand_in"] and row["length"] == 4000 for row in rows)
    assert "substitute data" in caption(ResultStore(tmp_path / "r").columns())
