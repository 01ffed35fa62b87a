"""The real default model."""

import json

import pytest
import torch

from mechlab.models import default_model_folder, load, random_twin
from mechlab.models.default import GGUF_SHA256

pytestmark = pytest.mark.default_model

SAFETENSORS_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
FINGERPRINT = "7e54878c8277e455"  # reports name it; a new transformers may add settings and so change it


@pytest.fixture(scope="module")
def model():
    return load()


def test_sizes(model):
    assert (model.name, model.source) == ("smollm2-135m", "default")
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.d_head, model.d_model) == (30, 9, 3, 64, 576)
    assert (model.vocab_size, model.context_length) == (49152, 8192)


def test_it_is_the_pinned_one(model):
    record = json.loads((default_model_folder() / "mechlab-source.json").read_text())
    assert record["gguf_sha256"] == GGUF_SHA256
    assert record["safetensors_sha256"] == SAFETENSORS_SHA256
    assert model.fingerprint == load().fingerprint == FINGERPRINT


def test_it_knows_english(model):
    ids = model.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    logits = model.hf(ids).logits[0, -1]
    assert model.tokenizer.decode(logits.argmax()) == " Paris"
    written = model.hf.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=2
    )
    assert model.tokenizer.decode(written[0]).startswith("The capital of France is Paris")


def test_its_twin_does_not(model):
    ids = model.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    probability = random_twin(model).hf(ids).logits[0, -1].softmax(-1)
    assert probability.max() < 0.01
