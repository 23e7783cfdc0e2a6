"""The shipped trained weights: they load without a network and answer."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM

from retrobench.cli import app as cli
from retrobench.core.spec import parse
from retrobench.engine import loader
from retrobench.engine.embedded import build_tokenizer
from retrobench.engine.loader import ModelConfig
from retrobench.store.results import ResultStore


@cache
def tiny():
    return loader.load(parse(ModelConfig, {"name": "tiny", "source": "tiny"}, "model"))


def test_the_stored_tokenizer_is_the_embedded_one():
    text = "VAR ABCDE = 12345\nThe grass is green. 1c9ccdd7-5d7f-4d0e-9b7d-7e7f0e7c1a11"
    assert tiny().tokenizer.tokenize(text) == build_tokenizer().tokenize(text)
    assert tiny().tokenizer("a").input_ids[0] == tiny().tokenizer.bos_token_id


def test_the_weights_are_small_and_whole():
    size = (loader.TINY_DIR / "model.safetensors").stat().st_size
    assert size <= 20e6
    assert all(torch.isfinite(p).all() for p in tiny().model.parameters())
    assert tiny().model.dtype == torch.float32


PROMPTS = {
    "One of the lucky codes for green-apple is: 4711237. The sky was wide and calm. One of the "
    "lucky codes for dark-horse is: 9020155.\nWhat is the lucky code for green-apple given in the "
    "text? The lucky code for green-apple given in the text is": "green-apple is: 4711237.",
    "The secret value of bold-river is 5552310. The secret value of calm-river is 8710944.\nWhich "
    "secret value was for calm-river? The secret value for calm-river is": "8710944.",
    "\n\nDocument 1:\nThe market of Bacada opened in 1743. The sky was wide.\n\nDocument 2:\nThe "
    "market of Rano opened in 1651. The sky was wide.\n\nQuestion: In what year did the market of "
    "Rano open? Answer:": "Rano opened in 1651",
}


@pytest.mark.parametrize("prompt", sorted(PROMPTS))
@torch.inference_mode()
def test_fixed_prompts_give_the_stored_answers(prompt):
    model = AutoModelForCausalLM.from_pretrained(loader.TINY_DIR, dtype=torch.float32).eval()
    tokenizer = tiny().tokenizer
    ids = torch.tensor([tokenizer(prompt).input_ids])
    output = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(output, skip_special_tokens=True).strip() == PROMPTS[prompt]


def scores(method, tmp_path):
    raw = {
        "model": {"name": "tiny", "source": "tiny"},
        "method": {"name": method},
        "task": {"name": "ruler", "tasks": ["niah_single_2", "niah_multivalue"]},
        "protocol": {"name": "query_aware"},
        "measure": {"name": "score"},
        "results_dir": str(tmp_path),
        "progress": False,
    }
    raw["task"] |= {"length": 4096, "samples": 2}
    cli.run_job(raw)
    return ResultStore(tmp_path).frame().set_index("sample")


def test_scores_at_4k_and_the_random_control(tmp_path):
    full, random = scores("full", tmp_path / "full"), scores("random", tmp_path / "random")
    assert full["score"].sum() >= 3
    assert random["score"].sum() == 0


def test_every_cache_of_retroinfer_gives_the_same_tokens(tmp_path):
    """On real keys: the page cache is an implementation, not an approximation."""
    answers, hits = {}, {}
    for manager in ("none", "host", "device"):
        raw = {
            "model": {"name": "tiny", "source": "tiny"},
            "method": {"name": "retroinfer", "cache": manager, "overlap": manager == "host"},
            "task": {
                "name": "ruler",
                "tasks": ["niah_single_1", "niah_single_2", "niah_multikey_1"],
            },
            "results_dir": str(tmp_path),
            "progress": False,
        }
        raw["task"] |= {"length": 2048, "samples": 1}
        outcome = cli.run_job(raw)
        rows = ResultStore(tmp_path).read(outcome["key"]).rows
        answers[manager] = {sample: row["prediction"] for sample, row in rows.items()}
        hits[manager] = [row["live"]["hit_ratio"] for _, row in sorted(rows.items())]
    assert answers["none"] == answers["host"] == answers["device"]
    assert len(answers["none"]) == 3 and any(answers["none"].values())
    assert hits["none"] == [None] * 3
    assert hits["host"] == hits["device"] and min(hits["host"]) > 0
