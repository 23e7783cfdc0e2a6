"""InfiniteBench: official rules by hand, prompts, truncation, bad records, substitutes."""

from __future__ import annotations

import json
import re

import pytest

from retrobench.report.tables.scores import caption
from retrobench.store.results import ResultStore
from retrobench.tasks.infinitebench.task import NEW_TOKENS
from retrobench.tasks.scorers.infinitebench import TASKS, score
from retrobench.tasks.scorers.rouge_lsum import rouge_lsum
from retrobench.tasks.scoring import score_case
from tests.benchmarks import prompt, run, samples, substitutes, write


@pytest.mark.parametrize(
    ("task", "prediction", "references", "expected"),
    [
        # the first run of digits, whole
        ("passkey", "It is 71432.", ["71432"], 1),
        ("passkey", "71432 or 1", ["71432"], 1),
        ("passkey", "1 or 71432", ["71432"], 0),
        ("passkey", "714321", ["71432"], 0),
        ("number_string", "", ["12"], 0),
        # the value as a word between blanks and the listed marks
        ("kv_retrieval", '"ab-1": "cd-2"', ["cd-2"], 1),
        ("kv_retrieval", "cd-2)", ["cd-2"], 0),
        ("kv_retrieval", "xcd-2", ["cd-2"], 0),
        # a letter at the start decides
        ("longbook_choice_eng", " B. the lake", ["the lake", "B"], 1),
        ("longbook_choice_eng", "Because of C", ["the lake", "B"], 1),  # its first letter
        ("longbook_choice_eng", "the lake", ["the lake", "B"], 1),
        ("longbook_choice_eng", "I say the answer is: B", ["the lake", "B"], 1),
        ("longbook_choice_eng", "I say the answer is:", ["the lake", "B"], 0),
        ("longbook_choice_eng", "I say the answer is the lake", ["the lake", "B"], 1),
        ("longbook_choice_eng", "is it B or C", ["the lake", "B"], 1),
        ("longbook_choice_eng", "is it BC", ["the lake", "B"], 0),  # "BC" is a word of "ABCD"
        ("longbook_choice_eng", "", ["the lake", "B"], 0),
        # token F1: 1 of 2 words right, 1 of 1 found
        ("longbook_qa_eng", "The old lake!", ["a lake", "x"], 2 / 3),
        # character F1: 2 common; 3 given, 2 wanted
        ("longbook_qa_chn", "青石镇。", ["青石"], 2 * (2 / 3) / (2 / 3 + 1)),
        # the first reference, as a word in capitals
        ("longdialogue_qa_eng", "It is Anna!", ["ANNA", "BORIS"], 1),
        ("longdialogue_qa_eng", "Boris", ["ANNA", "BORIS"], 0),
        ("longdialogue_qa_eng", "old sam", ["OLD SAM"], 0),
        # the first number; whole and decimal references differ
        ("math_find", "It is 12, not 7", ["12"], 1),
        ("math_find", "-12", ["12"], 1),
        ("math_find", "12.0", ["12"], 0),
        ("math_find", "12", ["12.0"], 1),
        ("math_find", "none", ["12"], 0),
        # right in a row from the first; a sign is not read
        ("math_calc", "[3, 5, 9, 4]", ["3", "5", "8", "4"], 2 / 4),
        ("math_calc", "-3 5 8 4 7", ["3", "5", "8", "4"], 1),
        ("math_calc", "", ["3"], 0),
        # the last word
        ("code_run", "so it is `-7`.", ["-7"], 1),
        ("code_run", "-7 it is", ["-7"], 0),
        ("code_run", "7.5", ["5"], 1),  # the point is a blank
        ("code_run", "...", ["5"], 0),
        # a letter with a mark at the start, or behind a prefix
        ("code_debug", "B. total_1", ["total_1", "B"], 1),
        ("code_debug", "B", ["total_1", "B"], 0),
        ("code_debug", "The correct option is: B", ["total_1", "B"], 1),
        ("code_debug", "The answer is: Option `total_1`", ["total_1", "B"], 1),
        ("code_debug", "The answer is: total_1", ["total_1", "B"], 1),
        ("code_debug", "The answer is: A, B", ["total_1", "B"], 0),
        ("code_debug", "answer:", ["total_1", "B"], 0),
    ],
)
def test_the_rules_by_hand(task, prediction, references, expected):
    assert score(task, prediction, references) == pytest.approx(expected)
    case = {"benchmark": "infinitebench", "task": task, "prediction": prediction}
    assert score_case({**case, "references": references}) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "reference", "hits", "given", "wanted"),
    [
        ("a b c", "a b c", 3, 3, 3),
        ("A-b", "a b c", 2, 2, 3),
        ("c b a", "a b c", 1, 3, 3),  # one line: one word in order
        ("c\nb\na", "a b c", 3, 3, 3),  # three lines, each matched with the whole
        ("a a", "a b", 1, 2, 2),
        ("a", "a\na", 1, 1, 2),  # no word of the answer counts twice
        ("a c", "a b\nb c", 2, 2, 4),
        ("", "a", 0, 1, 1),
        ("\n \n...", "a", 0, 1, 1),
    ],
)
def test_rouge_lsum_by_hand(prediction, reference, hits, given, wanted):
    recall, precision = hits / wanted, hits / given
    expected = 2 * recall * precision / (recall + precision) if hits else 0
    assert rouge_lsum(prediction, [reference]) == pytest.approx(expected)
    assert rouge_lsum(prediction, [reference, "zz"]) == pytest.approx(expected)
    assert score("longbook_sum_eng", prediction, [reference]) == pytest.approx(expected)


