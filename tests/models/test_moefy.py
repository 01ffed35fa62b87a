"""A dense model cut into experts is the dense model when all are chosen; with fewer, the experts follow what the neurons do together."""

import pytest
import torch
from torch.testing import assert_close

from mechlab.errors import ModelError
from mechlab.lens import Lens
from mechlab.lens.edit import route
from mechlab.models import load, tiny
from mechlab.models.moefy_model import MOEFIED, Cut, balanced_groups, moefy, price, save_moefied, with_chosen
from mechlab.models.words import FUNCTION_WORDS, NAMES, OBJECTS

TEXTS = [" ".join((*NAMES[i:], *OBJECTS, *FUNCTION_WORDS[:30]))[: 300 + i] for i in range(12)]
IDS = torch.tensor([list(range(10, 40)), list(range(60, 90))])


@pytest.fixture(scope="module")
def dense():
    return tiny("llama")


@pytest.fixture(scope="module")
def sparse(dense):
    return moefy(dense, TEXTS, Cut(n_experts=11, k=11, tokens=600))


def test_with_all_experts_chosen_it_is_the_dense_model(dense, sparse):
    ours, theirs = sparse.hf(IDS).logits, dense.hf(IDS).logits
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    assert price(dense, sparse, TEXTS[:2])[0] == pytest.approx(price(dense, sparse, TEXTS[:2])[1], rel=1e-4)


def test_every_neuron_is_in_one_expert(dense, sparse):
    mlp, experts = dense.hf.model.layers[1].mlp, sparse.hf.model.layers[1].block_sparse_moe.experts
    rows = torch.cat([experts.gate_up_proj[e][:8] for e in range(11)])  # 88 neurons, 11 experts
    assert_close(rows.sort(dim=0).values, mlp.gate_proj.weight.sort(dim=0).values, rtol=0, atol=0)


def test_with_fewer_each_weighs_the_same_and_the_routers_choice_beats_a_random_one(dense, sparse):
    fewer = with_chosen(sparse, 4)
    lens = Lens(fewer)
    run = lens.run(IDS.tolist(), read=["L1.expert_weights", "L1.mlp_in", "L1.mlp_out"])
    weights = run["L1.expert_weights"]
    assert_close(weights[weights > 0], torch.full((2 * 30 * 4,), 0.25), rtol=1e-4, atol=0)
    whole = dense.hf.model.layers[1].mlp(run["L1.mlp_in"])
    missed = float((whole - run["L1.mlp_out"]).norm() / whole.norm())
    others = fewer.hf.model.layers[1].block_sparse_moe.router.weight
    kept = others.clone()
    drawn = []
    for seed in range(5):
        others.data.copy_(torch.randn(kept.shape, generator=torch.Generator().manual_seed(seed)) * 1e-6)
        again = fewer.hf.model.layers[1].block_sparse_moe(run["L1.mlp_in"])
        drawn.append(float((whole - again).norm() / whole.norm()))
    others.data.copy_(kept)
    assert missed < min(drawn)
    assert (
        float((lens.run(IDS.tolist(), [route("L1E0", "drop")]).logits - lens.run(IDS.tolist()).logits).abs().max())
        > 1e-3
    )
    assert_close(
        sparse.hf(IDS).logits, dense.hf(IDS).logits, rtol=1e-4, atol=1e-2
    )  # the one it was made of is as it was


def test_neurons_that_are_active_together_become_one_group():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(4).repeat_interleave(6)[torch.randperm(24, generator=generator)]
    causes = (torch.rand(4, 300, generator=generator) < 0.3).float()
    patterns = causes[truth] + 0.1 * torch.rand(24, 300, generator=generator)
    groups = balanced_groups(patterns, 4, seed=1)
    assert sorted(len(group) for group in groups) == [6, 6, 6, 6]
    assert all(len(truth[group].unique()) == 1 for group in groups)


def test_it_is_kept_and_loaded_by_its_name(sparse, tmp_path, monkeypatch):
    monkeypatch.setenv("MECHLAB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="'smollm2-moe' has not been made here"):
        load(MOEFIED)
    save_moefied(sparse, {"perplexity": 2.0})
    loaded = load(MOEFIED)
    assert loaded.source == MOEFIED
    assert_close(loaded.hf(IDS).logits, sparse.hf(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "cut", "message"),
    [
        ("gpt2", Cut(8, 8), "is a gpt2: only Llama models"),
        ("llama", Cut(7, 7), "88 neurons cannot be cut into 7 equal experts"),
        ("llama", Cut(8, 8), "experts of a multiple of 4 neurons"),
        ("llama", Cut(11, 12), "into 11 equal experts of which 12 are chosen"),
    ],
)
def test_what_cannot_be_cut_is_refused(family, cut, message):
    with pytest.raises(ModelError, match=message):
        moefy(tiny(family), TEXTS, cut)


def test_too_little_text_and_too_many_chosen(dense, sparse):
    with pytest.raises(ModelError, match="are too few to fit a router of 64 inputs"):
        moefy(dense, TEXTS[:1], Cut(11, 8))
    with pytest.raises(ModelError, match="has 11 experts in a layer and 12 were to be chosen"):
        with_chosen(sparse, 12)
