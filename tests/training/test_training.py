"""Training: samples say the truth, the loss falls, a killed run goes on bit for bit."""

from __future__ import annotations

import random
import re
from collections import defaultdict

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from retrobench.engine.embedded import build_tokenizer
from retrobench.tasks.ruler import spec
from retrobench.training import start, words
from retrobench.training.alignment import Alignment
from retrobench.training.batches import IGNORED, Encoder, make_batch
from retrobench.training.export import export
from retrobench.training.families import FAMILIES
from retrobench.training.loop import Trainer
from retrobench.training.model import Shape, build
from retrobench.training.plan import TrainConfig, parse_plan

SHAPE = Shape(mlp=16)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def trainer(tokenizer, folder, steps):
    torch.set_num_threads(1)
    stage = {"steps": steps, "rows": 4, "tokens": 96, "mix": {"needles": 3, "repeats": 1}}
    stage |= {"lr": 5e-4, "lr_end": 5e-4}
    plan = parse_plan(TrainConfig(negatives=100, checkpoint_steps=5, log_steps=5), [stage])
    return Trainer(build(SHAPE, tokenizer, 0), Encoder(tokenizer), plan, folder)


@torch.no_grad()
def held_out_loss(run):
    batch = make_batch(run.encoder, random.Random(9), {"needles": 1.0}, 16, 96)
    return float(run._loss(batch, random.Random(0), defaultdict(list)))


def test_the_loss_falls_and_a_killed_run_goes_on_bit_for_bit(tokenizer, tmp_path):
    losses = []
    whole = trainer(tokenizer, tmp_path / "whole", 20)
    before = held_out_loss(whole)
    whole.run(lambda progress: losses.append(progress.loss))
    assert len(losses) == 4 and held_out_loss(whole) < 0.95 * before

    def die(progress):
        if progress.step == 15:
            raise KeyboardInterrupt

    killed = trainer(tokenizer, tmp_path / "killed", 20)
    with pytest.raises(KeyboardInterrupt):
        killed.run(die)
    resumed = trainer(tokenizer, tmp_path / "killed", 20)
    assert resumed.load() and resumed.step == 10
    resumed.run(lambda _: None)
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert resumed.tokens == whole.tokens


@torch.inference_mode()
def test_the_start_copies_what_it_has_read(tokenizer):
    model = build(Shape(), tokenizer, 0).eval()
    ids = torch.randint(10, len(tokenizer), (1, 60), generator=torch.Generator().manual_seed(0))
    twice = torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids, ids], 1)
    said = model(twice).logits[0, 65:-1].argmax(-1)
    assert (said == twice[0, 66:]).float().mean() > 0.8


# answer tokens that the start gets right, of samples of 400 tokens; ends of answers are learnt
KNOWN = {
    "needles": 0.75,
    "many_values": 0.9,
    "many_keys": 0.85,
    "variables": 0.8,
    "common_words": 0.8,
    "frequent_words": 0.8,
    "documents": 0.8,
    "two_facts": 0.85,
}


@pytest.mark.parametrize("family", sorted(KNOWN))
@torch.inference_mode()
def test_the_circuits_of_the_start_answer(family, tokenizer):
    model, right, asked = build(Shape(), tokenizer, 0).eval(), 0, 0
    for seed in range(4):
        batch = make_batch(Encoder(tokenizer), random.Random(seed), {family: 1.0}, 1, 400)
        said_S = model(batch.ids_BS).logits[0].argmax(-1).tolist()
        for at, target in enumerate(batch.targets_BS[0].tolist()):
            if target != IGNORED:
                right += said_S[at] in (target, *batch.instead.get((0, at), ()))
                asked += 1
    assert right / asked > KNOWN[family]


@torch.inference_mode()
def test_look_back_slots_hold_codes_of_one_size(tokenizer):
    """Norms say nothing about tokens, or counts and thresholds would depend on the neighbours."""
    model = build(Shape(), tokenizer, 0).eval()
    ids = torch.randint(10, len(tokenizer), (1, 60), generator=torch.Generator().manual_seed(1))
    ids[0, 0] = tokenizer.bos_token_id
    third = model.model(ids, output_hidden_states=True).hidden_states[2][0]
    layout = start.Layout(Shape().hidden)
    for distance in (1, 2, 3, 4, 5, 7):
        norm_T = third[16:, layout.slots[distance]].norm(dim=1) / layout.raw
        want = torch.full_like(norm_T, start.power(distance) ** 0.5)
        torch.testing.assert_close(norm_T, want, atol=0.04, rtol=0)


def test_steps_change_the_last_layer_alone(tokenizer, tmp_path):
    before = build(SHAPE, tokenizer, 0).state_dict()
    run = trainer(tokenizer, tmp_path, 2)
    run.run(lambda _: None)
    after = run.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(n.startswith(("model.layers.4.", "model.norm.")) for n in changed)


