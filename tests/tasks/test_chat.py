"""Templates show a fixed day; think blocks are left out of prompts and answers where asked."""

from __future__ import annotations

import dataclasses
from datetime import datetime

import pytest
from transformers.utils import chat_template_utils

from retrobench.core.spec import parse
from retrobench.engine import loader
from retrobench.run.plan import prompt_builder
from retrobench.store.results import ResultStore
from retrobench.tasks.chat import DATE, ChatTemplate, open_mark, without_thinking
from retrobench.tasks.prompt import PromptBuilder
from tests.e2e.test_run import job
from tests.tasks.test_prompt import TURNS, build, plain, sample

TURN = [{"role": "user", "content": "Hi"}]
LLAMA32 = (
    "\n{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
    "{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "Today: {{ date_string }}\n" + TURNS
)
LLAMA31 = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
INSIDE = "{% macro head(f) %}{{ strftime_now(f) }}{% endmacro %}{{ head('%Y-%m-%d') }}" + TURNS
THINKS = TURNS + "<think>\n"
SWITCH = TURNS + (
    "<think>\n{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '\n</think>\n\n' }}{% endif %}"
)
OTHER = (
    TURNS + "{% if thinking is defined and thinking is false %}</think>{% else %}<think>{% endif %}"
)


def tokenizer_with(template):
    tokenizer = build("bos by neither")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("template", [LLAMA32, INSIDE])
@pytest.mark.parametrize("day", ["2024-07-26", "2025-01-03"])
def test_a_template_with_a_date_renders_as_on_that_day(template, day, monkeypatch):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(day)

    tokenizer = tokenizer_with(template)
    found = ChatTemplate(tokenizer, day).render(TURN)
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    expected = tokenizer.apply_chat_template(TURN, tokenize=False, add_generation_prompt=True)
    assert found == expected and day[:4] in found


@pytest.mark.parametrize(
    "code",
    ["%A %a %B %b", "%-d.%-m.%y", "%d/%m/%Y", "%H:%M:%S %p", "%j %U %F", "day 100%%", "plain"],
)
def test_the_stopped_clock_knows_the_codes_of_strftime(code):
    tokenizer = tokenizer_with("{{ strftime_now('" + code + "') }}")
    shown = ChatTemplate(tokenizer, "2025-03-09").render(TURN)
    assert shown == datetime(2025, 3, 9).strftime(code)


def test_the_day_is_in_the_key_only_where_prompts_show_it():
    def identity(template, day):
        return PromptBuilder(tokenizer_with(template), chat_date=day).identity

    for day in (DATE, "2025-01-03"):
        assert identity(TURNS, day) == {}
        assert identity(LLAMA32, day) == identity(INSIDE, day) == {"chat_date": day}
    assert identity(LLAMA31 + "{{ date_string }}" + TURNS, DATE) == {}  # as it always was
    other = identity(LLAMA31 + "{{ date_string }}" + TURNS, "2025-01-03")
    assert other == {"chat_date": "2025-01-03"}
    builders = [PromptBuilder(tokenizer_with(LLAMA32), chat_date=d) for d in (DATE, "2025-01-03")]
    assert len({builder.tokenizer_id for builder in builders}) == 2
    assert PromptBuilder(tokenizer_with(LLAMA32), chat=False).identity == {}


def test_a_day_that_is_none_is_refused():
    with pytest.raises(
        ValueError, match=r"model: chat_date=26 Jul 2024: write a day as YYYY-MM-DD"
    ):
        parse(loader.ModelConfig, {"name": "tiny", "chat_date": "26 Jul 2024"}, "model")
    assert loader.ModelConfig().chat_date == DATE


