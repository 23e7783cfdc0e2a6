"""Prompts have the ids of the tokenizer's own rendering, whatever its habits about BOS are."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from retrobench.core.task import FollowUp, Sample
from retrobench.run.conversation import Conversation
from retrobench.tasks.prompt import PromptBuilder

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
EVERY_TURN = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}{% endif %}"
    "[{{ m.role }}]{{ m.content | trim }} {% endfor %}[assistant]"
)
CHATML = (
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
SMOLLM2 = Path("~/.cache/retrobench/models/smollm2").expanduser()
MARKS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|end|>")
# name: (the tokenizer puts before and after a text, its BOS, chat template)
KINDS = {
    "bos by the tokenizer": ("<s> $0", "<s>", TURNS),
    "bos by the template": ("$0", "<s>", "{{ bos_token }}" + TURNS),
    "bos by both": ("<s> $0", "<s>", "{{ bos_token }}" + TURNS),
    "bos by neither": ("$0", "<s>", TURNS),
    "no bos at all": ("$0", None, TURNS),
    "bos that starts a turn": ("$0", "<|im_start|>", CHATML),
    "bos that starts a turn, by both": ("<|im_start|> $0", "<|im_start|>", CHATML),
    "bos before every user turn": ("<s> $0", "<s>", EVERY_TURN),
    "eos after a text": ("<s> $0 </s>", "<s>", "{{ bos_token }}" + TURNS),
    "other marks around a text": ("<|im_start|> <s> $0 <|im_end|>", "<s>", TURNS),
}


def build(kind, *, spaced=False):
    """A byte tokenizer of a kind; ``spaced``: it puts a space before the first word."""
    around, bos, template = KINDS[kind]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(MARKS))
    ids = [(mark, backend.token_to_id(mark)) for mark in MARKS]
    backend.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def sample(**changes):
    asked = {
        "id": "a", "task": "t", "context": "The sky is blue. ", "question": "Is it?",
        "references": (), "max_new_tokens": 3, "answer_prefix": " It is",
    }  # fmt: skip
    return Sample(**{**asked, **changes})


def rendered(tokenizer, *contents):
    roles = ("user", "assistant", "user")
    turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def plain(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


kinds = pytest.mark.parametrize("kind", KINDS)
spaces = pytest.mark.parametrize("spaced", [False, True])


@kinds
@spaces
def test_a_chat_has_the_ids_of_the_rendered_template(kind, spaced):
    tokenizer, asked = build(kind, spaced=spaced), sample()
    encoded = PromptBuilder(tokenizer).encode(asked)
    text = rendered(tokenizer, asked.user_text) + asked.answer_prefix
    assert encoded.ids == plain(tokenizer, text)
    turn = [{"role": "user", "content": asked.user_text}]
    own = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert encoded.ids[: len(own)] == own


@kinds
@spaces
def test_other_text_starts_as_the_tokenizer_starts_it_and_never_ends(kind, spaced):
    tokenizer = build(kind, spaced=spaced)
    asked = sample()
    text = asked.user_text + asked.answer_prefix
    before = KINDS[kind][0].partition("$0")[0].split()
    expected = [tokenizer.convert_tokens_to_ids(mark) for mark in before] + plain(tokenizer, text)
    assert PromptBuilder(tokenizer, chat=False).encode(asked).ids == expected
    assert PromptBuilder(tokenizer).encode(sample(meta={"chat": False})).ids == expected


@kinds
@spaces
def test_the_question_starts_at_the_same_token_in_every_kind(kind, spaced):
    tokenizer = build(kind, spaced=spaced)
    for chat in (True, False):
        encoded = PromptBuilder(tokenizer, chat=chat).encode(sample())
        context, asked = (
            encoded.ids[: encoded.context_tokens],
            encoded.ids[encoded.context_tokens :],
        )
        assert tokenizer.decode(context).endswith("The sky is blue. ")
        assert tokenizer.decode(asked).startswith("Is it?")


@kinds
def test_a_prompt_cut_in_the_middle_is_rendered_whole(kind):
    tokenizer = build(kind)
    asked = sample(context="left " * 50, meta={"truncate": {"side": "middle", "tokens": 40}})
    encoded = PromptBuilder(tokenizer).encode(asked)
    ids = tokenizer(asked.user_text).input_ids
    halves = [tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:20], ids[-20:])]
    text = rendered(tokenizer, "".join(halves)) + asked.answer_prefix
    assert encoded.truncated and encoded.ids == plain(tokenizer, text)


@kinds
def test_a_worked_example_before_the_chat_brings_no_second_bos_of_the_conversation(kind):
    tokenizer = build(kind)
    builder = PromptBuilder(tokenizer)
    preamble = builder.wrap("shot") + " done\n"
    text = tokenizer.decode(builder.encode(sample(meta={"preamble": preamble})).ids)
    once = rendered(tokenizer, "shot")
    assert text.startswith(once + " done\n")
    second = text.removeprefix(once + " done\n")
    whole = rendered(tokenizer, sample().user_text) + " It is"
    repeats = kind.startswith(("bos that starts a turn", "bos before every"))
    assert second == (whole if repeats else whole.removeprefix(tokenizer.bos_token or "-"))


@kinds
@spaces
def test_a_conversation_goes_on_with_the_ids_of_its_rendering(kind, spaced):
    tokenizer = build(kind, spaced=spaced)
    asked = sample(answer_prefix="", follow_ups=(FollowUp(question="Why?", references=()),))
    talk = Conversation.encode(PromptBuilder(tokenizer), asked.turns(2), None)
    header = rendered(tokenizer, asked.user_text)
    answer = plain(tokenizer, header + "yes")[len(plain(tokenizer, header)) :]
    text = rendered(tokenizer, asked.user_text, "yes", "Why?")
    assert [*talk.prompt.ids, *answer, *talk.follow_ups[0]] == plain(tokenizer, text)


def test_a_template_without_answers_cannot_hold_a_conversation():
    tokenizer = build("bos by neither")
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ValueError, match="leaves out the answers"):
        PromptBuilder(tokenizer).follow_up(sample())


def test_cells_whose_prompts_start_otherwise_than_before_have_other_keys():
    changed = {k for k in KINDS if PromptBuilder(build(k))._is_respelled}
    assert changed == {
        "bos by the tokenizer",
        "bos by the template",
        "bos that starts a turn",
        "bos that starts a turn, by both",
        "bos before every user turn",
        "other marks around a text",
    }
    base = {k for k in KINDS if PromptBuilder(build(k), chat=False)._is_respelled}
    assert base == {"other marks around a text"}


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="needs `retrobench fetch smollm2`")
def test_smollm2_keeps_its_first_turn_marker():
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2)
    ids = PromptBuilder(tokenizer).encode(sample()).ids
    assert ids == plain(tokenizer, rendered(tokenizer, sample().user_text) + " It is")
    assert tokenizer.decode(ids).startswith("<|im_start|>system")