def test_alignment_asks_sure_heads_alone_and_past_keys_alone():
    key_HTD = torch.eye(8)[None, :6].repeat(2, 1, 1) * 4
    query_HTD = torch.zeros(2, 6, 8)
    query_HTD[0, 4] = key_HTD[0, 2] * 3  # sure: points at token 2
    query_HTD[1, 4] = key_HTD[1, 5] * 3  # its key lies in the future: not sure of any past one
    asked = torch.zeros(1, 6, dtype=torch.bool)
    asked[0, 4] = True
    alignment = Alignment(asked)
    alignment.add(query_HTD[None], key_HTD[None], 1.0)
    found = key_HTD[0, 2] - key_HTD[0, :5].mean(0)
    want = 1 - torch.cosine_similarity(query_HTD[0, 4], found, dim=0)
    torch.testing.assert_close(alignment.loss(), want)
    none = Alignment(torch.zeros(1, 6, dtype=torch.bool))
    none.add(query_HTD[None], key_HTD[None], 1.0)
    assert none.loss() == 0


def test_a_start_without_checkpoint_says_so(tokenizer, tmp_path):
    assert not trainer(tokenizer, tmp_path, 1).load()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_samples_are_full_and_labelled(family, tokenizer):
    encoder = Encoder(tokenizer)
    batch = make_batch(encoder, random.Random(3), {family: 1.0}, 8, 300)
    assert batch.ids_BS.shape == batch.targets_BS.shape == (8, 300)
    for ids, targets in zip(batch.ids_BS, batch.targets_BS, strict=True):
        asked = (targets != IGNORED).nonzero().flatten()
        assert len(asked) >= 2
        assert torch.equal(ids[asked + 1], targets[asked])
        assert ids[0] == tokenizer.bos_token_id


def test_there_are_names_for_the_longest_samples():
    assert all(len(words.keys(random.Random(n), "name", 4000)) == 4000 for n in range(4))


@pytest.mark.parametrize("family", ["needles", "many_keys", "many_values"])
def test_quoted_answers_stand_in_the_context(family):
    for seed in range(30):
        draft = FAMILIES[family](random.Random(seed), 400)
        context = "\n".join(draft.must)
        for question in draft.questions:
            answer = "".join(part.text for part in question if part.counts)
            answer = answer.removesuffix(".<|eos|>").strip()
            assert all(quote in context for quote in re.split(r"(?<=\d{7}) (?=\S)", answer))


def test_answers_in_any_order_count_alike(tokenizer):
    """Where several values may come next, each is right and what stands there is one of them."""
    batch = make_batch(Encoder(tokenizer), random.Random(1), {"many_values": 1.0}, 4, 400)
    assert batch.instead
    for (row, at), others in batch.instead.items():
        text = tokenizer.decode(batch.ids_BS[row])
        assert batch.targets_BS[row, at] == batch.ids_BS[row, at + 1]
        assert all(tokenizer.decode(other) in text for other in others)
        assert int(batch.targets_BS[row, at]) not in others


def test_no_sample_holds_a_prompt_of_ruler():
    literal = (spec.VT_HEAD, spec.CWE_HEAD, spec.CWE_QUESTION, spec.FWE_HEAD, spec.QA_RULE)
    needle = re.compile(r"One of the special magic")
    asked = re.compile(r"special magic \w+ for [^\n]{1,60} mentioned in the provided text")
    for name, family in FAMILIES.items():
        for seed in range(60):
            draft = family(random.Random(seed), 300)
            text = draft.head + "\n".join(draft.must)
            text += "".join(part.text for question in draft.questions for part in question)
            assert not needle.search(text), name
            assert not asked.search(text), name
            assert not any(piece in text for piece in literal), name


def test_the_exported_folder_is_the_same_network(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = build(SHAPE, tokenizer, 0).eval()
    assert export(model, tokenizer, tmp_path) > 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    text = "One word for it is: 1234567."
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize(text) == tokenizer.tokenize(text)
    rounded = {k: v.bfloat16().float() for k, v in model.state_dict().items()}
    model.load_state_dict(rounded)
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_wrong_stages_name_the_option():
    config = TrainConfig()
    with pytest.raises(ValueError, match="stages: at least one"):
        parse_plan(config, [])
    with pytest.raises(ValueError, match=r"mix.needels: no such family, did you mean needles"):
        parse_plan(config, [{"steps": 1, "mix": {"needels": 1}}])
    with pytest.raises(ValueError, match=r"stages\[0\].rows must be"):
        parse_plan(config, [{"steps": 1, "rows": 0, "mix": {"needles": 1}}])


@pytest.mark.parametrize("name", ["train_tiny", "train_tiny_gpu"])
def test_the_recipes_parse(name, request):
    conf = request.config.rootpath / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
        raw = OmegaConf.to_container(compose(name), resolve=True)
    plan = parse_plan(TrainConfig(), raw["stages"])
    assert sum(stage.steps for stage in plan.stages) > 500
