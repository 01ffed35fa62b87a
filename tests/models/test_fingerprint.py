"""The fingerprint changes with each thing that makes a model another model, and with nothing else."""

import torch

from mechlab.models import Model, load, tiny
from mechlab.models.fingerprint import distinct_tensors
from mechlab.models.words import NAMES, word_tokenizer


def test_same_thing_made_twice_agrees():
    assert tiny("gpt2").fingerprint == tiny("gpt2").fingerprint
    assert len(tiny("gpt2").fingerprint) == 16


def test_saving_and_loading_keeps_it(tmp_path):
    model = tiny("gemma2")
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert load(str(tmp_path)).fingerprint == model.fingerprint
    assert load(str(tmp_path), dtype="bfloat16").fingerprint != model.fingerprint


def test_one_weight_changes_it():
    before, model = tiny("llama").fingerprint, tiny("llama")
    with torch.no_grad():
        model.hf.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 5] += 1e-6
    assert model.fingerprint != before


def test_one_setting_changes_it():
    before, model = tiny("llama").fingerprint, tiny("llama")
    model.hf.config.rms_norm_eps *= 2
    assert model.fingerprint != before


def test_one_token_changes_it():
    model = tiny("llama")
    words = list(NAMES)
    one = Model("a", "tiny", model.hf, word_tokenizer(words))
    words[7] = "Zoe"
    other = Model("a", "tiny", model.hf, word_tokenizer(words))
    assert one.fingerprint != other.fingerprint


def test_using_the_model_does_not_change_it():
    before, model = tiny("llama").fingerprint, tiny("llama")
    inputs = model.tokenizer(["Mary", "John went"], padding=True, truncation=True, max_length=3, return_tensors="pt")
    model.hf.set_attn_implementation("eager")
    model.hf(**inputs)
    assert model.fingerprint == before


def test_tied_tensors_count_once():
    names = [name for name, _ in distinct_tensors(tiny("gpt2").hf)]
    assert "transformer.wte.weight" in names and "lm_head.weight" not in names
    assert "lm_head.weight" in [name for name, _ in distinct_tensors(tiny("llama").hf)]


def test_bfloat16_weights_are_hashed_bit_by_bit():
    one, other = (Model("a", "tiny", tiny("gpt2").hf.to(torch.bfloat16), tiny("gpt2").tokenizer) for _ in range(2))
    with torch.no_grad():
        other.hf.get_parameter("transformer.h.0.mlp.c_fc.weight")[0, 0] *= 1.01
    assert one.fingerprint != other.fingerprint
