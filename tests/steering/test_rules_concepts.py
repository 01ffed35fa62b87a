"""Concepts from activations: thresholds against brute force, a planted concept found, features of a dictionary; and actions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mechlab.dictionaries.baselines import ProjectionDictionary
from mechlab.dictionaries.dictionary import DictionaryOrigin
from mechlab.errors import MechlabError, UnknownName
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from steering.examples import Material
from steering.methods.means import MEAN_DIFFERENCE
from steering.rules.actions import Action, first_fact, taken
from steering.rules.chain import chain
from steering.rules.clause import atom, read_rules
from steering.rules.concepts import (
    Detectors,
    balanced_accuracy,
    best_threshold,
    calibrated,
    one_direction_each,
    relevant_features,
)
from steering.vector import SteeringVector, VectorOrigin

AT = Site("resid_post", 0)


def accuracy_at(threshold: float, score: Tensor, label: Tensor) -> float:
    found = score > threshold
    return (float(found[label].float().mean()) + float((~found)[~label].float().mean())) / 2


def test_the_threshold_is_the_brute_force_optimum_in_the_widest_gap() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (3, 8, 17):
        for _ in range(20):
            score = torch.randint(0, 9, (n,), generator=generator).float()
            label = torch.rand(n, generator=generator) < 0.4
            label[:2] = torch.tensor([True, False])
            candidates = [-1.0, *(score.unique() + 0.5).tolist(), *score.unique().tolist()]
            best = max(accuracy_at(t, score, label) for t in candidates)
            assert accuracy_at(best_threshold(score, label), score, label) == pytest.approx(best)
    score = torch.tensor([0.0, 1.0, 2.0, 6.0, 7.0])
    assert best_threshold(score, score > 3) == 4.0
    with pytest.raises(MechlabError, match="some of each"):
        best_threshold(score, score > 9)


def test_balanced_accuracy_by_hand() -> None:
    detected = torch.tensor([[True], [False], [True], [False], [False]])
    labels = torch.tensor([[True], [True], [False], [False], [False]])
    assert balanced_accuracy(detected, labels).tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2])


def vectors_of(lens: Lens, rows: dict[str, Tensor]) -> dict[str, SteeringVector]:
    origin = VectorOrigin(model=lens.model.name, fingerprint=lens.model.fingerprint, method="given")
    return {name: SteeringVector({AT: row}, origin) for name, row in rows.items()}


def test_a_planted_concept_is_detected_on_prompts_it_was_not_made_from(planted: Any) -> None:
    examples = planted.examples
    made = MEAN_DIFFERENCE.extract(Material(planted.lens, examples, [AT]))
    assert float(torch.cosine_similarity(made[AT], planted.early, dim=0)) > 0.95
    x = Material(planted.lens, examples, [AT]).activations[AT]
    labels = examples.is_wanted[:, None]
    half, other = torch.arange(len(x)) % 2 == 0, torch.arange(len(x)) % 2 == 1
    dictionary, features = one_direction_each({"marked": made}, x.mean(0))
    found = calibrated(dictionary, features, x[half], labels[half])
    assert found.detected(x[other]) == [("marked",) if yes else () for yes in labels[other, 0]]
    random = torch.randn(len(made[AT]), generator=torch.Generator().manual_seed(3))
    dictionary, features = one_direction_each(vectors_of(planted.lens, {"marked": random}), x.mean(0))
    control = calibrated(dictionary, features, x[half], labels[half])
    assert float(balanced_accuracy(control.margins(x[other]) > 0, labels[other])) < 0.9
    assert torch.allclose(found.vector("marked", planted.lens.model)[AT], made.normalised()[AT])


def test_the_clearest_concepts_come_first_and_no_more_than_asked(lens: Lens) -> None:
    d = lens.model.d_model
    rows = dict(zip("ab", torch.eye(d)[:2], strict=True))
    dictionary, features = one_direction_each(vectors_of(lens, rows), torch.zeros(d))
    detectors = Detectors(dictionary, features, torch.tensor([1.0, 1.0]), torch.tensor([1.0, 4.0]))
    x = torch.zeros(3, d)
    x[0, :2] = torch.tensor([3.0, 5.0])  # margins 2 and 1: the spread counts
    x[1, :2] = torch.tensor([1.0, 5.0])  # the first is at its threshold, not above
    assert detectors.detected(x) == [("a", "b"), ("b",), ()]
    assert detectors.detected(x, most=1) == [("a",), ("b",), ()]
    with pytest.raises(UnknownName, match="concept"):
        detectors.vector("c", lens.model)


def test_features_of_a_dictionary_by_rise_and_rank(lens: Lens) -> None:
    d = lens.model.d_model
    origin = DictionaryOrigin(method="given", model=lens.model.name, fingerprint=lens.model.fingerprint, site=str(AT))
    dictionary = ProjectionDictionary(origin, torch.eye(d), torch.zeros(d))
    x = torch.zeros(4, d)
    x[:2, 5], x[:2, 9], x[2:, 7] = 3.0, 2.0, 4.0
    labels = torch.tensor([[True], [True], [False], [False]])
    features = relevant_features(dictionary, x, labels, ["c"], top=2)
    first, second = 1.0, 1 / 1.5849625
    assert list(features["c"]) == [5, 9]
    assert list(features["c"].values()) == pytest.approx(
        [first / (first + second), second / (first + second)], rel=1e-5
    )
    vector = calibrated(dictionary, features, x, labels).vector("c", lens.model)[AT]
    assert vector[5] == pytest.approx(features["c"][5]) and vector[7] == 0


def test_directions_at_two_sites_are_refused(lens: Lens) -> None:
    one = vectors_of(lens, {"a": torch.ones(4)})["a"]
    with pytest.raises(MechlabError, match="one site"):
        one_direction_each({"a": one, "b": one.moved({AT: Site("resid_post", 1)})}, torch.zeros(4))


def test_actions_are_taken_where_their_fact_follows_with_its_proof(lens: Lens) -> None:
    rules = read_rules("rules: [{name: r, if: ['france(?x)'], then: 'europe(?x)'}]")
    vectors = vectors_of(lens, {"push": torch.ones(lens.model.d_model)})
    act = Action(when="europe(?x)", vector="push", strength=2.0)
    closure = chain([atom("france(it)")], rules)
    (done,) = taken(lens.model, closure, [act, Action(when="asia(?x)", vector="push")], vectors, scale=0.5)
    assert done.fact == atom("europe(it)") and [step.fact for step in done.proof] == [atom("france(it)"), done.fact]
    base, steered = (lens.run("Mary said the", edits, read=[AT])[AT] for edits in ((), done.edits))
    assert torch.equal(base[:, 0], steered[:, 0])  # the first token is left alone
    assert torch.allclose(steered[:, 1:] - base[:, 1:], torch.ones_like(base[:, 1:]), atol=1e-5)
    assert taken(lens.model, chain([], rules), [act], vectors) == []
    (off,) = taken(lens.model, closure, [act], vectors, scale=0)
    assert off.edits == ()
    with pytest.raises(UnknownName, match="pull"):
        taken(lens.model, closure, [Action(when="europe(?x)", vector="pull")], vectors)


def test_patterns_of_actions_cover_what_they_say() -> None:
    facts = ["r(a, b)", "r(b, b)", "s(b)"]
    closure = chain([atom(text) for text in facts], ())
    expected = {"r(?x, ?y)": "r(a, b)", "r(?x, ?x)": "r(b, b)", "r(b, ?y)": "r(b, b)", "s(a)": None, "r(?x)": None}
    for pattern, fact in expected.items():
        assert first_fact(atom(pattern), closure) == (atom(fact) if fact else None), pattern
