"""The random twin: everything as in the model but the weights, and the same weights for the same seed."""

import pytest
import torch

from mechlab.models import FAMILIES, Model, load, random_twin, tiny
from mechlab.models.fingerprint import config_record
from mechlab.models.loading import check_finite


def test_settings_and_tokenizer_are_kept_and_every_random_weight_is_new():
    model = tiny("qwen3")
    twin = random_twin(model, 5)
    assert config_record(twin.hf.config) == config_record(model.hf.config)
    assert twin.tokenizer is model.tokenizer
    assert (twin.name, twin.source) == ("tiny-qwen3@random:5", "tiny")
    for (name, old), (_, new) in zip(model.hf.named_parameters(), twin.hf.named_parameters(), strict=True):
        assert not torch.equal(old, new), name
        if new.ndim > 1:
            assert new.std() > 0.1, name  # the std of the config is 0.2


def test_seed_decides_the_weights():
    model = tiny("gpt_oss")
    assert random_twin(model, 1).fingerprint == random_twin(model, 1).fingerprint
    assert random_twin(model, 1).fingerprint != random_twin(model, 2).fingerprint


def test_global_random_state_is_untouched():
    model = tiny("gpt2")
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    random_twin(model, 3)
    tiny("gpt2", 4)
    assert torch.equal(torch.rand(4), expected)


def test_dtype_is_kept():
    model = tiny("llama")
    half = Model("half", "tiny", model.hf.to(torch.bfloat16), model.tokenizer)
    twin = random_twin(half)
    assert {parameter.dtype for parameter in twin.hf.parameters()} == {torch.bfloat16}
    assert twin.device == half.device


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_is_left_uninitialised(family):
    model = tiny(family)
    torch.use_deterministic_algorithms(True)  # then torch fills the tensors of torch.empty with NaN
    try:
        check_finite(family, random_twin(model, 1).hf)
    finally:
        torch.use_deterministic_algorithms(False)


def test_loading_by_suffix(tmp_path):
    model = tiny("gpt2")
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    twin = load(f"{tmp_path}@random:9")
    assert twin.name == f"{tmp_path}@random:9"
    assert twin.fingerprint == random_twin(model, 9).fingerprint
    assert load(f"{tmp_path}@random").fingerprint == random_twin(model, 0).fingerprint
