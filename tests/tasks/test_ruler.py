"""RULER samples have the official structure and length; scores are the official ones."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from functools import cache

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from retrobench.engine import loader
from retrobench.engine.embedded import build_tokenizer
from retrobench.tasks import substitute
from retrobench.tasks.prompt import PromptBuilder, PromptTooLong
from retrobench.tasks.ruler import RulerConfig, RulerTask, spec
from retrobench.tasks.ruler.words import all_words, word_pool

CHAT = "{% for m in messages %}[U]{{ m.content }}[/U]{% endfor %}[A]"


@cache
def prompt(kind):
    """The embedded tokenizer; a BPE trained here; bytes with a chat template; whole words."""
    if kind == "embedded":
        return PromptBuilder(build_tokenizer())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "bytes")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind == "words":
        split = pre_tokenizers.Split(Regex(r"\S+"), "isolated")
        backend = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    else:
        backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    if kind == "bpe":
        trainer = trainers.BpeTrainer(vocab_size=6000, initial_alphabet=letters)
        texts = [" ".join(substitute.essay_words(20_000)), " ".join(all_words())]
        backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    if kind == "bytes":
        tokenizer.chat_template = CHAT
    return PromptBuilder(tokenizer)


def make(task, length=4096, samples=2, kind="embedded", seed=42):
    config = RulerConfig(tasks=(task,), length=(length,), samples=samples, seed=seed)
    return list(RulerTask(config).samples(prompt(kind)))


# Characters of one unit that cannot be split: a needle line with two uuids, a document.
UNIT = {"niah_multikey_3": 125, "qa_1": 300, "qa_2": 150}


# Prompts whose smallest form is longer than that many bytes.
TOO_SHORT = {("cwe", 4096, "bytes")}


def check(task, length, kind):
    (sample,) = make(task, length, 1, kind)
    if (task, length, kind) in TOO_SHORT:
        assert "does not fit" in sample.error
        return
    encoded = prompt(kind).encode(sample)
    specials = int(prompt(kind).tokenizer.bos_token_id is not None)
    used = encoded.num_tokens - specials + sample.max_new_tokens
    min_tokens = 0.95 * length
    if kind == "bytes":
        min_tokens = min(min_tokens, length - UNIT.get(task, 0))
    assert min_tokens <= used <= length
    assert sample.max_new_tokens == spec.NEW_TOKENS[task]
    assert sample.references and all(reference in sample.context for reference in sample.references)
    if not task.startswith("qa"):
        assert "{" not in sample.user_text + sample.answer_prefix


@pytest.mark.parametrize("kind", ["embedded", "bpe", "bytes"])
@pytest.mark.parametrize("length", [2048, 4096])
@pytest.mark.parametrize("task", spec.TASKS)
def test_length_and_answers(task, length, kind):
    check(task, length, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["embedded", "bpe", "bytes"])
@pytest.mark.parametrize("length", [16384, 131072])
@pytest.mark.parametrize("task", spec.TASKS)
def test_length_and_answers_far_out(task, length, kind):
    check(task, length, kind)


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


def test_a_chat_template_of_ones_own_is_used_and_named(tmp_path):
    given = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    (tmp_path / "mine.jinja").write_text(given)
    plain = loader.ModelConfig(name="constructed", source="constructed")
    seen = []
    for text in (given, str(tmp_path / "mine.jinja")):
        described = loader.describe(dataclasses.replace(plain, chat_template=text))
        builder = PromptBuilder(described.tokenizer)
        assert builder.wrap("hello") == "[user] hello"
        seen.append((described.identity["chat_template"], builder.template_hash))
    assert seen[0] == seen[1] and all(seen[0])
    described = loader.describe(plain)
    assert "chat_template" not in described.identity and not PromptBuilder(described.tokenizer).chat
    with pytest.raises(ValueError, match="no such file, and no template"):
        loader.describe(dataclasses.replace(plain, chat_template="nowhere.jinja"))


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


def test_what_cannot_be_built_is_an_error_of_that_sample_alone(tmp_path):
    config = RulerConfig(tasks=("cwe", "niah_single_1"), length=(400,), samples=1)
    tight, good = RulerTask(config).samples(prompt("embedded"))
    assert "does not fit 280 tokens" in tight.error and good.error == "" and good.references
    asked = {"question": "Where?", "answers": [{"text": "here"}], "is_impossible": False}
    paragraphs = [{"context": f"{i} is here. " * 20, "qas": [asked] * (i < 2)} for i in range(60)]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    config = RulerConfig(tasks=("qa_1",), length=(1024,), samples=3)
    *good, bad = RulerTask(config, str(tmp_path)).samples(prompt("embedded"))
    assert [sample.error for sample in good] == ["", ""] and "squad has 2 questions" in bad.error


def test_a_remembered_length_rebuilds_the_same_sample_without_a_search(monkeypatch):
    first, count, counted = make("niah_multikey_1", 3000, 3, seed=7), PromptBuilder.count, []

    def counting(self, text):
        counted.append(text)
        return count(self, text)

    monkeypatch.setattr(PromptBuilder, "count", counting)
    assert make("niah_multikey_1", 3000, 3, seed=7) == first
    assert len(counted) <= 2 * len(first)  # checked, and with one unit more
    monkeypatch.setenv("RETROBENCH_CACHE", "/dev/null/nowhere")
    assert make("niah_multikey_1", 3000, 3, seed=7) == first


def test_fast_counting_equals_the_tokenizer():
    text = "One  lake, \n\tтри 水! 1234567 " * 3
    for kind in ("embedded", "bpe", "bytes", "words"):
        builder = prompt(kind)
        ids = builder.tokenizer(text, add_special_tokens=False).input_ids
        assert builder.count(text) == len(ids), kind


def test_the_long_word_list(tmp_path):
    count = len(all_words()) + 1
    assert "substitute" in word_pool(count, str(tmp_path))[1]
    assert len(set(word_pool(count, None)[0])) >= count
    (tmp_path / "english_words.json").write_text(json.dumps({i: f"w{i}" for i in range(20_000)}))
    assert word_pool(count, str(tmp_path))[1] == "english words"


def test_local_essays_replace_the_substitute(tmp_path):
    words = " ".join(f"Word{i} sits here." for i in range(4000))
    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": words}))
    task = RulerTask(RulerConfig(tasks=("niah_single_2",), samples=1), str(tmp_path))
    sample = next(task.samples(prompt("embedded")))
    assert "Word7 sits here." in sample.context and sample.meta["stand_in"] is False
    assert task.notes() == ()
    (tmp_path / "PaulGrahamEssays.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="git-lfs pointer"):
        next(RulerTask(task.config, str(tmp_path)).samples(prompt("embedded")))


def test_prose_of_ones_own_comes_after_the_essays(tmp_path):
    config = RulerConfig(tasks=("niah_single_2",), length=(1024,), samples=1)

    def build():
        task = RulerTask(config, str(tmp_path))
        sample = next(task.samples(prompt("embedded")))
        return task, sample, task.fingerprint(prompt("embedded"))

    prints = [build()[2]]
    (tmp_path / "prose").mkdir()
    for name, word in (("b", "later"), ("a", "first")):
        (tmp_path / "prose" / f"{name}.txt").write_text(f"The {word} line is here.\n" * 9, "utf-8")
    task, sample, mark = build()
    prints.append(mark)
    first, later = (sample.context.index(f"The {word} line") for word in ("first", "later"))
    assert first < later and sample.context.count("The first line") > 9
    assert sample.meta["haystack"] == "prose" and sample.meta["stand_in"] is False
    assert task.notes() == ("haystack: prose of data.root, not the essays",)
    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": "An essay. " * 900}))
    task, sample, mark = build()
    assert "An essay." in sample.context and task.notes() == ()
    assert len({*prints, mark}) == 3
    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": " "}))
    with pytest.raises(ValueError, match="there is no text in it"):
        build()


def test_missing_data_is_named_with_the_command_that_fetches_it(tmp_path):
    for task, name in (("niah_single_2", "PaulGrahamEssays.json"), ("qa_2", "hotpotqa.json")):
        config = RulerConfig(tasks=(task,), samples=1, substitute=False)
        with pytest.raises(ValueError, match=f"{name}.*retrobench fetch ruler"):
            next(RulerTask(config, str(tmp_path)).samples(prompt("embedded")))
