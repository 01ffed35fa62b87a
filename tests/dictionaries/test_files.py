"""Folders: sae-lens reads what we write and we read what it writes; other projects' folders compute what those projects compute."""

import json

import pytest
import torch
from saes import ARCHITECTURES, TRANSCODERS, dictionary, random_sae
from safetensors.torch import load_file, save_file

from mechlab.dictionaries.dictionary import check_fits
from mechlab.dictionaries.files import load_dictionary, read_origin, save_dictionary
from mechlab.dictionaries.foreign import place
from mechlab.errors import MechlabError, UnknownName
from mechlab.lens.lens import Lens
from mechlab.models.tiny_models import tiny

X = torch.randn(9, 16, generator=torch.Generator().manual_seed(1)) * 2


@pytest.fixture(scope="module")
def lens():
    return Lens(tiny("llama", seed=3))


@pytest.mark.parametrize("name", [*ARCHITECTURES, *TRANSCODERS])
def test_what_we_write_sae_lens_reads_and_we_read_back_exactly(lens, tmp_path, name):
    from sae_lens import SAE

    target = "L1.mlp_out" if name in TRANSCODERS else None
    given = dictionary(lens, name, "L1.mlp_in", target)
    folder = save_dictionary(given, tmp_path / "sae")
    theirs, ours = SAE.load_from_disk(folder), load_dictionary(folder)
    assert ours.origin == given.origin
    assert theirs.cfg.metadata.hook_name == "blocks.1.mlp.hook_in"
    x = torch.randn(9, lens.model.d_model)
    assert torch.equal(ours.encode(x), given.encode(x))
    assert torch.equal(ours.reconstruct(x), theirs(x))
    saved = load_file(folder / "sae_weights.safetensors")
    again = save_dictionary(ours, tmp_path / "again")
    for key, tensor in load_file(again / "sae_weights.safetensors").items():
        assert torch.equal(tensor, saved[key])
    assert json.loads((again / "cfg.json").read_text()) == json.loads((folder / "cfg.json").read_text())
    check_fits(ours, lens, ours.site)


def test_a_folder_of_sae_lens_says_itself_what_it_was_made_for(lens, tmp_path):
    sae = random_sae("topk", 16, 40)
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "gpt2-small", "blocks.7.hook_resid_pre"
    sae.save_model(tmp_path / "sae")
    found = load_dictionary(tmp_path / "sae")
    assert (found.origin.model, found.origin.site, found.origin.method) == ("gpt2-small", "L7.resid_pre", "topk")
    assert torch.equal(found.encode(X), sae.encode(X))
    with pytest.raises(MechlabError, match=rf"made for gpt2-small .* loaded is {lens.model.name}"):
        check_fits(found, lens)
    check_fits(load_dictionary(tmp_path / "sae", model=lens.model), lens)
    with pytest.raises(MechlabError, match=r"decomposes L7.resid_pre and was asked about L6.resid_pre"):
        check_fits(load_dictionary(tmp_path / "sae", model=lens.model), lens, lens_site("L6.resid_pre@-1"))


def lens_site(text):
    from mechlab.lens.site import site

    return site(text)


def test_one_head_is_said_in_the_metadata(tmp_path):
    sae = random_sae("standard", 16, 40)
    metadata = sae.cfg.metadata
    metadata.model_name, metadata.hook_name, metadata.hook_head_index = "gpt2", "blocks.3.attn.hook_z", 5
    sae.save_model(tmp_path / "sae")
    found = load_dictionary(tmp_path / "sae")
    assert found.origin.site == "L3H5"
    again = load_dictionary(save_dictionary(found, tmp_path / "again"))
    assert again.origin == found.origin
    (tmp_path / "again" / "origin.json").unlink()
    assert load_dictionary(tmp_path / "again").origin.site == "L3H5"


def test_a_folder_that_does_not_say_its_model_or_site_is_refused(lens, tmp_path):
    sae = random_sae("standard", 16, 40)
    sae.save_model(tmp_path / "sae")
    with pytest.raises(MechlabError, match="which model"):
        load_dictionary(tmp_path / "sae")
    with pytest.raises(MechlabError, match="which activations"):
        load_dictionary(tmp_path / "sae", model=lens.model)
    found = load_dictionary(tmp_path / "sae", model=lens.model, site="L1.resid_post")
    assert found.origin.fingerprint == lens.model.fingerprint


