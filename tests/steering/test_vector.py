"""Vectors: arithmetic, what belongs together, and files that are whole and come back bit by bit."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from steering_toys import A, B, made

from mechlab.errors import MechlabError, SiteError, StoreError
from mechlab.lens.site import Site
from mechlab.models import random_twin
from steering.control_vector import export, read_control_vector
from steering.files import load, save
from steering.methods.random_direction import as_long_as
from steering.vector import SteeringVector, VectorOrigin


def test_arithmetic(lens):
    one, two = made(lens.model, 0), made(lens.model, 1, (B,))
    total = one - 2 * two
    assert torch.equal(total[A], one[A])
    assert torch.allclose(total[B], one[B] - 2 * two[B])
    assert [(weight, origin.method) for weight, origin in total.origin.terms] == [(1.0, "made"), (-1.0, "sum")]
    assert torch.equal((-one)[A], -one[A])
    assert one.normalised()["L1.resid_post"].norm().item() == pytest.approx(1)
    assert one.only([B]).sites == (B,)
    assert torch.equal(one.only([A]).moved({A: B})[B], one[A])
    random = as_long_as(one, 4)
    assert random[A].norm().item() == pytest.approx(one[A].norm().item()) and not torch.equal(random[A], one[A])
    with pytest.raises(MechlabError, match="length 0"):
        (0 * one).normalised()


def test_vectors_of_two_models_do_not_mix(lens):
    twin = random_twin(lens.model)
    with pytest.raises(MechlabError, match=rf"{lens.model.name} .*{twin.name}"):
        made(lens.model) + made(twin)


def test_what_is_no_vector_is_refused(lens):
    origin = made(lens.model).origin
    for directions, error in (
        ({}, MechlabError),
        ({A: torch.ones(2, 3)}, MechlabError),
        ({A: torch.tensor([float("nan")])}, MechlabError),
        ({A.at(-1): torch.ones(3)}, SiteError),
        ({Site("z", 1): torch.ones(3)}, SiteError),
    ):
        with pytest.raises(error):
            SteeringVector(directions, origin)
    with pytest.raises(SiteError, match="it has L1"):
        made(lens.model)["L0.resid_post"]


def test_files_come_back_bit_by_bit_and_know_their_model(lens, tmp_path):
    vector = made(lens.model) - made(lens.model, 1)
    path = save(vector, tmp_path / "deep" / "v.safetensors")
    again = load(path, lens.model)
    assert again.origin == vector.origin and again.sites == vector.sites
    assert all(torch.equal(again[at], vector[at]) for at in vector.sites)
    assert [file.name for file in path.parent.iterdir()] == ["v.safetensors"]
    twin = random_twin(lens.model)
    with pytest.raises(MechlabError, match=rf"{lens.model.name} .*{twin.name}"):
        load(path, twin)


def test_damaged_files_are_told(lens, tmp_path):
    path = save(made(lens.model), tmp_path / "v.safetensors")
    whole = path.read_bytes()
    bad = {
        "cut.safetensors": (whole[:-40], "no whole safetensors"),
        "version.safetensors": (whole.replace(b'\\"version\\":1', b'\\"version\\":7'), "version 7"),
        "site.safetensors": (whole.replace(b"L1.resid_post", b"L1.resid_past"), "damaged"),
    }
    for name, (content, message) in bad.items():
        assert content != whole
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StoreError, match=message):
            load(tmp_path / name)
    with pytest.raises(StoreError, match="cannot be read"):
        load(tmp_path / "absent.safetensors")
    import safetensors.torch

    (tmp_path / "other.safetensors").write_bytes(safetensors.torch.save({"a": torch.ones(2)}))
    with pytest.raises(StoreError, match="no steering vector"):
        load(tmp_path / "other.safetensors")


def test_gguf_is_what_llama_cpp_and_repeng_read(lens, tmp_path):
    """Their own readers' steps: tensors named direction.N, N the block counted from 0 and at least 1, float32 [d_model]."""
    vector = made(lens.model)
    reader = gguf.GGUFReader(export(vector, tmp_path / "v.gguf", lens.model))
    text = lambda key: str(bytes(reader.get_field(key).parts[-1]), "utf-8")  # noqa: E731
    assert text("general.architecture") == "controlvector"
    assert text("controlvector.model_hint") == "llama"
    assert int(reader.get_field("controlvector.layer_count").parts[-1][0]) == 2
    found = {int(one.name.split(".")[1]): one for one in reader.tensors if one.name.startswith("direction.")}
    assert sorted(found) == [1, 2]
    for layer, one in found.items():
        assert one.data.dtype == np.float32 and one.shape.tolist() == [lens.model.d_model]
        assert np.array_equal(one.data, vector[Site("resid_post", layer)].numpy())
    assert "counted from 0" in text("mechlab.layer_numbers")
    again = read_control_vector(tmp_path / "v.gguf", lens.model)
    assert again.origin == vector.origin and torch.equal(again[B], vector[B])


def test_gguf_from_elsewhere_and_what_it_has_no_place_for(lens, tmp_path):
    def written(path: Path, hint: str = "llama", size: int = lens.model.d_model, layer: int = 1, arch="controlvector"):
        writer = gguf.GGUFWriter(path, arch)
        writer.add_string(f"{arch}.model_hint", hint)
        writer.add_uint32(f"{arch}.layer_count", 1)
        writer.add_tensor(f"direction.{layer}", np.arange(size, dtype=np.float32))
        for step in (
            writer.write_header_to_file,
            writer.write_kv_data_to_file,
            writer.write_tensors_to_file,
            writer.close,
        ):
            step()
        return path

    found = read_control_vector(written(tmp_path / "a.gguf"), lens.model)
    assert found.sites == (A,) and found[A][3] == 3 and found.origin.method == "gguf file"
    for options, error, message in (
        ({"hint": "gpt2"}, MechlabError, "gpt2 model"),
        ({"size": 5}, MechlabError, "width 5"),
        ({"layer": 3}, MechlabError, "layers 0 to 2"),
        ({"arch": "llama"}, StoreError, "no control vector"),
    ):
        with pytest.raises(error, match=message):
            read_control_vector(written(tmp_path / "b.gguf", **options), lens.model)
    (tmp_path / "c.gguf").write_bytes(b"GGUF" + b"\0" * 3)
    with pytest.raises(StoreError):
        read_control_vector(tmp_path / "c.gguf", lens.model)
    for at in (Site("resid_post", 0), Site("mlp_out", 1)):
        with pytest.raises(MechlabError, match=str(at)):
            export(made(lens.model, sites=(at,)), tmp_path / "d.gguf", lens.model)
    assert not (tmp_path / "d.gguf").exists()
    twin = random_twin(lens.model)
    with pytest.raises(MechlabError, match="load that model"):
        read_control_vector(export(made(lens.model), tmp_path / "e.gguf", lens.model), twin)


def test_origin_is_plain_json(lens):
    vector = 0.5 * (made(lens.model) + made(lens.model, 1))
    assert VectorOrigin.model_validate(json.loads(vector.origin.model_dump_json())) == vector.origin
