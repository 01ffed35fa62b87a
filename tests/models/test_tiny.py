"""Each tiny family is what it says: unequal sizes, lively attention, and the same for the same seed."""

import pytest
import torch

from mechlab.errors import UnknownName
from mechlab.models import FAMILIES, load, tiny
from mechlab.models.words import NAMES, SPECIAL, WORDS, word_tokenizer

GROUPED = set(FAMILIES) - {"gpt2", "gpt_neox"}
FREE_D_HEAD = {"llama", "qwen3", "gemma2", "gemma3", "mistral", "mixtral", "gpt_oss"}
WINDOWED = {"qwen2", "qwen3", "gemma2", "gemma3", "qwen2_moe", "gpt_oss"}
TEXTS = [
    "<bos> When Mary and John went to the store, John gave a drink to",
    "<bos> The capital of France is Paris. The capital of Italy is",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes(family):
    model = tiny(family)
    assert (model.n_layers, model.n_heads, model.n_kv_heads) == (3, 4, 2 if family in GROUPED else 4)
    assert (model.d_head == model.d_model // model.n_heads) == (family not in FREE_D_HEAD)
    sizes = [model.n_layers, model.n_heads, model.d_head, model.d_model, model.vocab_size, model.context_length]
    assert len(set(sizes)) == len(sizes)
    assert model.vocab_size == len(model.tokenizer) == model.hf.get_output_embeddings().weight.shape[0]
    assert model.hf.config.architectures == [type(model.hf).__name__]
    kinds = getattr(model.config, "layer_types", None) or []
    assert len(set(kinds)) == 2 if family in WINDOWED else True
    assert not model.hf.training and not any(p.requires_grad for p in model.hf.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_pass_is_lively(family):
    model = tiny(family)
    inputs = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    model.hf.set_attn_implementation("eager")
    out = model.hf(**inputs, output_attentions=True)
    assert out.logits.isfinite().all()
    assert (out.logits[0, 9] - out.logits[1, 9]).abs().mean() > 0.5  # logits differ between prompts
    strongest = torch.stack(out.attentions)[:, 0, :, 12].amax(-1)  # of 13 positions: uniform is 0.08
    assert strongest.mean() > 0.18
    other = tiny(family).hf(**inputs).logits
    torch.testing.assert_close(out.logits, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_seeds(family):
    assert tiny(family).fingerprint == tiny(family).fingerprint != tiny(family, 1).fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_no_parameter_is_constant(family):
    for name, parameter in tiny(family).hf.named_parameters():
        assert parameter.std() > 0.05, name  # a bias of zeros would hide that it is forgotten


def test_soft_caps_bite():
    model = tiny("gemma2")
    ids = model.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    capped = model.hf(ids).logits
    model.hf.config.final_logit_softcapping = None
    free = model.hf(ids).logits
    assert (free - capped).abs().max() > 1
    assert capped.abs().max() < 3


def test_tied_embeddings():
    tied = {family for family in FAMILIES if tiny(family).config.tie_word_embeddings}
    assert tied == {"gpt2", "gemma2", "gemma3"}


def test_unknown_family():
    with pytest.raises(UnknownName, match="Unknown model family 'lama': did you mean llama"):
        tiny("lama")


def test_words():
    tokenizer = word_tokenizer()
    assert len(WORDS) == len(set(WORDS)) and len(NAMES) >= 24
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(SPECIAL) + len(WORDS)))
    assert tokenizer(" Mary")["input_ids"] == tokenizer("Mary")["input_ids"]  # one token, and no <bos> before it
    assert tokenizer.decode(tokenizer("John, zebra 42.")["input_ids"]) == "John , <unk> 4 2 ."
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2, 3]


def test_a_saved_tiny_model_loads(tmp_path):
    model = tiny("mixtral")
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert loaded.tokenizer("Mary")["input_ids"] == model.tokenizer("Mary")["input_ids"]
    assert loaded.fingerprint == model.fingerprint


def test_transformer_lens_takes_the_tokenizer_as_it_is():
    from transformer_lens.utilities import get_tokenizer_with_bos

    tokenizer = word_tokenizer()
    assert get_tokenizer_with_bos(tokenizer) is tokenizer