def test_an_open_think_block_is_said_or_closed_or_stripped():
    asked = sample()
    text = "<|user|>The sky is blue. Is it?<|end|><|assistant|>"
    thinking = PromptBuilder(tokenizer_with(SWITCH)).encode(asked)
    assert "inside an open <think> block" in thinking.warning
    assert thinking.ids == plain(tokenizer_with(SWITCH), text + "<think>\n It is")
    off = PromptBuilder(tokenizer_with(SWITCH), thinking="off")
    assert off.encode(asked).ids == plain(off.tokenizer, text + "<think>\n\n</think>\n\n It is")
    assert off.encode(asked).warning == "" and off.identity == {"thinking": "off"}
    strip = PromptBuilder(tokenizer_with(SWITCH), thinking="strip")
    encoded = strip.encode(asked)
    assert encoded.ids == plain(strip.tokenizer, text + "<think>\n")
    assert "prefix is left out" in encoded.warning
    assert strip.follow_up(asked) == plain(
        strip.tokenizer, "<|end|><|user|>Is it?<|end|><|assistant|><think>\n"
    )
    raw = strip.encode(sample(meta={"chat": False}))
    assert raw.warning == "" and raw.ids == plain(strip.tokenizer, asked.user_text + " It is")


@pytest.mark.parametrize("template", [TURNS, OTHER])
def test_thinking_off_is_no_error_where_nothing_is_opened(template):
    assert PromptBuilder(tokenizer_with(template), thinking="off").encode(sample()).warning == ""


def test_thinking_off_is_refused_where_the_template_cannot():
    with pytest.raises(ValueError, match="opens <think> in every answer.*model.thinking=strip"):
        PromptBuilder(tokenizer_with(THINKS), thinking="off")
    assert PromptBuilder(tokenizer_with(THINKS), thinking="off", chat=False).identity == {}


@pytest.mark.parametrize("special", [False, True])
def test_an_answer_without_its_thought(special):
    tokenizer = tokenizer_with(THINKS)
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
    ids = plain(tokenizer, "so 4?</think>\n\nIt is 5<|end|>")
    endless = plain(tokenizer, "so 4? or 5 or")
    strip = PromptBuilder(tokenizer, thinking="strip")
    assert strip.answer(ids) == "It is 5" and strip.answer(endless) == ""
    assert strip.answer(endless, chat=False) == "so 4? or 5 or"
    assert strip.answer(plain(tokenizer, "<think>4?</think>5"), chat=False) == "5"
    assert strip.answer(plain(tokenizer, "<think>4?"), chat=False) == ""
    kept = tokenizer.decode(ids, skip_special_tokens=True)
    assert PromptBuilder(tokenizer).answer(ids) == kept and "so 4?" in kept
    stop = strip.stopper(sample(stop=("4", "5")))
    assert stop is not None and stop(ids) and not stop(endless)
    assert strip.stopper(sample()) is None


def test_think_marks():
    assert open_mark("a <think> b </think> c") == "" and open_mark("[THINK] a") == "[THINK]"
    assert without_thinking("<think>a</think>\n\nb [THINK]c[/THINK]d") == "b d"
    assert (
        without_thinking("b <thought>c") == "b " and without_thinking("plain </b>") == "plain </b>"
    )


def test_a_models_options_reach_its_prompts():
    model = loader.ModelConfig(name="constructed", source="constructed")
    assert prompt_builder(model).identity == {}
    options = {"chat_template": SWITCH, "thinking": "off", "chat_date": "2025-01-03"}
    builder = prompt_builder(dataclasses.replace(model, **options))
    assert builder.identity == {"thinking": "off"}
    assert "</think>" in builder.tokenizer.decode(builder.encode(sample()).ids)


def test_rows_warn_of_an_open_think_block_and_thinking_is_in_the_key(tmp_path):
    task = {"name": "ruler", "tasks": ["niah_single_1"], "length": 600, "samples": 1}
    keys = set()
    for thinking, words in (("auto", "inside an open <think>"), ("strip", "left out"), ("off", "")):
        model = {"name": "constructed", "source": "constructed", "chat_template": SWITCH}
        model["thinking"] = thinking
        outcome = job(tmp_path, model=model, method={"name": "full"}, task=task)
        (row,) = ResultStore(tmp_path).read(outcome["key"]).rows.values()
        assert row["status"] == "ok"
        assert words in row["warning"] if words else "warning" not in row
        about = ResultStore(tmp_path).cell(outcome["key"])["cell"]["model"]
        assert about.get("thinking", "auto") == thinking and "chat_date" not in about
        keys.add(outcome["key"])
    assert len(keys) == 3
