"""MRCR: the card's score, conversations through chat templates, bins, bad records, substitutes."""

from __future__ import annotations

import json

import pytest

from retrobench.report.tables.scores import caption
from retrobench.store.results import ResultStore
from retrobench.tasks.scorers.mrcr import score
from retrobench.tasks.scoring import score_case
from tests.benchmarks import CHATML, prompt, run, samples, write

ALTERNATING = (
    "{% for turn in messages %}{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ turn['role'] }}: "
    "{{ turn['content'] }}\n{% endfor %}{% if add_generation_prompt %}model: {% endif %}"
)


def record(size=300, **changes):
    """The schema of the data set: two user messages first, then answers in turn."""
    filler = "one wide lake and its cold water " * size
    messages = [
        {"role": "user", "content": "Here are some examples."},
        {"role": "user", "content": "write a poem about lakes"},
        {"role": "assistant", "content": f"First. {filler}"},
        {"role": "user", "content": "write a poem about lakes"},
        {"role": "assistant", "content": f"Second. {filler}"},
        {"role": "user", "content": "Prepend aB3 to the 2nd (1 indexed) poem about lakes."},
    ]
    found = {
        "prompt": json.dumps(messages),
        "answer": f"aB3Second. {filler}",
        "random_string_to_prepend": "aB3",
        "n_needles": 2,
        "desired_msg_index": 3,
        "total_messages": 6,
        "n_chars": sum(len(message["content"]) for message in messages),
    }
    return {**found, **changes}


# ratio = 2 x characters matched / characters of both, behind the prefix
@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("Xy1abcd", "Xy1abcd", 1.0),
        ("Xy1abcd", "Xy1bcde", 2 * 3 / 8),
        ("Xy1", "Xy1", 1.0),  # nothing behind the prefix, twice
        ("Xy1", "Xy1abcd", 0.0),
        ("Xy1abXYcd", "Xy1abcd", 2 * 4 / 10),
        ("Xy1Xy1ab", "Xy1ab", 2 * 2 / 7),  # one prefix alone is taken off
        ("abcd", "Xy1abcd", 0.0),
        (" Xy1abcd", "Xy1abcd", 0.0),
        ("xy1abcd", "Xy1abcd", 0.0),
        ("", "Xy1abcd", 0.0),
    ],
)
def test_the_score_by_hand(prediction, answer, expected):
    assert score("2needle", prediction, [answer], "Xy1") == pytest.approx(expected)
    case = {"benchmark": "mrcr", "task": "2needle", "prefix": "Xy1", "references": [answer]}
    assert score_case({**case, "prediction": prediction}) == pytest.approx(expected)


def test_a_case_without_its_prefix_is_refused():
    case = {"benchmark": "mrcr", "task": "2needle", "prediction": "a", "references": ["a"]}
    with pytest.raises(ValueError, match="'prefix' is missing"):
        score_case(case)


def test_the_conversation_is_rendered_as_the_template_does(tmp_path):
    write(tmp_path / "mrcr" / "2needle.jsonl", record())
    builder = prompt(CHATML)
    _, (sample,) = samples(tmp_path, "mrcr", builder, needles=[2])
    encoded = builder.encode(sample)
    expected = builder.tokenizer.apply_chat_template(
        json.loads(record()["prompt"]), tokenize=False, add_generation_prompt=True
    )
    assert encoded.ids == builder.tokens(expected)
    before = builder.tokenizer.decode(encoded.ids[: encoded.context_tokens])
    assert before.rstrip().endswith("user") and "Second." in before
    assert "Prepend aB3" in builder.tokenizer.decode(encoded.ids[encoded.context_tokens :])


def test_roles_in_a_row_are_joined_where_they_must_alternate(tmp_path):
    write(tmp_path / "mrcr" / "2needle.jsonl", record())
    builder = prompt(ALTERNATING)
    _, (sample,) = samples(tmp_path, "mrcr", builder, needles=[2])
    text = builder.tokenizer.decode(builder.encode(sample).ids)
    assert "examples.\n\nwrite a poem about lakes" in text.replace("\n \n", "\n\n")


def test_a_base_model_reads_a_transcript(tmp_path):
    write(tmp_path / "mrcr" / "2needle.jsonl", record())
    builder = prompt()
    _, (sample,) = samples(tmp_path, "mrcr", builder, needles=[2])
    expected = (
        "User: Here are some examples.\n\nUser: write a poem about lakes\n\nAssistant: First."
    )
    text = builder.tokenizer.decode(builder.encode(sample).ids)
    assert text.removeprefix("<|bos|>").startswith(expected)
    assert builder.encode(sample).tail.endswith("poem about lakes.\n\nAssistant:")


