"""The model of lm-evaluation-harness: exact log-likelihoods, stop strings, a local task."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("lm_eval", reason="pip install 'retrobench[lm-eval]'")

from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from retrobench.engine.embedded import load_constructed
from retrobench.integrations.lm_eval import RetrobenchLM
from retrobench.tasks.prompt import PromptBuilder
from tests.tasks.test_prompt import KINDS, build, plain

FACT = "The special magic number for apple is 4071365."
TEXT = "The grass is green. The sky is blue. " * 60


def requests(kind, *arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=entry, idx=i)
        for i, entry in enumerate(arguments)
    ]


def naive(lm, context, continuation):
    """Log-likelihood by one plain forward pass of the whole text."""
    ids, after = lm._encode_pair(context, continuation)
    plain = load_constructed(torch.float32)[0]
    with torch.inference_mode():
        logits = plain(torch.tensor([[*ids, *after]])).logits[0]
    logprobs = logits[len(ids) - 1 : -1].float().log_softmax(-1)
    target = torch.tensor(after)
    total = logprobs.gather(-1, target[:, None]).sum()
    return float(total), bool((logprobs.argmax(-1) == target).all())


@pytest.mark.parametrize("protocol", ["query_aware", "decode_tail"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_full_attention_gives_the_exact_log_likelihoods(protocol, batch_size):
    lm = RetrobenchLM(model="constructed", method="full", protocol=protocol, batch_size=batch_size)
    pairs = [(TEXT[:200] + FACT, " 40"), (FACT, " The sky is blue."), (TEXT, " The"), (FACT, " x")]
    found = lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    for (total, greedy), (context, continuation) in zip(found, pairs, strict=True):
        expected, best = naive(lm, context, continuation)
        assert total == pytest.approx(expected, abs=2e-3) and greedy == best


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_have_the_ids_of_the_rendered_template(kind):
    lm = RetrobenchLM(model="constructed", method="full")
    lm.tokenizer = build(kind)
    lm._prompt = PromptBuilder(lm.tokenizer)
    before = KINDS[kind][0].partition("$0")[0].split()
    start = [lm.tokenizer.convert_tokens_to_ids(mark) for mark in before]
    assert lm.tok_encode("The sky") == [*start, *plain(lm.tokenizer, "The sky")]
    assert lm._encode_pair("The sky", " is")[0] == lm.tok_encode("The sky")
    turn = [{"role": "user", "content": "Is it?"}]
    text = lm.apply_chat_template(turn)
    own = lm.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert lm.tok_encode(text) == own and sum(lm._encode_pair(text, "It"), [])[: len(own)] == own
    lm.chat_template(False)
    assert lm.tok_encode("The sky") == [*start, *plain(lm.tokenizer, "The sky")]
    lm.chat_template(True)
    assert lm.tok_encode(text) == own


def test_a_continuation_goes_through_the_method():
    pair = requests("loglikelihood", (TEXT + FACT, " 4071365"))
    full = RetrobenchLM(model="constructed", method="full")
    sparse = RetrobenchLM(model="constructed", method="streaming", budget="80tok")
    found = [lm.loglikelihood(pair, disable_tqdm=True)[0][0] for lm in (full, sparse)]
    assert abs(found[0] - found[1]) > 1e-3
    info = sparse.get_model_info()["retrobench"]
    assert info["method"]["name"] == "streaming" and info["attended_tokens"] < 130
    assert info["protocol"]["name"] == "decode_tail"


def test_rolling_windows_predict_every_token_once():
    lm = RetrobenchLM(model="constructed", method="full", **{"model.max_context_tokens": 64})
    text = TEXT[:600]
    (total,) = lm.loglikelihood_rolling(
        requests("loglikelihood_rolling", (text,)), disable_tqdm=True
    )
    ids = lm.tok_encode(text, add_special_tokens=False)
    assert len(ids) > 2 * 64 and total < 0


def test_answers_as_long_as_the_context_are_refused():
    lm = RetrobenchLM(model="constructed", method="full", **{"model.max_context_tokens": 64})
    asked = requests("generate_until", (TEXT, {"until": ["."], "max_gen_toks": 64}))
    with pytest.raises(ValueError, match="64 new tokens leave no room"):
        lm.generate_until(asked, disable_tqdm=True)


def test_top_k_is_used_and_what_is_not_is_said(caplog):
    lm = RetrobenchLM(model="constructed", method="full")
    wild = {"do_sample": True, "temperature": 50.0, "top_k": 1, "num_beams": 2}
    asked = [{"until": ["."], "max_gen_toks": 12, **more} for more in ({}, wild)]
    greedy, same = lm.generate_until(
        requests("generate_until", *((TEXT, options) for options in asked)), disable_tqdm=True
    )
    assert same == greedy and "not used: num_beams" in caplog.text


def test_wrong_options_say_what_to_do():
    for options, words in (
        ({"method": "retroinfr"}, "did you mean retroinfer"),
        ({"protocol": "query_agnostic"}, "no separate question"),
        ({"batch_size": "auto"}, "give a number"),
    ):
        with pytest.raises(ValueError, match=words):
            RetrobenchLM(**{"model": "constructed", "method": "full", **options})


def test_a_local_task_runs_under_a_method(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    docs = [
        {"text": TEXT, "choices": ["blue", "4071365"], "gold": 0},
        {"text": TEXT, "choices": ["blue", "grass"], "gold": 0},
    ]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    shared = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/docs.jsonl}}}}
test_split: test
doc_to_text: "{{{{text}}}}The sky is"
"""
    (tmp_path / "sky_choice.yaml").write_text(
        f"""task: sky_choice
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}]
{shared}"""
    )
    (tmp_path / "sky_answer.yaml").write_text(
        f"""task: sky_answer
output_type: generate_until
doc_to_target: blue
generation_kwargs: {{until: ["."], max_gen_toks: 8}}
metric_list: [{{metric: exact_match, ignore_case: true, ignore_punctuation: true}}]
filter_list: [{{name: strip, filter: [{{function: remove_whitespace}}, {{function: take_first}}]}}]
{shared}"""
    )
    found = simple_evaluate(
        model="retrobench",
        model_args="model=constructed,method=quest,budget=50%,method.page_tokens=8",
        tasks=["sky_choice", "sky_answer"],
        batch_size=2,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    assert found["config"]["retrobench"]["method"]["page_tokens"] == 8
    answers = [s["filtered_resps"][0] for s in found["samples"]["sky_answer"]]
    assert all(answer and "." not in answer for answer in answers)
    assert 0 <= found["results"]["sky_choice"]["acc,none"] <= 1
    assert len(found["samples"]["sky_choice"]) == 2
