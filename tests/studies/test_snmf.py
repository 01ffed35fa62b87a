"""The snmf study end to end on a tiny model, and its measures on planted sentences."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mechlab.dictionaries.concepts import Readings
from mechlab.dictionaries.dictionary import DictionaryOrigin
from mechlab.dictionaries.snmf import SnmfSettings
from mechlab.dictionaries.synthetic import planted_factors
from mechlab.errors import MechlabError, PromptError
from mechlab.lens.lens import Lens
from mechlab.lens.site import site
from mechlab.models.tiny_models import tiny
from mechlab.studies import snmf
from mechlab.studies import snmf_claims as claims
from mechlab.studies.snmf_evidence import (
    DIFFERENCE,
    LABELS,
    RANDOM,
    SAE,
    SHUFFLED,
    SNMF,
    Budget,
    measure_layer,
    per_concept,
)
from mechlab.studies.snmf_family import (
    ASKED,
    choose,
    core_rise,
    groups_of,
    measure_family,
    own_over_others,
    random_groups,
)
from mechlab.studies.snmf_levels import REAL, SHUFFLED_FIT, family_ties, measure_levels, ranks

SMALL = {
    "k": 6,
    "sparsity": 0.1,
    "iterations": 10,
    "n_passages": 4,
    "sae_tokens": 20_000,
    "n_steered": 2,
    "samples": 2,
    "new_tokens": 3,
    "draws": 2,
    "kl": 0.02,
    "layers": (1,),
    "tuning": 3,
    "family": ("Paris", "Rome", "London"),
    "family_sparsity": 0.1,
}


def quiet(label: str, done: int, total: int) -> None:
    """Nobody watches."""


def test_end_to_end_on_a_tiny_model() -> None:
    report = snmf.run(Lens(tiny("llama")), snmf.Settings.model_validate(SMALL), quiet)
    keys = ["detects_l1", "together_l1", "steers", "steers_more_than_sae", "steers_more_than_difference"]
    keys += ["families", "exclusive_neurons", "core_neurons"]
    assert [finding.key for finding in report.findings] == keys
    steered = next(table.frame for table in report.tables if table.key == "steering")
    assert sorted(set(steered["method"])) == sorted([SNMF, SAE, DIFFERENCE, RANDOM])
    assert len(steered) == 4 * 2
    assert (steered["strength"] > 0).all()
    tables = {table.key: table.frame for table in report.tables}
    assert tables["levels"]["features"].tolist() == [6, 3, 2] * 2
    assert tables["amplified"]["amplified"].tolist() == ["Paris only", "Rome only", "London only", "core"]
    assert {figure.table for figure in report.figures} == set(tables)


def test_planted_concepts_are_detected_and_planted_groups_fire_together() -> None:
    """Each concept is one planted group of neurons, present in its sentences' tokens only."""
    planted = planted_factors(1200, 120, 4, sparsity=0.04, noise=0.1, seed=3)
    sentence = torch.arange(1200) // 10
    labels = torch.arange(120) % 4
    own = torch.nn.functional.one_hot(labels[sentence], 4).float() * (0.5 + planted.loadings)
    x = own @ planted.factors + 0.02 * torch.randn(1200, 120, generator=torch.Generator().manual_seed(0))
    readings = Readings(x, sentence, labels, torch.arange(120) % 8 >= 4, ("a", "b", "c", "d"))
    budget = Budget(k=4, sparsity=0.04, init="random", iterations=150, draws=3, seed=0)
    origin = DictionaryOrigin(method="snmf", model="toy", site="L0.mlp_post")
    found = measure_layer(site("L0.mlp_post"), readings, x[:50], planted.factors, budget, origin)
    assert per_concept(found.detection, SNMF, "auc").mean() > 0.95
    assert per_concept(found.detection, DIFFERENCE, "auc").mean() > 0.95
    assert per_concept(found.detection, RANDOM, "auc").shape == (3, 4)
    assert per_concept(found.detection, LABELS, "auc").mean() < 0.9
    # where no two concepts share a neuron, single neurons tell them apart too: that is why shuffled activations are a control
    assert per_concept(found.detection, SHUFFLED, "auc").mean() > 0.8
    shared = (found.errors["shuffled 1"] - found.errors["activations"]) / found.power
    assert shared.mean() > 0.05
    assert np.abs((found.errors["shuffled 1"] - found.errors["shuffled 2"]) / found.power).mean() < shared.mean()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="greater than"):
        snmf.Settings.model_validate({"k": 1})


