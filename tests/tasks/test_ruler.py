"""RULER samples have the official structure and length; scores are the official ones."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import cache

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from retrobench.engine.embedded import build_tokenizer
from retrobench.tasks.prompt import PromptBuilder, PromptTooLong
from retrobench.tasks.ruler import RulerConfig, RulerTask, spec

CHAT = "{% for m in messages %}[U]{{ m.content }}[/U]{% endfor %}[A]"


@cache
def prompt(kind):
    """Tokenizers of words, of four characters, of bytes with a chat template; the embedded one."""
    if kind == "embedded":
        return PromptBuilder(build_tokenizer())
    if kind in {"words", "pieces"}:
        split = pre_tokenizers.Split(Regex(r"\S+" if kind == "words" else r".{1,4}"), "isolated")
        model = models.WordLevel({"?": 0}, unk_token="?")
    else:
        split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        model = models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[])
    backend = Tokenizer(model)
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    if kind == "bytes":
        tokenizer.chat_template = CHAT
    return PromptBuilder(tokenizer)


def make(task, length=4096, samples=2, kind="embedded", seed=42):
    config = RulerConfig(tasks=(task,), length=(length,), samples=samples, seed=seed)
    return list(RulerTask(config).samples(prompt(kind)))


@pytest.mark.parametrize("kind", ["embedded", "words", "pieces"])
@pytest.mark.parametrize("length", [2048, 4096, 16384])
@pytest.mark.parametrize("task", spec.TASKS)
def test_length_and_answers(task, length, kind):
    for sample in make(task, length, 1, kind):
        encoded = prompt(kind).encode(sample)
        specials = int(prompt(kind).tokenizer.bos_token_id is not None)
        used = encoded.num_tokens - specials + sample.max_new_tokens
        # One more unit (a document, a needle line, a word three times) may not fit.
        unit = {"qa_1": 150, "qa_2": 150, "niah_multikey_3": 60, "cwe": 40}.get(task, 30)
        least = min(0.95 * length, length - unit)
        assert least <= used <= length
        assert sample.max_new_tokens == spec.NEW_TOKENS[task]
        assert sample.references and all(sample.references)
        for reference in sample.references:
            assert reference in sample.context
        if not task.startswith("qa"):
            assert "{" not in sample.user_text + sample.answer_prefix


@pytest.mark.parametrize(("task", "what"), spec.NIAH.items())
def test_needles(task, what):
    sample = make(task)[1]
    needles = re.findall(r"One of the special magic (\w+) for (.+?) is: (.+?)\.", sample.context)
    planted = max(what.num_keys, what.num_queries) * what.num_values
    assert {kind for kind, _, _ in needles} == {what.value}
    if what.haystack == "needle":
        assert len(needles) > 20
    else:
        assert len(needles) == planted
    assert len(sample.references) == what.num_queries * what.num_values
    asked = [key for _, key, value in needles if value in sample.references]
    assert all(key in sample.question and key in sample.answer_prefix for key in asked)
    single = len(sample.references) == 1
    assert sample.question.startswith("\nWhat is the" if single else "\nWhat are all the")
    assert sample.answer_prefix.endswith(" is" if single else " are")
    assert ("magic number " in sample.question or "magic uuid " in sample.question) == single
    pattern = r"\d{7}" if what.value == "numbers" else r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    assert all(re.fullmatch(pattern, value) for _, _, value in needles)


def test_variable_tracking_chains_are_in_order():
    sample = make("vt")[0]
    task_text = sample.context.split(spec.VT_HEAD)[-1]
    statements = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", task_text)
    assert [name for name, _ in statements] == list(sample.references)
    assert [source for _, source in statements[1:]] == list(sample.references[:-1])
    assert statements[0][1] in sample.question and statements[0][1] in sample.answer_prefix
    assert sample.context.count(spec.VT_HEAD) == 2  # one worked example


def test_common_words_counts():
    for length, common, rare in ((4096, 30, 3), (2048, 6, 1)):
        sample = make("cwe", length)[0]
        words = re.findall(r"\d+\. (.+?)(?= \d+\. |$)", sample.context.removeprefix(spec.CWE_HEAD))
        counts = Counter(words)
        assert {counts[word] for word in sample.references} == {common}
        rest = {count for word, count in counts.items() if word not in sample.references}
        assert rest == {rare} and len(sample.references) == 10


def test_frequent_words_follow_the_power_law():
    sample = make("fwe", 8192)[0]
    words = sample.context.removeprefix(spec.FWE_HEAD).split()
    ranked = Counter(words).most_common(4)
    assert ranked[0][0] == "..." and [word for word, _ in ranked[1:]] == list(sample.references)
    total = ranked[0][1] * math.pi**2 / 6
    for rank, (_, count) in enumerate(ranked, 1):
        assert abs(count - total / rank**2 / (math.pi**2 / 6)) <= 2


def test_documents_are_numbered_and_gold_moves():
    places = set()
    for sample in make("qa_1", 8192, 6):
        documents = sample.context.split("Document ")[1:]
        assert [d.split(":")[0] for d in documents] == [str(i + 1) for i in range(len(documents))]
        places.add(next(i for i, d in enumerate(documents) if sample.references[0] in d))
    assert len(places) > 2


def test_asking_for_more_keeps_the_first_samples():
    assert make("niah_multikey_2", 2048, 1) == make("niah_multikey_2", 2048, 3)[:1]
    assert make("vt", 2048, 1) != make("vt", 2048, 1, seed=43)


def test_chat_template_and_one_shot_placement():
    builder = prompt("bytes")
    sample = make("cwe", 16384, 1, "bytes")[0]
    text = builder.tokenizer.decode(builder.encode(sample).ids)
    assert text.count("[U]") == text.count("[A]") == 2
    assert text.endswith("[A]" + spec.CWE_PREFIX)
    sample = make("vt", 4096, 1)[0]
    assert sample.context.startswith(spec.VT_HEAD) and "preamble" not in sample.meta


def test_the_context_border_is_before_the_question():
    builder = prompt("embedded")
    sample = make("niah_single_2", 2048, 1)[0]
    encoded = builder.encode(sample)
    tail = builder.tokenizer.decode(encoded.ids[encoded.context_tokens :])
    assert tail == sample.question + sample.answer_prefix
    assert encoded.ids[0] == builder.tokenizer.bos_token_id


def test_a_prompt_over_the_limit_is_refused_not_cut():
    sample = make("niah_single_2", 2048, 1)[0]
    with pytest.raises(PromptTooLong, match="the model takes 1000"):
        prompt("embedded").encode(sample, max_prompt_tokens=1000)


def test_impossible_lengths_raise():
    with pytest.raises(ValueError, match="does not fit"):
        make("cwe", 256)


def test_local_essays_replace_the_stand_in(tmp_path):
    words = " ".join(f"Word{i} sits here." for i in range(4000))
    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": words}))
    task = RulerTask(RulerConfig(tasks=("niah_single_2",), samples=1), str(tmp_path))
    sample = next(task.samples(prompt("embedded")))
    assert "Word7 sits here." in sample.context and sample.meta["stand_in"] is False
    assert task.notes() == ()
    (tmp_path / "PaulGrahamEssays.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="git-lfs pointer"):
        next(RulerTask(task.config, str(tmp_path)).samples(prompt("embedded")))


def test_missing_data_is_named_with_the_command_that_fetches_it(tmp_path):
    for task, name in (("niah_single_2", "PaulGrahamEssays.json"), ("qa_2", "hotpotqa.json")):
        config = RulerConfig(tasks=(task,), samples=1, stand_in=False)
        with pytest.raises(ValueError, match=f"{name}.*scripts/fetch_data.py ruler"):
            next(RulerTask(config, str(tmp_path)).samples(prompt("embedded")))