RECORDS = {
    "passkey": ({"input": "What is the pass key?", "answer": ["71432"]}, ("71432",)),
    "kv_retrieval": ({"input": 'Key: "a"', "answer": "b"}, ("b",)),
    "longbook_qa_eng": ({"input": "Who?", "answer": ["Ada", "Ada L."]}, ("Ada", "Ada L.")),
    "longbook_choice_eng": (
        {"input": "Who?", "answer": ["r"], "options": ["p", "q", "r", "s"]},
        ("r", "C"),
    ),
    "math_find": ({"input": "The largest number of the list is:", "answer": 12.0}, ("12.0",)),
    "math_calc": ({"input": "", "answer": [[3, 5]]}, ("3", "5")),
    "code_run": ({"input": "... value of func_1(-4).", "answer": [7]}, ("7",)),
    "code_debug": (
        {"input": "", "answer": ["f", "A"], "options": ["f", "g", "h", "i"]},
        ("f", "A"),
    ),
}
TEXTS = {
    "passkey": (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
        "it. I will quiz you about the important information.\n\nCONTEXT {x}",
        "\n\nWhat is the pass key?\n\nThe pass key is",
    ),
    "kv_retrieval": (
        "Extract the value corresponding to the specified key in the JSON object below.\n\n"
        "CONTEXT {x}",
        '\n\nKey: "a"',
    ),
    "longbook_qa_eng": (
        "Read the book and answer the question. Be very concise in your answer.\n\nCONTEXT {x}",
        "\n\nQuestion: Who?\nAnswer:",
    ),
    "longbook_choice_eng": (
        "Read the book and answer the question.\n\nCONTEXT {x}",
        "\n\nQuestion: Who?\nA. p\nB. q\nC. r\nD. s\n\nThe letter of the correct answer is",
    ),
    "math_find": (
        "What is the largest number in the following list?\n\nCONTEXT {x}",
        "\n\nThe largest number of the list is:",
    ),
    "math_calc": (
        "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\n"
        "Values: [1, 4, 8]\n\nExpression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\n"
        "Expression: CONTEXT {x}",
        "\nValues:",
    ),
    "code_run": (
        "There is a function called func_1 in the following Python code.\n\nCONTEXT {x}",
        "\n\nPlease compute the exact value of func_1(-4). The value of func_1(-4) is",
    ),
    "code_debug": (
        "Following is a Python code where exactly one of the functions/methods has a deliberate "
        "error that makes it crash.\n\nCONTEXT {x}",
        "\n\nOptions:\nA. f\nB. g\nC. h\nD. i\n\nThe correct option is:",
    ),
}


@pytest.mark.parametrize("task", RECORDS)
def test_prompts_are_the_official_ones(tmp_path, task):
    fields, references = RECORDS[task]
    record = {"id": 3, "context": "CONTEXT {x}", "options": [], **fields}
    write(tmp_path / "infinitebench" / f"{task}.jsonl", record)
    _, (sample,) = samples(tmp_path, "infinitebench", tasks=[task])
    assert (sample.context, sample.question) == TEXTS[task]
    assert sample.references == references and not sample.error
    assert sample.max_new_tokens == NEW_TOKENS[task] and sample.meta["chat"] is False