def test_features_of_a_planted_parent_go_together() -> None:
    """Six groups of neurons, three only in sentences of one kind, three only in those of the other."""
    generator = torch.Generator().manual_seed(0)
    fine = torch.zeros(6, 88)
    for i in range(6):
        fine[i, 14 * i : 14 * i + 6] = 1 + torch.rand(6, generator=generator)
    sentence, labels = torch.arange(1600) // 10, torch.arange(160) % 2
    active = torch.rand(160, 2, generator=generator) * torch.nn.functional.one_hot(labels, 2)
    drawn = active[sentence][:, [0, 0, 0, 1, 1, 1]] * (0.5 + 0.5 * torch.rand(1600, 6, generator=generator))
    x = drawn @ fine + 0.01 * torch.randn(1600, 88, generator=generator)
    readings = Readings(x, sentence, labels, torch.arange(160) % 4 >= 2, ("one", "other"))
    settings = SnmfSettings(k=6, sparsity=0.07, iterations=150, seed=0)
    found = measure_levels(Lens(tiny("llama")), site("L1.mlp_post"), readings, x[:40], settings, tuning=5, draws=10)
    assert len(found.ties[REAL]) == len(found.random) == 2
    assert found.ties[REAL][0].mean() > 0.5 > found.random[0].mean() + 0.2  # a random family can be a planted one
    assert found.ties[REAL][0].mean() > found.ties[SHUFFLED_FIT][0].mean() + 0.2
    errors = found.table.set_index(["fit", "level"])["error"]
    assert errors[REAL, 0] < errors[SHUFFLED_FIT, 0] - 0.1  # neurons of noise alone are more than half of both
    assert found.table["auc"][0] > 0.95
    assert found.made_of.shape == (2, 6)
    assert np.allclose(found.made_of.max(axis=1), 1)
    assert set(found.coarse["concept"]) == {"one", "other"}


def test_ties_by_hand() -> None:
    """Pairs of families: (0, 1) at .8 and (2, 3) at .4; unrelated pairs 0, 0, .2, -.2 and those with 4, all .1."""
    correlations = np.array(
        [
            [1.0, 0.8, 0.0, 0.2, 0.1],
            [0.8, 1.0, -0.2, 0.0, 0.1],
            [0.0, -0.2, 1.0, 0.4, 0.1],
            [0.2, 0.0, 0.4, 1.0, 0.1],
            [0.1, 0.1, 0.1, 0.1, 1.0],
        ]
    )
    assert family_ties(correlations, [[1, 0], [3, 2], [4]]) == pytest.approx([0.75, 0.35])
    assert ranks(50) == [50, 25, 12]
    assert ranks(3) == [3, 2]


def test_each_member_gets_a_feature_of_its_own() -> None:
    """Feature 0 loads on both words, most on the second; 1 only on the first; 2 on neither; 3 on the second, on a larger scale."""
    loadings = torch.tensor(
        [
            [3.0, 1.0, 0.0, 0.0],
            [3.0, 1.0, 0.0, 0.0],
            [4.0, 0.0, 0.0, 90.0],
            [4.0, 0.0, 0.0, 100.0],
            [9.0, 9.0, 9.0, 999.0],
        ]
    )
    chosen, scale = choose(loadings, [torch.tensor([0, 1]), torch.tensor([2, 3])])
    assert chosen == [1, 3]
    assert scale.tolist() == [4.0, 1.0, 1.0, 100.0]  # tokens of neither word do not count
    both, _ = choose(loadings[:, [0, 0]], [torch.tensor([0, 1]), torch.tensor([2, 3])])
    assert sorted(both) == [0, 1]


