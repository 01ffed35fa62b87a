"""SNMF against the published loop written as it stands, against planted factors, and against what must hold of every fit."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mechlab.dictionaries.dictionary import DictionaryOrigin
from mechlab.dictionaries.scorecard_truth import matched_cosine
from mechlab.dictionaries.snmf import (
    SnmfDictionary,
    SnmfSettings,
    factorise,
    initial_loadings,
    loadings_of,
    winners,
)
from mechlab.dictionaries.snmf_hierarchy import hierarchy
from mechlab.dictionaries.snmf_reading import neurons, residual_directions, top_places, top_tokens, vocabulary_logits
from mechlab.dictionaries.snmf_reuse import amplified, neuron_reuse
from mechlab.dictionaries.synthetic import PlantedFactors, planted_factors
from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.lens.site import site
from mechlab.models.tiny_models import tiny

ORIGIN = DictionaryOrigin(method="snmf", model="toy", site="L0.mlp_post")


def settings(**given: object) -> SnmfSettings:
    return SnmfSettings.model_validate({"k": 7, "sparsity": 0.1, "iterations": 15, "inner": 1, **given})


def activations(n: int = 90, d: int = 43, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def published(x: Tensor, start: Tensor, sparsity: float, iterations: int) -> tuple[Tensor, Tensor, list[float]]:
    """The paper's loop in double precision, dense, the loss from the difference itself. ``x [n, d]``, ``start [n, k]``."""
    a, g = x.double().T, start.double()
    kept, losses, f = math.ceil(sparsity * len(a)), [], a[:, : g.shape[1]]
    for _ in range(iterations):
        f = a @ g @ torch.linalg.inv(g.T @ g + 1e-6 * torch.eye(g.shape[1], dtype=torch.float64))
        least = f.abs().sort(dim=0, descending=True).values[kept - 1]
        f = f * (f.abs() >= least)
        norms = g.norm(dim=0)
        g, f = g / norms, f * norms
        af, ff = a.T @ f, f.T @ f
        plus, minus = (lambda m: (m.abs() + m) / 2), (lambda m: (m.abs() - m) / 2)
        g = g * ((plus(af) + g @ minus(ff)) / (minus(af) + g @ plus(ff) + 1e-6)).sqrt()
        losses.append(float((a - f @ g.T).square().sum() / a.square().sum()))
    return f, g, losses


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("batch", [None, 17])
def test_equal_to_the_published_loop(sparsity: float, batch: int | None) -> None:
    chosen = settings(sparsity=sparsity, batch=batch)
    found = factorise(activations().double(), chosen)
    f, g, losses = published(activations(), initial_loadings(activations(), chosen).T, sparsity, 15)
    torch.testing.assert_close(torch.tensor(found.losses), torch.tensor(losses), atol=1e-9, rtol=1e-7)
    assert found.best == min(range(15), key=losses.__getitem__)
    if found.best == 14:  # then the last pair is the best, and scales may differ
        torch.testing.assert_close(found.loadings @ found.features, g @ f.T, atol=1e-6, rtol=1e-6)