def test_a_long_prompt_keeps_equal_halves_decoded_together(tmp_path):
    fields, _ = RECORDS["longbook_qa_eng"]
    text = " ".join(f"w{i}" for i in range(2000))
    write(tmp_path / "infinitebench" / "longbook_qa_eng.jsonl", {"context": text, **fields})
    builder = prompt()
    options = {"tasks": ["longbook_qa_eng"], "max_prompt_tokens": 501}
    _, (sample,) = samples(tmp_path, "infinitebench", builder, **options)
    encoded = builder.encode(sample)
    ids = builder.tokenizer(sample.user_text).input_ids
    kept = builder.tokenizer.decode(ids[:250] + ids[-250:], skip_special_tokens=True)
    assert encoded.ids == [*builder.start_ids, *builder.tokens(kept)] and encoded.truncated
    assert builder.encode(sample).tail.endswith("\n\nQuestion: Who?\nAnswer:")


def test_bad_records_are_named_by_file_and_line(tmp_path):
    choice = {"context": "c", "input": "q", "options": ["p", "q", "r", "s"], "answer": ["p"]}
    bad = {
        "longbook_choice_eng": {
            "{": "not JSON",
            json.dumps({**choice, "options": ["p"]}): "'options' must be",
            json.dumps({**choice, "answer": ["x"]}): "'answer' is none of",
            json.dumps({**choice, "answer": []}): "'answer' must be",
            json.dumps({**choice, "context": 3}): "'context'",
        },
        "code_run": {
            json.dumps({"context": "c", "input": "q", "answer": [1]}): "names no call",
            json.dumps({"context": "c", "input": "func_1(2)", "answer": ["x"]}): "a number",
            json.dumps({"context": "c", "input": "func_1(2)", "answer": [True]}): "'answer' must",
        },
        "math_find": {
            json.dumps({"context": "c", "input": "q", "answer": 1}): "asks for no number"
        },
    }
    for task, lines in bad.items():
        write(tmp_path / "infinitebench" / f"{task}.jsonl", *lines)
        _, found = samples(tmp_path, "infinitebench", tasks=[task])
        assert len(found) == len(lines)
        for number, (sample, words) in enumerate(zip(found, lines.values(), strict=True), 1):
            assert f"{task}.jsonl line {number}: " in sample.error and words in sample.error


@pytest.mark.parametrize("task", TASKS)
def test_substitutes_have_the_schema_and_their_answer_scores(tmp_path, task):
    builder, made, found = substitutes(tmp_path, "infinitebench", task)
    for sample in found:
        assert not sample.error
        answers = [", ".join(sample.references)] if task == "math_calc" else sample.references
        if task in ("code_debug", "longbook_choice_eng"):
            answers = [f"{sample.references[1]}."]
        assert made.score(sample, answers[0]) == 1, sample
        tokens = builder.encode(sample).num_tokens + min(sample.max_new_tokens, 1024)
        assert 1200 < tokens < 2600, tokens


def test_the_answers_of_computed_substitutes_are_right(tmp_path):
    _, found = samples(tmp_path, "infinitebench", tasks=["math_calc"])
    for sample in found:
        terms = sample.context.split("Expression: ")[-1].replace("- ", "-").replace("+ ", "")
        numbers = [int(term) for term in terms.split()]
        sums = [sum(numbers[: i + 1]) for i in range(1, len(numbers))]
        assert [int(text) for text in sample.references] == sums and min(sums) > 0
    _, found = samples(tmp_path, "infinitebench", tasks=["code_run"])
    for sample in found:
        names: dict = {}
        exec(sample.context.split("Python code.")[1], names)
        call = re.search(r"func_\d+\(\d+\)", sample.question).group()
        assert str(eval(call, names)) == sample.references[0]


def test_nothing_fetched_runs_on_labelled_substitutes(tmp_path):
    task = {"name": "infinitebench", "samples": 1, "substitute_tokens": 1024}
    outcome, rows = run(tmp_path, tmp_path / "r", task)
    assert outcome["failed"] == {} and [row["task"] for row in rows] == list(TASKS)
    assert all(row["meta"]["stand_in"] and row["status"] == "ok" for row in rows)
    assert "substitute data" in caption(ResultStore(tmp_path / "r").columns())