def test_sparsify(tmp_path):
    """Against sparsify's own formula: top-k of relu((x - b_dec) W^T + b), then W_dec and b_dec."""
    g = torch.Generator().manual_seed(0)
    folder = tmp_path / "run" / "layers.10"
    folder.mkdir(parents=True)
    w_enc, w_dec, b_enc, b_dec = (torch.randn(s, generator=g) for s in ((40, 16), (40, 16), (40,), (16,)))
    save_file(
        {"encoder.weight": w_enc, "encoder.bias": b_enc, "W_dec": w_dec, "b_dec": b_dec}, folder / "sae.safetensors"
    )
    (folder / "cfg.json").write_text(json.dumps({"d_in": 16, "k": 6, "num_latents": 40, "activation": "topk"}))
    (folder.parent / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m"}))
    found = load_dictionary(folder)
    assert (found.origin.site, found.origin.model) == ("L10.resid_post", "EleutherAI/pythia-70m")
    top = torch.relu((X - b_dec) @ w_enc.T + b_enc).topk(6, dim=1)
    assert torch.allclose(
        found.reconstruct(X), torch.einsum("nk,nkd->nd", top.values, w_dec[top.indices]) + b_dec, atol=1e-4
    )
    assert int((found.encode(X) != 0).sum(1).max()) <= 6
    for change in ({"activation": "groupmax"}, {"signed": True}, {"transcode": True}):
        (folder / "cfg.json").write_text(json.dumps({"d_in": 16, "k": 6, "num_latents": 40, **change}))
        with pytest.raises(MechlabError, match=r"only plain top-k|top-k codes"):
            load_dictionary(folder)


def dictionary_learning_folder(tmp_path, kind, weights, **extra):
    folder = tmp_path / kind
    folder.mkdir()
    torch.save(weights, folder / "ae.pt")
    trainer = {
        "dict_class": kind,
        "activation_dim": 16,
        "dict_size": 40,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m",
    }
    (folder / "config.json").write_text(
        json.dumps({"trainer": {**trainer, "submodule_name": "resid_post_layer_3", **extra}})
    )
    return folder


def test_dictionary_learning(tmp_path):
    """Each class against its own forward pass, written out here."""
    g = torch.Generator().manual_seed(0)
    w, d = torch.randn(40, 16, generator=g), torch.randn(16, 40, generator=g)
    c, b = torch.randn(40, generator=g), torch.randn(16, generator=g)
    linear = {"encoder.weight": w, "encoder.bias": c, "decoder.weight": d}

    plain = dictionary_learning_folder(tmp_path, "AutoEncoder", {**linear, "bias": b})
    codes = torch.relu((X - b) @ w.T + c)
    found = load_dictionary(plain)
    assert found.origin.site == "L3.resid_post"
    assert torch.allclose(found.encode(X), codes, atol=1e-5)
    assert torch.allclose(found.reconstruct(X), codes @ d.T + b, atol=1e-4)

    top = dictionary_learning_folder(tmp_path, "AutoEncoderTopK", {**linear, "b_dec": b, "k": torch.tensor(4)}, k=4)
    kept = codes.topk(4, dim=1)
    assert torch.allclose(load_dictionary(top).encode(X), torch.zeros_like(codes).scatter(1, *kept[::-1]), atol=1e-5)

    batch = {**linear, "b_dec": b, "k": torch.tensor(4), "threshold": torch.tensor(1.7)}
    found = load_dictionary(dictionary_learning_folder(tmp_path, "BatchTopKSAE", batch, k=4))
    assert torch.allclose(found.encode(X), codes * (codes > 1.7), atol=1e-5)

    jump = {"W_enc": w.T, "b_enc": c, "W_dec": d.T, "b_dec": b, "threshold": torch.rand(40, generator=g)}
    found = load_dictionary(dictionary_learning_folder(tmp_path, "JumpReluAutoEncoder", jump))
    before = X @ w.T + c
    assert torch.allclose(found.encode(X), torch.relu(before) * (before > jump["threshold"]), atol=1e-5)

    gated = {
        "encoder.weight": w,
        "decoder.weight": d,
        "decoder_bias": b,
        "gate_bias": c,
        "mag_bias": -c,
        "r_mag": c / 5,
    }
    found = load_dictionary(dictionary_learning_folder(tmp_path, "GatedAutoEncoder", gated))
    x_enc = (X - b) @ w.T
    wanted = (x_enc + c > 0) * torch.relu(x_enc * (c / 5).exp() - c)
    assert torch.allclose(found.encode(X), wanted, atol=1e-4)

    with pytest.raises(UnknownName, match="dictionary_learning class 'Nope'"):
        load_dictionary(dictionary_learning_folder(tmp_path, "Nope", {}))


def test_a_pickle_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    folder = dictionary_learning_folder(tmp_path, "AutoEncoder", {"bias": Evil()})
    with pytest.raises(MechlabError, match="cannot be read"):
        load_dictionary(folder)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("hook", "wanted"),
    [
        ("blocks.4.hook_resid_post", "L4.resid_post"),
        ("model.layers.15", "L15.resid_post"),
        ("gpt_neox.layers.2.mlp", "L2.mlp_out"),
        ("transformer.h.3.attn", "L3.attn_out"),
        ("blocks.8.ln2.hook_normalized", "L8.mlp_in"),
        ("blocks.8.hook_mlp_out", "L8.mlp_out"),
        ("layers.7", "L7.resid_post"),
        ("L5H3", "L5H3"),
    ],
)
def test_places_under_other_names(hook, wanted):
    assert place(hook) == wanted