def test_the_tracked_loss_is_the_loss_in_single_precision() -> None:
    found = factorise(activations(), settings(iterations=40))
    direct = (activations() - found.loadings @ found.features).square().sum() / activations().square().sum()
    assert found.losses[found.best] == pytest.approx(float(direct), rel=1e-4)
    assert found.losses[found.best] == min(found.losses)
    assert found.error == pytest.approx(float(direct) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("inner", [1, 5])
@pytest.mark.parametrize("init", ["random", "kmeans", "svd"])
def test_the_loss_never_rises_without_winner_take_all(init: str, inner: int) -> None:
    losses = factorise(activations().double(), settings(sparsity=1.0, init=init, inner=inner, iterations=60)).losses
    assert all(after <= before + 1e-9 for before, after in pairwise(losses))
    assert losses[-1] < losses[0] - 1e-3


@pytest.mark.parametrize("init", ["random", "kmeans", "svd"])
def test_loadings_are_never_negative_and_columns_have_their_quota(init: str) -> None:
    found = factorise(activations(), settings(init=init, sparsity=0.07))
    assert float(found.loadings.min()) >= 0
    torch.testing.assert_close(found.loadings.norm(dim=0), torch.ones(7))
    assert ((found.features != 0).sum(1) == math.ceil(0.07 * 43)).all()


def test_ties_are_resolved() -> None:
    tied = torch.tensor([[1.0, -1.0, 1.0, -1.0, 0.5], [2.0, 2.0, 2.0, 2.0, 2.0]])
    assert (winners(tied, 2) != 0).sum(1).tolist() == [2, 2]
    assert winners(tied, 5) is tied


@pytest.mark.parametrize(("init", "least"), [("random", 0.9), ("kmeans", 0.9), ("svd", 0.8)])
def test_planted_factors_are_found(init: str, least: float) -> None:
    """From singular vectors it may end where one feature holds two factors: their signs and order mix what is planted."""
    planted, chosen = planted_factors(sparsity=0.02), settings(k=12, sparsity=0.02, init=init, iterations=300, inner=5)
    found, lost = factorise(planted.activations, chosen), factorise(_shuffled(planted).activations, chosen)
    assert matched_cosine(found.features, planted.factors) > least
    assert matched_cosine(lost.features, planted.factors) < 0.75
    assert lost.error > found.error + 0.1


def _shuffled(planted: PlantedFactors) -> PlantedFactors:
    """Every neuron's activations permuted over tokens: nothing fires together any more."""
    generator = torch.Generator().manual_seed(5)
    order = torch.rand(planted.activations.shape, generator=generator).argsort(0)
    return PlantedFactors(planted.activations.gather(0, order), planted.factors, planted.loadings)


def test_stops_when_nothing_improves_by_a_share_of_the_whole() -> None:
    """The tolerance is relative: the same data a thousand times larger stop at the same iteration."""
    chosen = settings(iterations=400, patience=6, tolerance=1e-3)
    small, large = (factorise(scale * activations(), chosen) for scale in (1.0, 1000.0))
    assert len(small.losses) == len(large.losses) < 400


def test_new_activations_are_encoded_with_the_features_fixed() -> None:
    planted = planted_factors(noise=0.0)
    codes = loadings_of(planted.activations, planted.factors)
    assert float(codes.min()) >= 0
    torch.testing.assert_close(codes, planted.loadings, atol=0.05, rtol=0)
    dictionary = SnmfDictionary(ORIGIN, planted.factors)
    error = (dictionary.reconstruct(planted.activations) - planted.activations).square().sum()
    assert float(error / planted.activations.square().sum()) < 1e-3
    again = SnmfDictionary.from_tensors(ORIGIN, dictionary.tensors())
    assert torch.equal(again.encode(planted.activations[:9]), dictionary.encode(planted.activations[:9]))


def test_a_planted_hierarchy_is_found_level_by_level() -> None:
    """Two parents of three children each: a child is active only with its parent."""
    generator = torch.Generator().manual_seed(0)
    fine = torch.zeros(6, 60)
    for i in range(6):
        fine[i, 10 * i : 10 * i + 6] = torch.randn(6, generator=generator)
    parents = torch.rand(800, 2, generator=generator) * (torch.rand(800, 2, generator=generator) < 0.4)
    made = parents[:, [0, 0, 0, 1, 1, 1]] * (0.7 + 0.3 * torch.rand(800, 6, generator=generator))
    found = hierarchy(made @ fine, [6, 2], settings(iterations=200, inner=5), tuning=50)
    nearest = torch.nn.functional.normalize(found.features, dim=1) @ torch.nn.functional.normalize(fine, dim=1).T
    belongs = [{int(nearest[child].argmax()) // 3 for child in family} for family in found.children(1)]
    assert sorted(map(len, found.children(1))) == [3, 3]
    assert belongs in ([{0}, {1}], [{1}, {0}])
    assert found.error <= found.error_before
    assert found.at_level(1).shape == (2, 60)
    torch.testing.assert_close(found.at_level(1), found.mixing[0] @ found.features)
    assert float(found.loadings.min()) >= 0


def test_core_and_exclusive_neurons() -> None:
    features = torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0], [1.0, 0.0, 3.0, 0.0, 0.0], [-1.0, 0.0, 1.0, 4.0, 0.0]])
    found = neuron_reuse(features)
    assert found.core.tolist() == [True, False, False, False, False]
    assert found.exclusive.nonzero().tolist() == [[0, 1], [2, 3]]
    assert found.overlap.tolist() == [[2, 1, 1], [1, 2, 2], [1, 2, 3]]
    assert neuron_reuse(features, share=0.6).core.tolist() == [True, False, True, False, False]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lens(request: pytest.FixtureRequest) -> Lens:
    return Lens(tiny(request.param))


