"""The neurofeedback study: decodable labels are reported, shuffled ones are not, and verdicts follow the evidence."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mechlab.errors import MechlabError, PromptError
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import planted_induction
from steering.studies import neurofeedback_claims as claims
from steering.studies.neurofeedback import STUDY, Settings, gather, run
from steering.studies.neurofeedback_directions import (
    FLIPPED,
    PROBE,
    RANDOM,
    SHUFFLED,
    component,
    sentences,
    target,
    targets,
)
from steering.studies.neurofeedback_evidence import (
    TWIN,
    Controlled,
    Evidence,
    Measured,
    Reported,
    bag_of_words,
    implicit,
    report,
)
from steering.studies.neurofeedback_prompts import Marks, encoded, marks, picked, requested, scored

SMALL = Settings(components=(1, 8), examples=4, contexts=3, control_examples=2, control_contexts=2, new_tokens=3)
NO, YES, CALM, LOUD = 4, 5, 6, 7
"""Tokens of the planted model: two scores, and two words with which sentences end."""
SILENT = lambda label, done, total: None  # noqa: E731, ARG005


@pytest.fixture(scope="module")
def evidence(lens):
    return gather(lens, SMALL, SILENT)


def test_a_label_that_is_decodable_by_construction_is_reported():
    """An induction head tells the score: it is what followed the same last word before."""
    lens, how = Lens(planted_induction()), Marks((), NO, YES, ())
    labels = np.array([[0, 1] * 6] * 4)
    sentences = [[8 + i, LOUD if i % 2 else CALM] for i in range(12)]
    picks = np.array([[(i + row) % 12 for i in range(10)] for row in range(4)])
    found = report(lens, how, sentences, labels, picks)
    assert found.right.shape == (4, 10)
    assert found.right[:, 2:].mean() == 1  # both words have been seen
    assert found.loss[:, 2:].max() < found.loss[:, :2].min()
    flipped = report(lens, how, sentences, 1 - labels, picks)
    assert flipped.right[:, 2:].mean() == 1  # what a score means is learnt from the examples
    draw = np.random.default_rng(0)
    shuffled = [
        report(lens, how, sentences, draw.permuted(labels, axis=1), picks).right[:, 5:].mean() for _ in range(20)
    ]
    assert np.mean(shuffled) == pytest.approx(0.5, abs=0.1)


def test_a_bag_of_words_tells_words_and_nothing_else():
    texts = [f"{'bright' if i % 2 else 'dark'} thing number{i}" for i in range(40)]
    labels = np.array([[i % 2 for i in range(40)]] * 6)
    picks = picked(6, 13, 40, seed=0)
    found = bag_of_words(texts, labels, picks)
    assert found.shape == (6, 7) and found.mean() > 0.8
    draw = np.random.default_rng(1)
    many = np.repeat(picks, 10, axis=0)
    shuffled = bag_of_words(texts, draw.permuted(np.repeat(labels, 10, axis=0), axis=1), many)
    assert shuffled.mean() == pytest.approx(0.5, abs=0.1)
    assert bag_of_words(texts, np.ones_like(labels), picks).mean() == 1  # one class so far: it tells that


def test_labels_of_a_hand_made_table_are_above_the_median():
    x = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, -1.0], [3.0, -1.0]])
    found = target("x", np.array([[1.0, 0.0], [0.0, 2.0]]), x)
    assert found.labels.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]
    assert found.spread == pytest.approx([math.sqrt(1.25), 2.0])
    assert found.variance == pytest.approx((1.25 + 1) / 2 / 2.25)


def test_components_are_in_order_and_turned_to_the_wanted_side():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 4)) * [9, 3, 1, 0.1]
    for k in range(1, 5):
        axis = component(x, x[:, k - 1] > 0, k)
        assert axis[k - 1] > 0.95
        assert component(x, x[:, k - 1] < 0, k) == pytest.approx(-axis)
    with pytest.raises(MechlabError, match="ask for 1 to 4"):
        component(x, x[:, 0] > 0, 5)


def test_targets_are_made_on_other_sentences_and_controls_are_what_they_say(lens):
    fit, held_out = ({one for side in sentences(part) for one in side} for part in ("fit", "held-out"))
    assert not fit & held_out and len(held_out) == 64
    found = targets(lens, Site("resid_post", 1), (1, 8), 3, seed=0)
    own = found[PROBE].labels
    assert own.sum(1).tolist() == [32] * 3
    assert (found[FLIPPED].labels == 1 - own).all() and (found[FLIPPED].directions == found[PROBE].directions).all()
    shuffled = found[SHUFFLED].labels
    assert shuffled.sum(1).tolist() == [32] * 3 and (shuffled[0] != shuffled[1]).any() and (shuffled[0] != own[0]).any()
    assert len({tuple(row) for row in found[RANDOM].directions}) == 3
    with pytest.raises(MechlabError, match="no principal component 65"):
        targets(lens, Site("resid_post", 1), (65,), 3, seed=0)


def test_contexts_end_where_scores_begin(lens):
    how = marks(lens.model)
    assert lens.model.tokenizer.decode([how.low, how.high]).split() == ["0", "1"]
    ids, slots = scored(how, [[20, 21], [22]], [1, 0])
    assert [ids[slot + 1] for slot in slots] == [how.high, how.low]
    start = len(how.header)
    assert ids[start : start + 2] == [20, 21] and ids[start + 2 : slots[0] + 1] == list(how.before)
    asked = requested(how, [[20, 21]], [1], 0)
    assert asked[: slots[0] + 2] == ids[: slots[0] + 2] and how.low in asked and asked.count(how.high) == 1
    chosen = picked(5, 4, 9, seed=1)
    assert all(len(set(row)) == 4 for row in chosen.tolist())
    with pytest.raises(PromptError, match="fewer examples"):
        picked(1, 10, 9, seed=0)


def test_a_tokenizer_without_two_scores_is_refused():
    with pytest.raises(PromptError, match="one token each"):
        marks(planted_induction())


def test_implicit_control_is_the_projection_over_the_given_sentence(lens):
    at, how = Site("resid_post", 1), marks(lens.model)
    ids = [encoded(lens.model, text) for text in sentences("held-out")[0]]
    one = targets(lens, at, (1,), 2, seed=0)[RANDOM]
    picks = picked(2, 3, len(ids), seed=0)
    found = implicit(lens, at, how, ids, one, picks, 2)
    scores: list[float] = []
    for wanted in (1, 0):
        chosen = picks[1]
        head = requested(how, [ids[i] for i in chosen[:2]], [int(one.labels[1, i]) for i in chosen[:2]], wanted)
        x = lens.run([[*head, *ids[chosen[2]]]], read=[at], logits="none")[at][0, len(head) :]
        scores.append(float(x.double().mean(0) @ torch.from_numpy(one.directions[1])))
    assert found.effect[1] == pytest.approx((scores[0] - scores[1]) / one.spread[1], rel=1e-3)
    assert len(found.effect) == 2


def test_a_report_of_a_tiny_model_says_what_it_measured(lens, evidence):
    report = run(lens, SMALL, SILENT)
    assert [one.key for one in report.findings] == [
        "report", "beyond_words", "direction_types", "learning", "implicit_control", "explicit_control",
    ]  # fmt: skip
    tables = {table.key: table.frame for table in report.tables}
    assert {figure.table for figure in report.figures} == set(tables)
    assert "supported" not in [one.verdict for one in report.findings]  # its weights are random
    assert set(evidence.measured) == {PROBE, "component 1", "component 8", RANDOM, SHUFFLED, FLIPPED, TWIN}
    right = evidence.measured[PROBE].reported.right
    assert right.shape == (3, 5) and evidence.measured[PROBE].bag.shape == (3, 3)
    shown = tables["curve"].query("target == 'probe'").set_index("examples")["accuracy"]
    assert shown.to_numpy() == pytest.approx(right.mean(0))
    flipped = evidence.measured[FLIPPED].implicit
    assert flipped is not None and len(flipped.effect) == 2 and len(tables["texts"]) == 4


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"components": (1, 1)}, "twice"),
        ({"control_examples": 20}, "among the examples"),
        ({"control_contexts": 20}, "among the contexts"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, why):
    with pytest.raises(ValidationError, match=why):
        Settings(**given)


def test_a_layer_that_is_not_there_is_refused(lens):
    with pytest.raises(MechlabError, match="use 0 to 2"):
        run(lens, SMALL.model_copy(update={"layer": 3}), SILENT)


def made(right: float = 0.5, bag: float = 0.5, moved: float = 0.0, early: float = 0.5) -> Measured:
    """Ten contexts of eleven reports: ``early`` at the first two, ``right`` later."""
    wiggle = np.linspace(-0.02, 0.02, 10)[:, None]
    accuracy = np.concatenate([np.full((10, 2), early), np.full((10, 9), right) + wiggle], axis=1)
    effect = Controlled(moved + wiggle[:, 0])
    return Measured(0.1, Reported(accuracy, 1 - accuracy), np.full((10, 6), bag) - wiggle, effect, effect)


def evidence_of(**changed: Measured) -> Evidence:
    names = {
        "probe": PROBE,
        "random": RANDOM,
        "shuffled": SHUFFLED,
        "flipped": FLIPPED,
        "twin": TWIN,
        "late": "component 8",
    }
    measured = {name: made() for name in names.values()} | {PROBE: made(0.9, 0.7, 1.0), FLIPPED: made(0.9, 0.7, -1.0)}
    measured["component 1"] = made()
    return Evidence(SMALL.model_dump(), 1, measured | {names[key]: one for key, one in changed.items()})


def test_verdicts_follow_the_evidence():
    verdicts = lambda evidence: {one.key: one.verdict for one in claims.findings(evidence)}  # noqa: E731
    assert set(verdicts(evidence_of()).values()) == {"supported"}
    assert verdicts(evidence_of(probe=made(0.5)))["report"] == "not supported"
    for control in ("shuffled", "twin"):
        found = verdicts(evidence_of(**{control: made(0.95, 0.5, 2.0)}))
        assert [
            found[key] for key in ("report", "beyond_words", "learning", "implicit_control", "explicit_control")
        ] == ["not supported"] * 5, control
    assert verdicts(evidence_of(probe=made(0.9, 0.95, 1.0)))["beyond_words"] == "not supported"
    assert verdicts(evidence_of(probe=made(0.9, early=0.9)))["learning"] == "not supported"
    for control in ("random", "late"):
        assert verdicts(evidence_of(**{control: made(0.95)}))["direction_types"] == "not supported"
    assert verdicts(evidence_of(flipped=made(moved=1.5)))["implicit_control"] == "not supported"
    nothing = evidence_of(probe=replace(made(0.9), explicit=None))
    assert verdicts(nothing)["explicit_control"] == "inconclusive"


def test_cohens_d_by_hand():
    assert claims.cohens_d(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    assert math.isnan(claims.cohens_d(np.array([1.0, 1.0])))


def test_the_study_is_in_the_list():
    from apps.studies import entry

    listed = entry(STUDY.name)
    assert (listed.paper, listed.line) == (STUDY.paper, STUDY.line)
