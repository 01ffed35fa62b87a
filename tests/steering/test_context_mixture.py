"""The context-mixture study: a planted learner is found again, contexts are what they say, and verdicts follow the evidence."""

import numpy as np
import pytest
from pydantic import ValidationError

from mechlab.errors import MechlabError, PromptError
from steering.studies import context_mixture_claims as claims
from steering.studies.context_mixture import STUDY, Settings, conditions, gather, run, twin_conditions
from steering.studies.context_mixture_evidence import Answered, Condition, Evidence
from steering.studies.context_mixture_items import FACTS, Item, candidates, items, kinds, text
from steering.studies.context_mixture_learning import (
    fit_linear,
    fit_logistic,
    fit_rescorla_wagner,
    rescorla_wagner,
)

SMALL = Settings(items=4, passages=4, shares=(0.0, 0.25, 0.5, 0.75), small=0.25, middle=0.5, draws=2)
SHARES = (0.0, 0.05, 0.1, 0.2, 0.5, 0.8, 0.95)


def cues_of(shares=SHARES, k=20, seed=0):
    kind = {"relevant": 0, "inappropriate": 1, "off-topic": 2}
    mixed = [kinds(k, share, "inappropriate", "mixed", seed + i) for i, share in enumerate(shares)]
    ordered = [kinds(k, 0.5, "inappropriate", order, 0) for order in ("first", "last")]
    return np.array([[kind[one] for one in row] for row in [*mixed, *ordered]]), np.array([*shares, 0.5, 0.5])


def test_the_rule_by_hand():
    # V1: 0.5, then 0.5 + 0.5 (1 - 0.5 - 0.1) = 0.7; V2: 0.2 (1 - 0.5) = 0.1. A passage on something else teaches nothing.
    p = rescorla_wagner([[0, 1, 2, 0]], 0.5, 0.2, 2.0)
    assert p == pytest.approx([1 / (1 + np.exp(-2 * (0.7 - 0.1)))])
    assert rescorla_wagner(np.zeros((3, 0)), 0.5, 0.2, 2.0) == pytest.approx([0.5] * 3)
    first, last = rescorla_wagner([[0, 0, 1, 1], [1, 1, 0, 0]], 0.3, 0.3, 4.0)
    assert first > 0.5 > last and first + last == pytest.approx(1)  # what comes first blocks the rest


@pytest.mark.parametrize("planted", [(0.12, 0.35, 4.0), (0.3, 0.08, 2.5)])
def test_a_planted_learner_is_found_again(planted):
    cues, share = cues_of()
    p = rescorla_wagner(cues, *planted)
    fit = fit_rescorla_wagner(cues, p)
    assert fit.parameters == pytest.approx(planted, rel=1e-2)
    assert fit.aic < fit_linear(share, p).aic - 10 and fit.aic < fit_logistic(share, p).aic - 10


def test_a_planted_line_is_not_taken_for_a_learner():
    cues, share = cues_of()
    wiggle = 0.01 * np.random.default_rng(0).normal(size=len(share))
    p = 0.9 - 0.8 * share + wiggle
    line = fit_linear(share, p)
    assert line.parameters == pytest.approx((0.9, -0.8), abs=0.02)
    assert line.aic < fit_rescorla_wagner(cues, p).aic
    # AIC by hand: n log(RSS / n) + 2 (2 + 1)
    assert line.aic == pytest.approx(len(p) * np.log(((p - line.predicted) ** 2).mean()) + 6)


def test_answers_that_are_no_probabilities_are_refused():
    cues, share = cues_of()
    with pytest.raises(MechlabError, match="between 0 and 1"):
        fit_linear(share, share + 1)
    with pytest.raises(MechlabError, match="four answers"):
        fit_logistic(share[:3], share[:3])
    with pytest.raises(MechlabError, match="a row each"):
        fit_rescorla_wagner(cues[:5], share)


def test_contexts_are_what_they_say():
    order = kinds(20, 0.2, "inappropriate", "mixed", 3)
    assert (
        order.count("inappropriate") == 4 and len(order) == 20 and order == kinds(20, 0.2, "inappropriate", "mixed", 3)
    )
    assert kinds(4, 0.5, "off-topic", "first", 0) == ("off-topic", "off-topic", "relevant", "relevant")
    assert kinds(4, 0.25, "off-topic", "last", 0)[-1] == "off-topic"
    item = items(2)[1]
    lines = text(item, ("relevant", "inappropriate", "relevant", "inappropriate", "inappropriate")).split("\n")
    assert lines[-1] == "Answer: The capital of Italy is"
    assert ["Rome" in line for line in lines[:5]] == [True, False, True, False, False]
    assert lines[1] == lines[4] != lines[3] and lines[0] != lines[2]  # passages of a kind take turns


def test_items_are_enough_and_fair():
    found = items(len(FACTS))
    assert len(found) >= 24 and len({item.country for item in found}) == len(found)
    capitals = {item.country: item.answer for item in found}
    for item in found:
        assert item.wrong in set(capitals.values()) - {item.answer}
        assert len(item.passages["relevant"]) == 3 and len(item.passages["inappropriate"]) == 2
        assert all(item.answer in one and item.wrong not in one for one in item.passages["relevant"])
        assert all(item.wrong in one and item.answer not in one for one in item.passages["inappropriate"])
        assert not any(city in one for city in (item.answer, item.wrong) for one in item.passages["off-topic"])
    wordings = {
        kind: {one.replace(item.country, "X").replace(city, "Y") for item in found for one, city in told(item, kind)}
        for kind in ("relevant", "inappropriate")
    }
    assert wordings["relevant"] == wordings["inappropriate"] and len(wordings["relevant"]) == 5
    with pytest.raises(MechlabError, match="ask for 1 to"):
        items(len(FACTS) + 1)


