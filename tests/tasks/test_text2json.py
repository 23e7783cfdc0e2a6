"""Records in a long text: what is hidden, what is asked, exact field F1."""

from __future__ import annotations

import json

import pytest

from retrobench.tasks.scorers.text2json import score
from retrobench.tasks.scoring import score_case
from tests.benchmarks import prompt, run, samples

ONE = {"id": "P-1", "city": "Kiel", "weight_kg": 7}
TWO = {"id": "P-2", "city": "Kiel", "weight_kg": 9}
GOLD = [json.dumps(ONE), json.dumps(TWO)]  # 6 fields


@pytest.mark.parametrize(
    ("prediction", "right", "given"),
    [
        (json.dumps([ONE, TWO]), 6, 6),
        (json.dumps([TWO, ONE], indent=2), 6, 6),
        (f"Here:\n```json\n{json.dumps([ONE, TWO])}\n```", 6, 6),
        (json.dumps([ONE]), 3, 3),
        (json.dumps([ONE, TWO])[:-12], 3, 3),  # cut off in the second
        (json.dumps([ONE, {**TWO, "city": "Jena"}]), 5, 6),
        (json.dumps([{**ONE, "weight_kg": "7"}]), 3, 3),  # a number as text
        (json.dumps([{**ONE, "weight_kg": 7.0}]), 2, 3),
        (json.dumps([ONE, ONE]), 3, 6),  # twice
        (json.dumps([{**ONE, "note": "x"}]), 3, 4),
        (json.dumps([{**ONE, "id": "P-3"}]), 0, 3),  # fields of another record
        ('{"id": "P-1", city}{"id": "P-1"}', 1, 1),
        (json.dumps({"parcels": [ONE, TWO]}), 6, 6),
        ("[]", 0, 0),
        ("", 0, 0),
    ],
)
def test_field_f1_by_hand(prediction, right, given):
    precision, recall = right / max(given, 1), right / 6
    expected = 2 * precision * recall / (precision + recall) if right else 0
    assert score("parcels", prediction, GOLD) == pytest.approx(expected)
    case = {"benchmark": "text2json", "task": "parcels", "prediction": prediction}
    assert score_case({**case, "references": GOLD}) == pytest.approx(expected)


def test_every_record_stands_in_the_text_in_order_and_the_length_is_kept(tmp_path):
    builder = prompt()
    options = {"length": [4096, 8192], "records": 12, "samples": 2}
    task, found = samples(tmp_path, "text2json", builder, **options)
    assert [sample.id for sample in found] == [
        f"parcels/{n}/{i}" for n in (4096, 8192) for i in (0, 1)
    ]
    for sample in found:
        records = [json.loads(text) for text in sample.references]
        assert len({record["id"] for record in records}) == 12
        places = [sample.context.index(record["id"]) for record in records]
        assert places == sorted(places) and places[-1] - places[0] > len(sample.context) / 3
        for record, place in zip(records, places, strict=True):
            near = sample.context[max(0, place - 150) : place + 150]
            assert all(str(value) in near for value in record.values())
        answer = json.dumps(records, indent=1)
        assert task.score(sample, answer) == 1
        assert builder.count(answer) <= sample.max_new_tokens
        tokens = builder.encode(sample).num_tokens + sample.max_new_tokens
        assert 0.95 * sample.length < tokens <= sample.length + 1
    assert samples(tmp_path, "text2json", builder, **{**options, "samples": 1})[1][0] == found[0]


def test_too_many_records_name_the_option(tmp_path):
    _, (sample,) = samples(tmp_path, "text2json", length=[1024], records=100)
    assert "lower task.records" in sample.error


def test_it_runs(tmp_path):
    task = {"name": "text2json", "length": 1024, "records": 3}
    outcome, (row,) = run(tmp_path, tmp_path / "r", task)
    assert outcome["failed"] == {} and row["score"] == 0 and row["meta"]["stand_in"]