def test_a_folder_is_whole_or_absent(lens, tmp_path, monkeypatch):
    given = dictionary(lens, "topk", "L1.resid_post")
    monkeypatch.setattr(type(given.sae), "save_model", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(MechlabError, match=r"cannot be written .No space left"):
        save_dictionary(given, tmp_path / "sae")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    save_dictionary(given, tmp_path / "sae")
    with pytest.raises(MechlabError, match="exists"):
        save_dictionary(given, tmp_path / "sae")


def test_bad_folders(lens, tmp_path):
    with pytest.raises(MechlabError, match="There is no folder"):
        load_dictionary(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MechlabError, match="holds no dictionary"):
        load_dictionary(tmp_path / "empty")
    folder = save_dictionary(dictionary(lens, "topk", "L1.resid_post"), tmp_path / "sae")
    weights = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(weights[:100])
    with pytest.raises(MechlabError, match="cannot be read"):
        load_dictionary(folder)
    (folder / "origin.json").write_text("{}")
    with pytest.raises(MechlabError, match="no dictionary's origin"):
        read_origin(folder)


def test_ids_of_the_hub_offline():
    with pytest.raises(UnknownName, match=r"Unknown release 'gpt2-small-res-jbb'.*gpt2-small-res-jb"):
        load_dictionary("gpt2-small-res-jbb/blocks.7.hook_resid_pre")
    with pytest.raises(UnknownName, match=r"Unknown SAE 'blocks.70.hook_resid_pre'"):
        load_dictionary("gpt2-small-res-jb/blocks.70.hook_resid_pre")
    with pytest.raises(MechlabError, match=r"cannot be fetched .* the hub must be reachable"):
        load_dictionary("gpt2-small-res-jb/blocks.7.hook_resid_pre")


def test_what_is_no_sae_has_a_folder_of_its_own(lens, tmp_path):
    from mechlab.dictionaries.baselines import kmeans, pca
    from mechlab.dictionaries.dictionary import DictionaryOrigin
    from mechlab.dictionaries.matching_pursuit import StopRules
    from mechlab.dictionaries.matching_pursuit_dictionary import MpDictionary
    from mechlab.dictionaries.snmf import SnmfDictionary

    x = torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
    origin = DictionaryOrigin(
        method="", model=lens.model.name, fingerprint=lens.model.fingerprint, site="L1.resid_post"
    )
    pursuit = MpDictionary(origin, x[:20], x.mean(0), StopRules(steps=4, stop_on_duplicate=True))
    for i, given in enumerate([pca(x, 6, origin, top=3), kmeans(x, 5, origin), pursuit, SnmfDictionary(origin, x[:4])]):
        folder = save_dictionary(given, tmp_path / f"own-{i}")
        found = load_dictionary(folder)
        assert type(found) is type(given)
        assert found.origin == given.origin
        assert all(torch.equal(found.tensors()[key], value) for key, value in given.tensors().items())
        assert torch.allclose(found.encode(x), given.encode(x), atol=1e-6)
    record = json.loads((folder / "dictionary.json").read_text())
    for changed, message in (
        ({"class": "os:system"}, r"Unknown dictionary class 'os:system'"),
        ({"schema": 9}, r"another schema than 1"),
    ):
        (folder / "dictionary.json").write_text(json.dumps({**record, **changed}))
        with pytest.raises(MechlabError, match=message):
            load_dictionary(folder)


def test_a_dictionary_without_a_form_on_disk_is_refused(lens, tmp_path):
    from mechlab.dictionaries.dictionary import Dictionary

    class Other(Dictionary):
        directions = torch.eye(3)

        def encode(self, activations):
            return activations

        def decode(self, codes):
            return codes

    with pytest.raises(MechlabError, match="A Other has no form on disk"):
        save_dictionary(Other(dictionary(lens, "topk", "L1.resid_post").origin), tmp_path / "x")
    assert not (tmp_path / "x").exists()