def told(item: Item, kind: str):
    return [(one, item.answer if kind == "relevant" else item.wrong) for one in item.passages[kind]]


def test_answers_that_begin_alike_are_refused(lens):
    with pytest.raises(PromptError, match="begin with one token"):
        candidates(lens, items(9))  # this tokenizer does not know Oslo


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"shares": (0.0, 0.05, 0.06, 0.5)}, "same number"),
        ({"shares": (0.05, 0.1, 0.5, 0.9)}, "need 0"),
        ({"shares": (0.0, 0.1, 0.5, 1.0)}, "below 1"),
        ({"small": 0.3}, "among the shares"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, why):
    with pytest.raises(ValidationError, match=why):
        Settings(**given)


def test_numbers_are_those_of_plain_runs(lens):
    evidence = gather(lens, SMALL, lambda label, done, total: None)  # noqa: ARG005
    asked, condition = items(4), Condition(0.5, "inappropriate", "first")
    found = evidence.answered[condition]
    assert found.cues.tolist() == [[1, 1, 0, 0]] * 4
    for i, item in enumerate(asked):
        prompt = text(item, kinds(4, 0.5, "inappropriate", "first", 0))
        p = lens.run(prompt).last_logits[0].double().softmax(-1)
        right, wrong = (p[lens.tokens(f" {city}").ids[0, 0]].item() for city in (item.answer, item.wrong))
        assert found.follows[i] == pytest.approx(right / (right + wrong), rel=1e-4)
    assert set(evidence.answered) == set(conditions(SMALL)) and set(evidence.twin) == set(twin_conditions(SMALL))


def test_a_report_of_a_tiny_model_says_what_it_measured(lens):
    report = run(lens, SMALL, lambda label, done, total: None)  # noqa: ARG005
    assert [one.key for one in report.findings] == ["contamination", "first_hurt_most", "rescorla_wagner", "order"]
    tables = {table.key: table.frame for table in report.tables}
    assert {figure.table for figure in report.figures} == set(tables)
    assert "supported" not in [one.verdict for one in report.findings]  # its weights are random
    paper = tables["paper"].set_index("quantity")["paper"]
    assert paper["0% inappropriate"] == 74.1 and paper.isna()["25% inappropriate"]


def evidence_of(answer=None, off=None, twin=None) -> Evidence:
    """Eight readers who learn from passages (or do what is given), who do not mind other passages; a twin who guesses."""
    settings = Settings(items=8, draws=2)
    noise = np.random.default_rng(0).normal(size=1000) * 0.005

    def answered(condition: Condition, rule) -> Answered:
        orders = [
            () if condition.empty else kinds(20, condition.share, condition.other, condition.order, i) for i in range(8)
        ]
        cues = np.array(
            [[{"relevant": 0, "inappropriate": 1, "off-topic": 2}[x] for x in row] for row in orders], float
        )
        p = np.clip(rule(cues) + noise[:8] + 0.01 * condition.share * noise[8:16], 0.001, 0.999)
        return Answered(p, 1 - p, cues)

    learner = answer or (lambda cues: rescorla_wagner(cues, 0.15, 0.3, 4.0))
    guess = lambda cues: np.full(len(cues), 0.5)  # noqa: E731
    good = lambda cues: np.full(len(cues), rescorla_wagner([[0] * 20], 0.15, 0.3, 4.0)[0])  # noqa: E731
    rules = {"inappropriate": learner, "off-topic": off or good}
    return Evidence(
        settings.model_dump(),
        tuple("abcdefgh"),
        {one: answered(one, rules[one.other]) for one in conditions(settings)},
        {one: answered(one, twin or guess) for one in twin_conditions(settings)},
    )


def test_verdicts_follow_the_evidence():
    verdicts = lambda evidence: {one.key: one.verdict for one in claims.findings(evidence)}  # noqa: E731
    learner = verdicts(evidence_of())
    assert learner["contamination"] == learner["rescorla_wagner"] == learner["order"] == "supported"
    counts = lambda cues: 0.95 - 0.9 * (cues == 1).mean(1) if cues.shape[1] else np.full(len(cues), 0.5)  # noqa: E731
    by_share = verdicts(evidence_of(answer=counts))
    assert by_share["contamination"] == "supported"
    assert {by_share[key] for key in ("first_hurt_most", "rescorla_wagner", "order")} == {"not supported"}
    diluted = lambda cues: np.maximum(0.95 - 1.8 * (cues != 0).mean(1), 0.02)  # noqa: E731
    assert claims.contamination(evidence_of(off=diluted)).verdict != "supported"
    assert claims.order(evidence_of(twin=lambda cues: rescorla_wagner(cues, 0.15, 0.3, 4.0))).verdict != "supported"
    rare = lambda cues: np.where((cues == 1).any(1), 0.5, 0.95) if cues.shape[1] else np.full(len(cues), 0.5)  # noqa: E731
    assert claims.first_hurt_most(evidence_of(answer=rare)).verdict == "supported"


def test_bend_of_a_line_is_nothing():
    counts = lambda cues: 0.95 - 0.9 * (cues == 1).mean(1) if cues.shape[1] else np.full(len(cues), 0.5)  # noqa: E731
    assert claims.bend(evidence_of(answer=counts).answered, 0.1, 0.95) == pytest.approx(np.zeros(8), abs=1e-3)


def test_the_study_is_in_the_list():
    from apps.studies import entry

    listed = entry(STUDY.name)
    assert (listed.paper, listed.line) == (STUDY.paper, STUDY.line)
