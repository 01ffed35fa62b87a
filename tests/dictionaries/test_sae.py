"""SaeDictionary gives sae-lens's own numbers, and its directions are what decode adds for one unit of a feature."""

import pytest
import torch
from saes import ARCHITECTURES, TRANSCODERS, random_sae

from mechlab.dictionaries.dictionary import DictionaryOrigin
from mechlab.dictionaries.sae import SaeDictionary
from mechlab.errors import MechlabError

ORIGIN = DictionaryOrigin(method="test", model="m", site="L1.resid_post")
X = torch.randn(11, 16, generator=torch.Generator().manual_seed(1)) * 2


@pytest.mark.parametrize("name", [*ARCHITECTURES, *TRANSCODERS])
def test_numbers_are_sae_lens_s_bit_for_bit(name):
    dictionary = SaeDictionary(random_sae(name, 16, 40, seed=4), ORIGIN)
    own = random_sae(name, 16, 40, seed=4)
    with torch.no_grad():
        codes = own.encode(X)
        own.__dict__.pop("ln_mu", None)
        assert torch.equal(dictionary.encode(X), codes)
        assert 0 < (codes != 0).float().mean() < 1
        assert torch.equal(dictionary.reconstruct(X), own(X))


@pytest.mark.parametrize("name", [n for n in [*ARCHITECTURES, *TRANSCODERS] if "norm" not in n])
def test_a_direction_is_what_one_unit_of_code_adds(name):
    dictionary = SaeDictionary(random_sae(name, 16, 40, seed=4, d_out=12 if name in TRANSCODERS else 16), ORIGIN)
    assert (dictionary.d_in, dictionary.d_out) == (16, 12 if name in TRANSCODERS else 16)
    assert dictionary.n_features == len(dictionary.directions) == 40
    added = dictionary.decode(torch.eye(40)) - dictionary.decode(torch.zeros(40, 40))
    assert torch.allclose(added, dictionary.directions, atol=1e-5)


def test_sparse_codes_are_the_dense_ones():
    dictionary = SaeDictionary(random_sae("abstopk", 16, 40, seed=4), ORIGIN)
    sparse = dictionary.sparse(X)
    assert sparse.indices.shape == (11, 5)
    assert torch.equal(sparse.dense(), dictionary.encode(X))
    assert bool((sparse.values < 0).any())  # signs are kept


def test_a_per_token_norm_decodes_only_the_rows_it_encoded():
    dictionary = SaeDictionary(random_sae("layer norm", 16, 40), ORIGIN)
    codes = dictionary.encode(X)
    assert torch.equal(dictionary.decode(codes), dictionary.decode(codes))  # sae-lens itself decodes once
    with pytest.raises(MechlabError, match="3 codes have no norms"):
        dictionary.decode(codes[:3])
    other = dictionary.encode(X[:3] * 5 + 1)
    assert torch.allclose(dictionary.reconstruct(X, codes), random_sae("layer norm", 16, 40)(X), atol=1e-6)
    assert len(other) == 3


def test_an_sae_that_cannot_be_used_is_refused():
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

    with pytest.raises(MechlabError, match="still one for training"):
        SaeDictionary(TopKTrainingSAE(TopKTrainingSAEConfig(d_in=4, d_sae=8, k=2)), ORIGIN)  # pyright: ignore[reportArgumentType]
    sae = random_sae("standard", 4, 8)
    sae.cfg.normalize_activations = "expected_average_only_in"
    with pytest.raises(MechlabError, match=r"expected_average_only_in.* does not say by how much"):
        SaeDictionary(sae, ORIGIN)
