"""Maps, relevance and routing statistics, against numbers worked by hand."""

import dataclasses

import numpy as np
import pytest

from mechlab.analyses.experts import (
    Routed,
    at_most,
    by_group,
    coactivation,
    expert_layers,
    has_fixed_total,
    load_entropy,
    matched_random,
    n_chosen,
    position_thirds,
    ranked,
    relevance,
    routed,
    specialisation,
    token_classes,
)
from mechlab.errors import MechlabError
from mechlab.lens import Lens
from mechlab.models import tiny
from mechlab.models.planted_moe import PLANTED_ROLES, ROLE_WORDS, planted_experts


@pytest.fixture(scope="module")
def planted() -> Lens:
    return Lens(planted_experts())


def test_maps_sum_the_weights_over_each_prompts_tokens(planted):
    found = routed(planted, ["mary", "mary store bomb bomb bomb"])
    maps = found.maps()
    assert (found.layers, maps.shape) == ([0, 1], (2, 2, 6))
    by_role = {role: maps[1][place] for role, place in PLANTED_ROLES.items()}
    for role, n in {"names": 1, "places": 1, "things": 3, "forbidden": 3, "rest": 2}.items():
        assert by_role[role] == pytest.approx(n, abs=1e-6)
    assert maps[0].sum() == pytest.approx(2)  # padding counts for nothing: one token, two layers
    assert (found.choice[0, :, 1:] == -1).all() and (found.choice[0, :, 0] >= 0).all()


def test_every_planted_role_is_first_by_relevance(planted):
    """Top-1 per role, on prompts that hold two words of the role or two of another."""
    words = {role: ROLE_WORDS[role] for role in ("names", "places", "forbidden")}
    for role, own in words.items():
        others = [word for other, many in words.items() if other != role for word in many]
        prompts = [f"{a} {b}" for a, b in zip(own[:4], own[-4:], strict=True)]
        prompts += [f"{a} {b}" for a, b in zip(others[:8], others[-8:], strict=True)]
        scores = relevance(routed(planted, prompts).maps(), np.arange(12) < 4)
        top = ranked(scores, [0, 1])
        assert PLANTED_ROLES[role] == (top[0] if role != "forbidden" else next(e for e in top if e[0] == 1))
        assert scores[PLANTED_ROLES[role]] == pytest.approx(2, abs=1e-5)
    # things and the forbidden ones among them share the expert of layer 0; both stand first, at the same relevance
    assert set(top[:2]) == {PLANTED_ROLES["forbidden"], PLANTED_ROLES["things"]}


def test_relevance_is_a_difference_of_means():
    maps = np.array([[[1.0, 2.0]], [[3.0, 4.0]], [[10.0, 0.0]]])
    assert relevance(maps, np.array([True, True, False])).tolist() == [[-8.0, 3.0]]


def test_ranking_and_its_limits():
    scores = np.array([[0.1, 0.9, 0.3], [0.3, -1.0, 0.8]])
    top = ranked(scores, [2, 5])
    assert top == [(2, 1), (5, 2), (2, 2), (5, 0), (2, 0), (5, 1)]
    assert at_most(top, 1) == [(2, 1), (5, 2)]
    assert at_most(top, 2, 3) == [(2, 1), (5, 2), (2, 2)]


def test_matched_experts_are_of_the_layer_used_as_often_and_not_chosen():
    used = np.array([[0.5, 0.49, 0.1, 0.48, 0.47, 0.0], [0.2, 0.9, 0.3, 0.4, 0.5, 0.6]])
    sets = matched_random([(3, 0), (7, 1)], used, [3, 7], draws=40, seed=0)
    assert {one[0] for one in sets} == {(3, 1), (3, 3), (3, 4)}
    assert {one[1] for one in sets} == {(7, 5), (7, 4), (7, 3)}
    blind = matched_random([(3, 0)], used, [3, 7], draws=60, seed=0, by_frequency=False)
    assert {one[0] for one in blind} == {(3, e) for e in range(1, 6)}
    pairs = matched_random([(3, 0), (3, 1)], used, [3, 7], draws=20, seed=1)
    assert all(len(set(one)) == 2 and not set(one) & {(3, 0), (3, 1)} for one in pairs)
    with pytest.raises(MechlabError, match="Layer 3 has 6 experts, too few for a random control"):
        matched_random([(3, e) for e in range(4)], used, [3, 7], draws=1, seed=0)


