"""Verdicts: the truth table with its boundaries, the rule in words, and files that lie."""

import json
import math

import pytest
from pydantic import ValidationError

from mechlab.errors import StoreError, UnknownName
from mechlab.results import Control, Finding, Rule

NAN = math.nan


def control(estimate=0.02, low=-0.01, high=0.06, name="random heads"):
    return Control(name=name, estimate=estimate, low=low, high=high, n=10)


@pytest.mark.parametrize(
    ("estimate", "low", "high", "controls", "verdict"),
    [
        (0.4, 0.3, 0.5, [control()], "supported"),
        (0.4, 0.050001, 0.5, [control(high=0.04)], "supported"),
        (0.4, 0.05, 0.5, [control(high=0.04)], "inconclusive"),  # on the threshold is not above it
        (0.4, 0.06, 0.5, [control()], "inconclusive"),  # on the control's end is not above it
        (0.4, 0.061, 0.5, [control()], "supported"),
        (0.03, 0.01, 0.05, [control()], "not supported"),  # the interval ends on the threshold
        (0.03, 0.01, 0.0501, [control()], "inconclusive"),
        (0.4, 0.3, 0.5, [control(estimate=0.4, low=0.2, high=0.6)], "not supported"),  # the control does as much
        (0.4, 0.3, 0.5, [control(estimate=0.39, low=0.2, high=0.6)], "inconclusive"),
        (0.4, 0.3, 0.5, [control(), control(0.5, 0.4, 0.6, "other task")], "not supported"),  # one of two
        (0.4, 0.3, 0.5, [control(0.1, NAN, NAN)], "supported"),  # a control without interval counts as a point
        (0.4, 0.3, 0.5, [control(0.3, None, None)], "inconclusive"),
        (0.4, 0.3, 0.5, [control(NAN, NAN, NAN)], "inconclusive"),  # a control that gave no number decides nothing
        (0.4, 0.3, 0.5, [control(NAN, 0.0, 0.1)], "inconclusive"),
        (0.01, 0.0, 0.02, [control(NAN, NAN, NAN)], "not supported"),
        (NAN, NAN, NAN, [control()], "inconclusive"),
        (0.4, NAN, NAN, [control()], "inconclusive"),
        (0.01, None, None, [control()], "inconclusive"),
    ],
)
def test_verdicts_and_their_mirror_image(make_finding, estimate, low, high, controls, verdict):
    finding = make_finding(estimate, low, high, controls=controls)
    assert finding.verdict == verdict

    def minus(value):
        return None if value is None else -value

    flipped = [
        Control(name=c.name, estimate=minus(c.estimate), low=minus(c.high), high=minus(c.low), n=c.n) for c in controls
    ]
    rule = Rule(direction="<", threshold=-0.05)
    mirror = make_finding(minus(estimate), minus(high), minus(low), controls=flipped, rule=rule)
    assert mirror.verdict == verdict
    assert finding.reason and "\n" not in finding.reason


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_prompts_prove_nothing(make_finding, n):
    assert make_finding(n=n).verdict == "inconclusive"
    assert make_finding(0.01, 0.0, 0.02, n=n).verdict == "inconclusive"
    assert make_finding(n=2).verdict == "supported"


def test_only_the_named_controls_must_be_beaten(make_finding):
    controls = [control(), control(0.9, 0.8, 1.0, "other task")]
    rule = Rule(direction=">", threshold=0.05, beats=("random heads",))
    assert make_finding(controls=controls, rule=rule).verdict == "supported"
    assert make_finding(controls=controls, rule=Rule(direction=">", threshold=0.05)).verdict == "not supported"
    assert make_finding(controls=controls, rule=Rule(direction=">", threshold=0.05, beats=())).verdict == "supported"


def test_the_reason_names_what_decided_and_its_numbers(make_finding):
    lost = make_finding(controls=[control(), control(0.5, 0.4, 0.6, "other task")])
    assert lost.reason == "The control 'other task' gives 0.5, and the claim's 0.4 is not above it."
    close = make_finding(0.4, 0.0499999, 0.5)
    assert "0.0499999" in close.reason and close.reason.endswith("0.05."), "numbers that differ must read differently"
    assert "0.3" in make_finding().reason and "0.06" in make_finding().reason


def test_a_finding_needs_controls_and_the_ones_its_rule_names(make_finding):
    with pytest.raises(ValidationError, match="every claim comes with its controls"):
        make_finding(controls=[])
    with pytest.raises(UnknownName, match="did you mean random heads"):
        make_finding(rule=Rule(direction=">", threshold=0.0, beats=("random head",)))
    with pytest.raises(ValidationError, match="two controls of one name"):
        make_finding(controls=[control(), control()])
    with pytest.raises(ValidationError, match="above high"):
        make_finding(0.4, 0.5, 0.3)
    with pytest.raises(ValidationError, match="infinite"):
        make_finding(0.4, 0.3, math.inf)


def test_no_one_types_a_verdict(make_finding):
    with pytest.raises(ValidationError, match="verdict"):
        make_finding(verdict="supported")
    with pytest.raises((AttributeError, ValidationError)):
        make_finding().verdict = "supported"


@pytest.mark.parametrize(
    "rule",
    [
        Rule(direction=">", threshold=0.05),
        Rule(direction="<", threshold=-1e-9),
        Rule(direction=">", threshold=0.1 + 0.2, beats=()),
        Rule(direction="<", threshold=3, beats=("random heads",)),
        Rule(direction=">", threshold=0.0, beats=("a, b", 'quoted "name" and \\ more', "naïve ↵\nline")),
    ],
)
def test_a_rule_reads_back_from_its_words(rule):
    assert Rule.parse(rule.text) == rule
    assert rule.text.startswith(f"95 % interval {'above' if rule.direction == '>' else 'below'} ")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "interval above 1",
        "95 % interval above x",
        "95 % interval above nan",
        "95 % interval above 1 and below every control",
        "95 % interval above 1 and above the control x",
    ],
)
def test_other_words_are_no_rule(text):
    with pytest.raises(StoreError, match="does not parse"):
        Rule.parse(text)


def test_json_round_trip_keeps_everything(make_finding):
    for finding in (
        make_finding(),
        make_finding(0.1 + 0.2, None, None, controls=[control(0.1, None, None), control(name="b")]),
        make_finding(NAN, NAN, NAN),
    ):
        text = json.dumps(finding.as_json(), allow_nan=False)
        back = Finding.from_json(json.loads(text))
        assert back.as_json() == finding.as_json()
        assert (back.verdict, back.reason, back.rule) == (finding.verdict, finding.reason, finding.rule)


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "not supported"},
        {"verdict": None},
        {"estimate": 0.01, "ci": [0.0, 0.02]},
        {"rule": "95 % interval above 0.9 and above every control"},
        {"rule": "whatever"},
        {"controls": []},
        {"controls": [{"name": "x"}]},
        {"controls": 3},
        {"ci": [0.3]},
        {"n": "many"},
        {"extra": 1},
    ],
)
def test_a_tampered_or_malformed_record_is_refused(make_finding, change):
    with pytest.raises(StoreError):
        Finding.from_json(make_finding().as_json() | change)


def test_the_message_about_a_tampered_verdict_names_both(make_finding):
    with pytest.raises(
        StoreError, match="'movers' states the verdict 'supported', but its numbers give 'not supported'"
    ):
        Finding.from_json(make_finding().as_json() | {"estimate": 0.01, "ci": [0.0, 0.02]})
    with pytest.raises(StoreError, match="JSON object"):
        Finding.from_json([1])