def test_residual_directions_are_what_the_mlp_writes(lens: Lens) -> None:
    """Adding a feature to the neurons changes the MLP's output by W_out F_k, seen in a run of the model."""
    from mechlab.lens.edit import add

    at = site("L1.mlp_post")
    assert lens.layout.d_mlp is not None
    features = torch.randn(3, lens.layout.d_mlp, generator=torch.Generator().manual_seed(2))
    written = residual_directions(lens, at, features)
    plain = lens.run([[5, 6, 7]], read=["L1.mlp_out"])["L1.mlp_out"]
    edited = lens.run([[5, 6, 7]], [add(at, features[2])], read=["L1.mlp_out"])["L1.mlp_out"]
    torch.testing.assert_close((edited - plain)[0, 1], written[2], atol=1e-4, rtol=1e-3)
    with pytest.raises(MechlabError, match="resid_post"):
        residual_directions(lens, site("L1.resid_post"), features)
    with pytest.raises(MechlabError, match="size 5"):
        residual_directions(lens, at, features[:, :5])


def test_tokens_of_both_signs(lens: Lens) -> None:
    directions = torch.randn(2, lens.model.d_model, generator=torch.Generator().manual_seed(1))
    logits = vocabulary_logits(lens, directions)
    (up, down), _ = top_tokens(lens, directions, 3)
    decode = lens.model.tokenizer.decode
    assert up[0] == decode([int(logits[0].argmax())])
    assert down[0] == decode([int(logits[0].argmin())])
    assert len(up) == len(down) == 3


def test_amplified_neurons_change_logits(lens: Lens) -> None:
    assert lens.layout.d_mlp is not None
    groups = torch.zeros(2, lens.layout.d_mlp)
    groups[0, 3] = 2.0
    changes = amplified(lens, [[5, 6, 7], [8, 9, 10]], site("L1.mlp_post"), groups, [11, 12, 13], strength=4.0)
    assert changes.shape == (2, 3)
    assert changes[1].abs().max() == 0  # a group without neurons
    assert changes[0].abs().max() > 1e-4


def test_neurons_and_places_by_size() -> None:
    assert [(n.index, n.weight) for n in neurons(torch.tensor([0.0, -3.0, 1.0, 0.0]))] == [(1, -3.0), (2, 1.0)]
    assert top_places(torch.tensor([[0.1, 0.0], [0.5, 0.0], [0.3, 0.2]]), 2) == [[1, 2], [2]]


def test_bad_input_is_refused() -> None:
    with pytest.raises(MechlabError, match="7 features"):
        factorise(activations(n=5), settings())
    with pytest.raises(MechlabError, match="finite"):
        factorise(activations() / 0, settings())
    with pytest.raises(MechlabError, match="zero"):
        factorise(torch.zeros(20, 9), settings())
    with pytest.raises(MechlabError, match="fall"):
        hierarchy(activations(), [2, 6], settings())
    with pytest.raises(MechlabError, match="two features"):
        neuron_reuse(torch.ones(1, 4))