def by_hand(weights: list[list[list[float]]]) -> Routed:
    """One layer; ``[prompt][pos][expert]``."""
    lens = Lens(tiny("mixtral"))
    tokens = lens.tokens([[5] * len(prompt) for prompt in weights])
    array = np.zeros((len(weights), 1, tokens.width, len(weights[0][0])))
    for row, prompt in enumerate(weights):
        array[row, 0, : len(prompt)] = prompt
    return Routed(tokens, [0], array, np.zeros((len(weights), 1, tokens.width, 2), dtype=np.int64))


def test_load_and_its_entropy():
    found = by_hand([[[0.5, 0.5, 0, 0], [0.7, 0, 0.3, 0]], [[1, 0, 0, 0.1]]])
    assert found.used().tolist() == [[1.0, pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(1 / 3)]]
    assert load_entropy(np.array([[0.5, 0.5, 0.5, 0.5]])).tolist() == [pytest.approx(1)]
    assert load_entropy(np.array([[1.0, 0.0, 0.0, 1.0]])).tolist() == [pytest.approx(0.5)]


def test_specialisation_in_bits():
    apart = by_hand([[[1, 1, 0, 0], [0, 0, 1, 1]], [[1, 1, 0, 0], [0, 0, 1, 1]]])
    groups = np.array([[0, 1], [0, 1]])
    assert specialisation(apart, groups, 2).tolist() == [pytest.approx(1)]
    assert by_group(apart, groups, 2)[0].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    alike = by_hand([[[1, 1, 0, 0], [1, 1, 0, 0]], [[0, 0, 1, 1], [0, 0, 1, 1]]])
    assert specialisation(alike, groups, 2).tolist() == [pytest.approx(0)]
    assert by_group(alike, groups, 3)[0, :, 2].tolist() == [0, 0, 0, 0]  # a group without tokens


def test_coactivation_against_chance():
    found = by_hand([[[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0]]])
    logs = coactivation(found)[0]
    # tokens per expert 3, 2, 2, 1: of 8 places; pairs 4, chance of a pair (e, f) in proportion to their product
    products = {(0, 1): 6, (0, 2): 6, (0, 3): 3, (1, 2): 4, (1, 3): 2, (2, 3): 2}
    chance = {pair: 4 * value / sum(products.values()) for pair, value in products.items()}
    for pair, times in {(0, 1): 2, (2, 3): 1, (0, 2): 1}.items():
        assert logs[pair] == logs[pair[::-1]] == pytest.approx(np.log2(times / chance[pair]))
    assert np.isnan(logs[0, 3]) and np.isnan(logs[1, 1])


def test_kinds_of_tokens_and_thirds():
    tokens = Lens(tiny("llama")).tokens(["Mary saw 4 , 2"])
    assert token_classes(tokens).tolist() == [[0, 0, 2, 3, 2]]
    spaced = dataclasses.replace(tokens, pieces=(("Hel", "lo", " wor", "ld", "."),))
    assert token_classes(spaced).tolist() == [[0, 1, 0, 1, 3]]
    assert position_thirds(tokens).tolist() == [[0, 0, 1, 1, 2]]


@pytest.mark.parametrize(("family", "layers", "fixed"), [("deepseek_v3", [1, 2], True), ("olmoe", [0, 1, 2], False)])
def test_layers_with_experts(family, layers, fixed):
    lens = Lens(tiny(family))
    assert (expert_layers(lens), n_chosen(lens), has_fixed_total(lens)) == (layers, 2, fixed)
    assert routed(lens, ["Mary went to the store", "John"]).weights.shape[1] == len(layers)


def test_a_dense_model_is_refused():
    with pytest.raises(MechlabError, match="tiny-llama is dense, it has no experts: choose a mixture-of-experts model"):
        routed(Lens(tiny("llama")), ["Mary"])
