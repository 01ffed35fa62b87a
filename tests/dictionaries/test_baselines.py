"""Baselines against what they are by definition, and all of them wearing the face."""

import pytest
import torch
from torch import Tensor

from mechlab.dictionaries import baselines
from mechlab.dictionaries.dictionary import Dictionary, DictionaryOrigin
from mechlab.dictionaries.files import load_dictionary, save_dictionary
from mechlab.dictionaries.matching_pursuit import StopRules
from mechlab.dictionaries.matching_pursuit_dictionary import MpDictionary
from mechlab.dictionaries.snmf import SnmfDictionary
from mechlab.errors import MechlabError

ORIGIN = DictionaryOrigin(method="x", model="toy", site="L2.mlp_post", settings={"k": 3})


def data(n: int = 400, d: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(3, 0.2, d)
    return torch.randn(n, d, generator=generator) * scales + torch.arange(d)


def every() -> list[Dictionary]:
    x, labels = data(), torch.arange(400) % 3
    trained = MpDictionary(ORIGIN, baselines.random_units(11, 9))
    return [
        baselines.pca(x, 4, ORIGIN),
        baselines.ica(x, 4, ORIGIN),
        baselines.kmeans(x, 4, ORIGIN),
        baselines.difference_in_means(x, labels, ["a", "b", "c"], ORIGIN),
        baselines.random_directions(x, 4, ORIGIN, top=2),
        baselines.random_directions(x, 4, ORIGIN, sparsity=0.2),
        baselines.top_neurons(x, 4, ORIGIN),
        baselines.untrained(trained),
        SnmfDictionary(ORIGIN, baselines.random_units(5, 9)),
        MpDictionary(
            ORIGIN, baselines.random_units(11, 9), torch.arange(9.0), StopRules(steps=None, residual_threshold=0.5)
        ),
    ]


@pytest.mark.parametrize("dictionary", every(), ids=lambda one: one.origin.method)
def test_all_wear_the_face_and_have_a_form_on_disk(dictionary: Dictionary, tmp_path) -> None:  # pyright: ignore
    x = data()[:20]
    codes = dictionary.encode(x)
    assert codes.shape == (20, dictionary.n_features)
    assert dictionary.decode(codes).shape == (20, 9)
    torch.testing.assert_close(dictionary.sparse(x).dense(), codes)
    again = load_dictionary(save_dictionary(dictionary, tmp_path / "one"))
    assert type(again) is type(dictionary)
    torch.testing.assert_close(again.encode(x), codes)
    assert again.origin == dictionary.origin


def test_pca_is_the_best_linear_reconstruction() -> None:
    x = data()
    found = baselines.pca(x, 3, ORIGIN)
    left = (x - found.reconstruct(x)).square().sum()
    values = torch.linalg.svdvals((x - x.mean(0)).double())
    assert float(left) == pytest.approx(float(values[3:].square().sum()), rel=1e-4)
    torch.testing.assert_close(found.directions @ found.directions.T, torch.eye(3), atol=1e-5, rtol=0)


def test_ica_parts_independent_sources() -> None:
    generator = torch.Generator().manual_seed(1)
    sources = torch.rand(3000, 2, generator=generator) - 0.5
    mixing = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.5, 3.0]])
    found = baselines.ica(sources @ mixing, 2, ORIGIN).encode(sources @ mixing)
    correlation = torch.corrcoef(torch.cat([sources, found], dim=1).T)[:2, 2:].abs()
    assert float(correlation.amax(1).min()) > 0.99


def test_kmeans_neurons_and_differences_by_hand() -> None:
    x = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 3.0], [9.0, 0.0, 1.0], [9.0, 0.0, 3.0]])
    centres = baselines.kmeans(x, 2, ORIGIN)
    torch.testing.assert_close(centres.reconstruct(x)[:, 0], x[:, 0], atol=1e-4, rtol=0)
    assert (centres.encode(x).sum(1) == 1).all()
    assert baselines.top_neurons(x, 1, ORIGIN).directions.tolist() == [[1, 0, 0]]
    apart = baselines.difference_in_means(x, torch.tensor([0, 0, 1, 1]), ["left", "right"], ORIGIN)
    torch.testing.assert_close(apart.directions, torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]))


def test_random_directions_have_their_size_and_differ_by_seed() -> None:
    sparse = baselines.random_units(7, 250, sparsity=0.01)
    assert ((sparse != 0).sum(1) == 3).all()
    torch.testing.assert_close(sparse.norm(dim=1), torch.ones(7))
    assert not torch.equal(baselines.random_units(7, 9), baselines.random_units(7, 9, seed=1))
    codes = baselines.random_directions(data(), 6, ORIGIN, top=2).encode(data())
    assert ((codes != 0).sum(1) == 2).all()


def test_untrained_has_the_size_norms_and_sparsity_of_the_trained() -> None:
    trained = MpDictionary(ORIGIN, baselines.random_units(11, 9) * torch.linspace(0.5, 2, 11)[:, None])
    found = baselines.untrained(trained)
    torch.testing.assert_close(found.directions.norm(dim=1), trained.directions.norm(dim=1))
    assert ((found.encode(data()) != 0).sum(1) == 3).all()  # its setting k


def test_bad_input_is_refused() -> None:
    with pytest.raises(MechlabError, match="1 to 9"):
        baselines.pca(data(), 10, ORIGIN)
    with pytest.raises(MechlabError, match="'c' has 0 of 400"):
        baselines.difference_in_means(data(), torch.arange(400) % 2, ["a", "b", "c"], ORIGIN)
    with pytest.raises(MechlabError, match="sparsity of 0"):
        baselines.random_units(3, 9, sparsity=0)
