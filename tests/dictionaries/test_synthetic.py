"""The synthetic hierarchy: its geometry and statistics, and what toys trained on it learn."""

import statistics

import pytest
import torch

from mechlab.dictionaries.dictionary import DictionaryOrigin
from mechlab.dictionaries.matching_pursuit import StopRules
from mechlab.dictionaries.matching_pursuit_dictionary import MpDictionary
from mechlab.dictionaries.scorecard_truth import recovery
from mechlab.dictionaries.synthetic import (
    CHILDREN,
    FIGURE,
    MEAN_L0,
    PARENT_OF,
    PARENTS,
    Magnitudes,
    directions,
    gram_errors,
    hierarchy,
    mixed,
    planted_factors,
    resampled,
    shuffled_hierarchy,
)
from mechlab.dictionaries.synthetic_training import Method, Run, train_toys
from mechlab.errors import MechlabError

# epsilon of the authors' mixing for each cosine, for groups of 3 and of 11
EPSILON = {0.1: (0.0895, 0.3), 0.3: (0.226, 0.529), 0.5: (0.3335, 0.6467), 0.8: (0.482, 0.7739)}


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.8])
def test_cosines_within_and_between_groups(cosine: float) -> None:
    gram = directions(cosine, 3) @ directions(cosine, 3).T
    expected = torch.eye(20, dtype=torch.float64)
    for group in (PARENTS, *CHILDREN.values()):
        for i in group:
            for j in group:
                expected[i, j] = 1.0 if i == j else cosine
    torch.testing.assert_close(gram, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("cosine", list(EPSILON))
def test_the_closed_form_is_the_authors_mixing(cosine: float) -> None:
    for n, epsilon in zip((3, 11), EPSILON[cosine], strict=True):
        basis = torch.eye(n, dtype=torch.float64)
        theirs = (1 - epsilon) * basis + epsilon / (n - 1) * (1 - basis)
        theirs = torch.nn.functional.normalize(theirs, dim=1)
        torch.testing.assert_close(mixed(basis, cosine), theirs, atol=2e-3, rtol=0)


def test_who_is_active() -> None:
    truth = hierarchy(40_000, seed=1)
    active = truth.codes > 0
    assert float(active.sum(1).double().mean()) == pytest.approx(MEAN_L0, abs=0.01)
    assert (active[:, list(PARENTS)].sum(1) == 1).all()
    for parent, kids in CHILDREN.items():
        assert float(active[:, parent].double().mean()) == pytest.approx(0.2, abs=0.01)
        assert not (active[:, list(kids)].any(1) & ~active[:, parent]).any()
        assert int(active[:, list(kids)].sum(1).max()) == 1
        assert float(active[active[:, parent]][:, kids[1]].double().mean()) == pytest.approx(0.2, abs=0.015)
    torch.testing.assert_close(truth.activations, truth.codes @ truth.directions)


def test_magnitudes() -> None:
    truth = hierarchy(40_000, Magnitudes(child_mean=0.5, child_std=1 / 40), seed=2)
    parents, children = truth.codes[:, 0], truth.codes[:, 2]
    assert float(parents[parents > 0].mean()) == pytest.approx(1.0, abs=0.01)
    assert float(parents[parents > 0].std()) == pytest.approx(0.25, abs=0.01)
    assert float(children[children > 0].mean()) == pytest.approx(0.5, abs=0.005)
    assert float(children[children > 0].std()) == pytest.approx(1 / 40, abs=0.003)
    tied = hierarchy(5000, Magnitudes(child_mean=0.5, tied=True)).codes
    both = tied[tied[:, 2] > 0]
    torch.testing.assert_close(both[:, 2], 0.5 * both[:, 0])


def test_the_truth_scores_full_and_an_absorbed_dictionary_does_not() -> None:
    truth = hierarchy(3000)
    origin = DictionaryOrigin(method="matching_pursuit", model="synthetic", site="embed")
    rules = StopRules(steps=4, residual_threshold=0.01)
    right = MpDictionary(origin, truth.directions, rules=rules)
    found = recovery(right, truth)
    assert found.absorption == pytest.approx(0, abs=1e-6)
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert max(gram_errors(right.directions, truth, right.encode(truth.activations))) < 1e-10
    absorbed = truth.directions.clone()
    for child, parent in enumerate(PARENT_OF):
        if parent >= 0:
            absorbed[child] = (truth.directions[child] + truth.directions[parent]) / 2**0.5
    worse = MpDictionary(origin, absorbed, rules=rules)
    assert recovery(worse, truth).absorption == pytest.approx(0.5**0.5, abs=0.02)
    assert recovery(worse, shuffled_hierarchy(truth, 0)).absorption == pytest.approx(0, abs=0.02)
    errors = gram_errors(worse.directions, truth, worse.encode(truth.activations))
    assert errors.hierarchical > 0.01


def test_matching_pursuit_learns_the_hierarchy_where_l1_absorbs() -> None:
    """The paper's central contrast, at zero correlation, before either has converged; the study has more seeds and steps."""
    runs = [Run(directions(0.0, seed).float(), FIGURE, seed) for seed in range(3)]

    def median(method: Method, steps: int) -> float:
        trained = train_toys(method, runs, steps=steps)
        pairs = zip(runs, trained, strict=True)
        return statistics.median(
            recovery(one, resampled(run.directions, 1000, FIGURE, run.seed + 99)).absorption for run, one in pairs
        )

    assert median("matching_pursuit", 1000) < 0.2
    assert median("relu", 1000) > 0.4


def test_toys_do_not_share_anything() -> None:
    """A model trained beside others is the model trained alone, but for its data's random stream."""
    run = Run(directions(0.0, 4).float(), FIGURE, 4)
    alone, beside = train_toys("relu", [run], steps=3)[0], train_toys("relu", [run, run], steps=3)
    assert alone.directions.shape == (20, 20)
    assert beside[0].directions.shape == (20, 20)
    assert not torch.equal(beside[0].directions, beside[1].directions)  # their samples differ


def test_planted_factors_have_their_sparsity_and_noise() -> None:
    planted = planted_factors(500, 300, 5, sparsity=0.011, noise=0.1)
    assert (planted.factors != 0).sum(1).tolist() == [4] * 5
    assert float(planted.loadings.min()) >= 0
    clean = planted.loadings @ planted.factors
    assert float((planted.activations - clean).norm() / clean.norm()) == pytest.approx(0.1, rel=1e-4)


def test_bad_input_is_refused() -> None:
    with pytest.raises(MechlabError, match="cosine of 1"):
        directions(1.0, 0)
    truth = hierarchy(50)
    with pytest.raises(MechlabError, match="3 atoms"):
        gram_errors(truth.directions[:3], truth, truth.codes[:, :3])