@pytest.mark.parametrize("form", ["mrcr/2needle.parquet", "mrcr/2needle/2needle_0.parquet"])
def test_bins_count_the_answer_and_include_their_upper_end(tmp_path, form, monkeypatch):
    write(tmp_path / form, record(), record(size=1000), record(size=5))
    builder = prompt()
    task, found = samples(tmp_path, "mrcr", builder, needles=[2], length=[8192, 16384, 32768])
    assert [sample.id for sample in found] == ["2needle/0", "2needle/1"]
    raw = record()
    texts = [message["content"] for message in json.loads(raw["prompt"])] + [raw["answer"]]
    tokens = sum(builder.count(text) for text in texts)
    assert 4096 < tokens <= 8192 and found[0].length == 8192
    assert found[1].length > 16384 and task.notes() == ()
    assert len(task.fingerprint(builder)) == 16

    # Near an end every text is counted: here the first has all tokens.
    whole = " ".join(texts)[:20_000]
    for tokens, expected in ((4095, None), (4096, 8192), (8192, 8192), (8193, 16384)):
        share = tokens * len(whole) / sum(map(len, texts))
        counts = {whole: share, texts[0]: tokens}
        monkeypatch.setattr(builder, "count", lambda text, known=counts: known.get(text, 0))
        assert task._bin(texts, builder) == expected


def test_bad_records_are_named_by_file_and_line(tmp_path):
    bad = {
        "{": "not JSON",
        "[]": "not a JSON object",
        json.dumps(record(prompt="[")): "'prompt' is no JSON list",
        json.dumps(record(prompt="[3]")): "'prompt' is no JSON list",
        json.dumps(record(prompt="[]")): "'prompt' holds no messages",
        json.dumps(record(prompt='[{"role": "user", "content": 3}]')): "no text",
        json.dumps(record(prompt='[{"role": "assistant", "content": "a"}]')): "must end with",
        json.dumps(record(answer=3)): "'answer'",
        json.dumps(record(answer="other")): "does not start with",
    }
    write(tmp_path / "mrcr" / "2needle.jsonl", record(), *bad)
    task = {"name": "mrcr", "needles": [2], "max_new_tokens": 16}
    outcome, rows = run(tmp_path, tmp_path / "r", task)
    assert outcome["failed"] == {"error": len(bad)}
    messages = [row["message"] for row in rows if row["status"] == "error"]
    for number, (message, words) in enumerate(zip(messages, bad.values(), strict=True), 2):
        assert f"2needle.jsonl line {number}: " in message and words in message
    write(tmp_path / "other" / "mrcr" / "2needle.parquet", record(answer="x"))
    _, (sample,) = samples(tmp_path / "other", "mrcr", needles=[2])
    assert "2needle.parquet row 1: 'answer' does not start" in sample.error


def test_nothing_fetched_runs_on_labelled_substitutes(tmp_path):
    task = {"name": "mrcr", "samples": 1, "max_new_tokens": 16}
    outcome, rows = run(tmp_path, tmp_path / "r", task)
    assert outcome["failed"] == {} and len(rows) == 3
    assert {row["task"] for row in rows} == {"2needle", "4needle", "8needle"}
    assert all(row["meta"]["stand_in"] and row["length"] == 8192 for row in rows)
    assert "messages" in rows[0]["meta"] and "history" not in rows[0]
    assert "substitute data" in caption(ResultStore(tmp_path / "r").columns())
    with pytest.raises(ValueError, match=r"2needle.jsonl .*retrobench fetch mrcr"):
        samples(tmp_path, "mrcr", substitute=False)


@pytest.mark.parametrize("needles", [2, 4, 8])
def test_substitutes_hold_what_they_ask_for(tmp_path, needles):
    task, found = samples(tmp_path, "mrcr", needles=[needles], samples=3)
    _, one = samples(tmp_path, "mrcr", needles=[needles], samples=1)
    assert one == found[:1]  # more samples keep the first ones
    for sample in found:
        asked = sample.question.split("(1 indexed) ")[1].split(". Do not")[0]
        places = [
            i for i, turn in enumerate(sample.history) if turn == ("user", f"write a {asked}")
        ]
        assert len(places) == needles
        ordinal = int(sample.question.split(" to the ")[1][0]) - 1
        expected = sample.history[places[ordinal] + 1][1]
        assert sample.references == (sample.meta["prefix"] + expected,)
        assert task.score(sample, sample.references[0]) == 1.0
        others = [sample.history[place + 1][1] for place in places if place != places[ordinal]]
        assert all(task.score(sample, sample.meta["prefix"] + text) < 1 for text in others)
