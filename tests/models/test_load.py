"""Loading: what is refused, and the sentence that says why."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mechlab.errors import ModelError, UnknownName
from mechlab.models import load, tiny
from mechlab.models.quiet import quiet


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    model = tiny("llama")
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def reconfigure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_folder(folder):
    model = load(str(folder), dtype="bfloat16", device="cpu")
    assert (model.name, model.source) == (str(folder), str(folder))
    assert model.dtype == torch.bfloat16 and model.device.type == "cpu"
    assert not model.hf.training and not any(p.requires_grad for p in model.hf.parameters())
    assert load(str(folder), dtype=torch.float16).dtype == torch.float16


def test_not_finite(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, :3] = float("nan")
    weights["model.layers.1.mlp.up_proj.weight"][1, :2] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds 3 NaN and 2 infinite"):
        load(str(folder))


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled ones are never read; convert it to safetensors"):
        load(str(folder))


def test_missing_tensors_are_not_made_up(folder):
    reconfigure(folder, num_hidden_layers=5)
    with pytest.raises(ModelError, match=r"18 tensors are missing, first 'model\.layers\.3"):
        load(str(folder))


def test_shapes_that_do_not_match(folder):
    reconfigure(folder, intermediate_size=90)
    with pytest.raises(ModelError, match=r"do not have the shapes that its config\.json gives"):
        load(str(folder))


def test_cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot read the model folder"):
        load(str(folder))


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="its tokenizer is missing"):
        load(str(folder))


def test_its_own_code_is_run_only_when_asked(folder):
    reconfigure(folder, model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"})
    (folder / "mine.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load(str(folder))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no-such/model", "Cannot find the model 'no-such/model'.*HF_HUB_OFFLINE.*default"),
        ("./no/such/folder", "No model folder at './no/such/folder'"),
        ("none.gguf", "No GGUF file at 'none.gguf'"),
        ("gpt2@random:x", "expected '@random' or '@random:SEED'"),
        (" ", "No model is named"),
    ],
)
def test_unknown_models(name, said):
    with pytest.raises(ModelError, match=said):
        load(name)


def test_unknown_dtype_and_device():
    with pytest.raises(UnknownName, match=r"Unknown dtype 'float31'.*float32"):
        load(dtype="float31")
    with pytest.raises(ModelError, match="Unknown device 'gpu': expected auto, cpu"):
        load(device="gpu")
    with pytest.raises(ModelError, match="not on this machine"):
        load(device="cuda:99")


def write_gguf(path):
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_tensor("output_norm.weight", torch.ones(1000).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_gguf_cut_short_anywhere(tmp_path):
    data = write_gguf(tmp_path / "whole.gguf")
    cut = tmp_path / "cut.gguf"
    for size in (5, 10, 20, 30, 60, 100, len(data) // 2, len(data) - 40):
        cut.write_bytes(data[:size])
        with pytest.raises(ModelError, match="is cut short or damaged"):
            load(str(cut))


def test_not_gguf(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(ModelError, match="is not a GGUF file"):
        load(str(tmp_path / "a.gguf"))


def test_gguf_without_a_model(tmp_path):
    write_gguf(tmp_path / "a.gguf")
    with pytest.raises(ModelError, match="transformers cannot read the GGUF file"):
        load(str(tmp_path / "a.gguf"))


def test_transformers_is_silent_only_within(capfd):
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), hub.are_progress_bars_disabled()
    with pytest.raises(ZeroDivisionError), quiet():
        assert not logging.is_progress_bar_enabled()
        logging.get_logger("transformers.x").warning("chatter")
        raise ZeroDivisionError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), hub.are_progress_bars_disabled()) == before
    assert capfd.readouterr().err == ""