def test_groups_of_neurons_and_random_ones() -> None:
    features = torch.tensor(
        [[2.0, 1.0, 0.0, 0.0, 0.0, 0.0], [4.0, 0.0, 3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0, 0.0, 0.0]]
    )
    groups = groups_of(features)  # a half of three features is two
    assert groups.tolist() == [
        [0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [3.0, 0.0, 4.0, 0.0, 0.0, 0.0],
    ]
    drawn = random_groups(groups, features, 8, seed=0)
    assert len(drawn) == 8
    for one in drawn:
        assert not one[:, :3].any()
        assert [sorted(row[row != 0].tolist()) for row in one] == [[1.0], [], [], [3.0, 4.0]]
    assert len({tuple(one[3].tolist()) for one in drawn}) > 1
    with pytest.raises(MechlabError, match="1 neurons are in no member's feature and a group has 2"):
        random_groups(groups[:, :4], features[:, :4], 1, seed=0)


def test_rises_by_hand() -> None:
    """Two words, two prompts; groups: the first word's, the second's, the core."""
    changes = np.array([[[3.0, 1.0], [1.0, 1.0]], [[0.0, 2.0], [4.0, 1.0]], [[5.0, 6.0], [-1.0, 1.0]]])
    assert own_over_others(changes) == pytest.approx([(2 + 2) / 2, (0 - 3) / 2])
    assert core_rise(changes) == pytest.approx([5.5, 0.0])


def test_a_family_of_a_tiny_model() -> None:
    """Amplified neurons are what an edit adds; shuffled features are others; words and sizes are checked."""
    lens, words, at = Lens(tiny("llama")), ("Paris", "Rome", "London"), site("L1.mlp_post")
    settings = SnmfSettings(k=8, sparsity=0.1, iterations=30, seed=0)
    found = measure_family(lens, at, words, settings, 2, quiet, shuffled=False)
    assert found.changes.shape == (4, len(ASKED), 3) and found.random.shape == (2, 4, len(ASKED), 3)
    assert found.kept == 9 and found.overlap.diagonal().tolist() == [9.0] * 3
    assert found.core + sum(found.exclusive) <= 27
    for row, count in enumerate([*found.exclusive, found.core]):
        assert (np.abs(found.changes[row]).max() > 0) == (count > 0)
    other = measure_family(lens, at, words, settings, 0, quiet, shuffled=True)
    assert other.random.shape[0] == 0 and not np.allclose(other.changes, found.changes)
    with pytest.raises(PromptError, match="Monday, Tuesday only 1 first tokens"):
        measure_family(lens, at, ("Monday", "Tuesday"), settings, 0, quiet, shuffled=False)
    with pytest.raises(MechlabError, match="A family of 3 words needs 2 to 2"):
        measure_family(lens, at, words, settings.model_copy(update={"k": 2}), 0, quiet, shuffled=False)


def test_verdicts_of_structure_follow_their_controls() -> None:
    """Numbers that support the three claims; then each control made as strong as its claim."""
    strong, weak = np.array([0.5, 0.6, 0.4, 0.5]), np.array([0.0, 0.01, -0.01, 0.0])
    changes = np.zeros((3, 4, 2))
    changes[[0, 1], :, [0, 1]] = strong + 1
    changes[2] = (strong + 1)[:, None]
    nothing = changes * 0.01
    good = SimpleNamespace(
        seed=0,
        steered_layer=1,
        family_layer=2,
        levels=SimpleNamespace(ties={REAL: [strong], SHUFFLED_FIT: [weak]}, random=[weak]),
        family=SimpleNamespace(words=("a", "b"), changes=changes, random=np.stack([nothing] * 3)),
        family_shuffled=SimpleNamespace(changes=nothing),
        family_twin=SimpleNamespace(changes=nothing),
    )

    def verdicts(**changed: object) -> list[str]:
        found = SimpleNamespace(**{**vars(good), **changed})
        return [claimed(found).verdict for claimed in (claims._families, claims._exclusive, claims._core)]  # pyright: ignore

    assert verdicts() == ["supported"] * 3
    same = SimpleNamespace(changes=changes)
    assert verdicts(family_twin=same)[1:] == ["not supported"] * 2
    assert verdicts(family_shuffled=same)[1:] == ["not supported"] * 2
    drawn = SimpleNamespace(words=("a", "b"), changes=changes, random=np.stack([nothing, changes]))
    assert "supported" not in verdicts(family=drawn)[1:]
    for levels in (
        SimpleNamespace(ties={REAL: [strong], SHUFFLED_FIT: [strong]}, random=[weak]),
        SimpleNamespace(ties={REAL: [strong], SHUFFLED_FIT: [weak]}, random=[strong]),
    ):
        assert verdicts(levels=levels)[0] != "supported"
