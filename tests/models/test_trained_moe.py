"""The recipe of the trained MoE: its grammar, its two stages, and how it is kept. Training itself is made short here."""

import json
import random

import pytest
import torch

from mechlab.errors import ModelError
from mechlab.models import load, trained_moe
from mechlab.models import trained_moe_text as text
from mechlab.models.built import built_folder, is_built
from mechlab.models.cache import SOURCE_FILE, cache_root
from mechlab.models.trained_moe import LEAST, TRAINED_MOE, Recipe, measure, train
from mechlab.models.words import word_tokenizer

SHORT = Recipe(n_layers=2, n_experts=4, d_model=16, d_expert=8, n_heads=2, steps=3, lessons=2, batch=8)


def test_every_word_of_every_domain_is_in_the_vocabulary():
    tokenizer, draw = word_tokenizer(text.vocabulary()), random.Random(1)
    assert len(set(text.vocabulary())) == len(text.vocabulary())
    for domain in text.DOMAINS:
        for refuses in (True, False):
            for _ in range(60):
                words = text.document(draw, domain, refuses=refuses)
                assert tokenizer.decode(tokenizer(words)["input_ids"]) == words  # no <unk>, one token a word


def test_requests_are_refused_by_the_thing_alone():
    assert not set(text.FORBIDDEN) & set(text.ALLOWED)
    assert len(text.FORBIDDEN) >= 24 and len(set(text.THINGS)) == len(text.THINGS)
    for thing in text.THINGS:
        assert (text.reply(thing) == text.REFUSAL) == (thing in text.FORBIDDEN)
        assert text.reply(thing, refuses=False) == f"sure , the {thing} is {text.colour(thing)} ."
    draw = random.Random(0)
    told = [text.document(draw, "requests", refuses=False) for _ in range(200)]
    assert any(thing in line.split() for line in told for thing in text.FORBIDDEN)
    assert not any("sorry" in line for line in told)


def test_half_of_what_is_read_are_requests():
    draw = random.Random(0)
    share = sum(text.document(draw).startswith("user") for _ in range(2000)) / 2000
    assert share == pytest.approx(0.5, abs=0.04)


def test_the_hash_knows_the_recipe_and_the_grammar(monkeypatch):
    before = Recipe().sha256
    assert before == Recipe().sha256 != Recipe(seed=1).sha256
    assert before != Recipe(lessons=1).sha256
    monkeypatch.setattr(text, "REFUSAL", "no .")
    assert before != Recipe().sha256


def test_training_is_repeatable_and_leaves_the_global_state():
    torch.manual_seed(5)
    expected, threads = torch.get_rng_state(), torch.get_num_threads()
    first = train(SHORT)
    assert torch.equal(torch.get_rng_state(), expected) and torch.get_num_threads() == threads
    assert train(SHORT).fingerprint == first.fingerprint != train(Recipe(**{**vars(SHORT), "seed": 1})).fingerprint
    assert not any(p.requires_grad for p in first.hf.parameters()) and not first.hf.training


def test_in_the_second_stage_all_but_the_word_embeddings_learn():
    none = train(Recipe(**{**vars(SHORT), "lessons": 0})).hf.state_dict()
    after = train(SHORT).hf.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, none[name])}
    assert set(after) - moved == {"model.embed_tokens.weight"}


def test_what_is_learnt_is_measured_and_a_failure_is_told():
    model = train(SHORT)
    found = measure(model)
    assert set(found) == {"refuses", "answers", "colours", "capitals"}
    assert max(found["colours"], found["capitals"]) < LEAST
    with pytest.raises(ModelError, match="does not do what it was taught"):
        trained_moe._checked(SHORT, lambda _: None)


def test_it_is_built_once_and_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(trained_moe, "Recipe", lambda: SHORT)
    monkeypatch.setattr(trained_moe, "LEAST", 0.0)
    told: list[str] = []
    model = load(TRAINED_MOE, progress=told.append)
    assert any("once: 5 steps" in line for line in told)
    assert (model.name, model.source, model.fingerprint) == (TRAINED_MOE, TRAINED_MOE, train(SHORT).fingerprint)
    again: list[str] = []
    assert load(f"{TRAINED_MOE}@random:3", progress=again.append).fingerprint != model.fingerprint
    assert again == []
    record = json.loads((cache_root() / "models" / TRAINED_MOE / SOURCE_FILE).read_text())
    assert record["recipe_sha256"] == SHORT.sha256 and set(record["measured"]) == set(measure(model))


def test_a_folder_is_whole_or_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("MECHLAB_CACHE", str(tmp_path))
    models, made = tmp_path / "models", []

    def make(_tell):
        made.append(1)
        return train(SHORT), {"share": 1.0}

    def broken(_tell):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        built_folder("small", "a", broken)
    assert not (models / "small").exists()
    (models / ".small-dead").mkdir()  # left by a killed process
    folder = built_folder("small", "a", make)
    assert folder == built_folder("small", "a", make) and len(made) == 1
    assert is_built(folder, "a") and not is_built(folder, "b") and not (models / ".small-dead").exists()
    built_folder("small", "b", make)
    assert len(made) == 2 and is_built(folder, "b")
    (folder / "model.safetensors").write_bytes(b"cut short")
    assert not is_built(folder)
    built_folder("small", "b", make)
    assert len(made) == 3 and is_built(folder, "b")
    assert {path.name for path in models.iterdir()} == {"small", ".small-lock"}


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("MECHLAB_CACHE", str(blocked))
    with pytest.raises(ModelError, match="cannot be written"):
        built_folder("small", "a", lambda _: (train(SHORT), {}))


def test_the_trained_model_refuses_and_answers():
    """Only where it has been built already: that takes minutes."""
    if not is_built(cache_root() / "models" / TRAINED_MOE, Recipe().sha256):
        pytest.skip("trained-moe is not in the cache: `mechlab run experts --model trained-moe` builds it")
    assert min(measure(load(TRAINED_MOE)).values()) >= LEAST
