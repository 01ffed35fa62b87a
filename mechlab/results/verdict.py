"""Verdicts: computed from an estimate, its interval, the controls and the rule. No one types them.

For a rule of direction ">" (for "<" everything is mirrored):

    supported      the interval lies above the threshold and above the interval of every control the rule must beat
    not supported  the interval lies at or below the threshold, or the estimate of such a control reaches the claim's
    estimate
    inconclusive   anything else: also where a number is missing, or fewer than two prompts stand behind the estimate
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from mechlab.results.rule import Control, Rule
from mechlab.results.wording import apart, three_digits

Verdict = Literal["supported", "not supported", "inconclusive"]
VERDICTS: tuple[Verdict, ...] = ("supported", "not supported", "inconclusive")


class Judgement(NamedTuple):
    """A verdict and the one line that says why."""

    verdict: Verdict
    reason: str


class Measured(NamedTuple):
    """A claim's number: estimate, interval bounds, prompts."""

    estimate: float
    low: float
    high: float
    n: int

    def near(self, rule: Rule) -> float:
        """The end of the interval that must clear the rule's limits."""
        return self.low if rule.direction == ">" else self.high

    def far(self, rule: Rule) -> float:
        """The other end."""
        return self.high if rule.direction == ">" else self.low


def judge(claim: Measured, rule: Rule, rivals: Sequence[Control]) -> Judgement:
    """The verdict on a claim against the controls (``rivals``) that its rule must beat."""
    if claim.n < 2:
        return Judgement(
            "inconclusive", f"An interval needs at least 2 prompts; there {'is' if claim.n == 1 else 'are'} {claim.n}."
        )
    if any(math.isnan(x) for x in claim[:3]):
        return Judgement("inconclusive", "The estimate or its interval is not a number on these prompts.")
    problems = [_against_threshold(claim, rule), *(_against_control(claim, rule, control) for control in rivals)]
    found = [problem for problem in problems if problem is not None]
    decisive = [problem for problem in found if problem.verdict == "not supported"]
    return next(iter(decisive + found), Judgement("supported", _success(claim, rule, rivals)))


def _against_threshold(claim: Measured, rule: Rule) -> Judgement | None:
    near, far = claim.near(rule), claim.far(rule)
    if rule.passes(near, rule.threshold):
        return None
    if rule.passes(far, rule.threshold):
        end, limit = apart(near, rule.threshold)
        return Judgement("inconclusive", f"{_near_end(rule, end)} is not {rule.word} the threshold {limit}.")
    end, limit = apart(far, rule.threshold)
    far_name = "high" if rule.direction == ">" else "low"
    return Judgement(
        "not supported", f"Even the {far_name} end of the interval, {end}, is not {rule.word} the threshold {limit}."
    )


def _against_control(claim: Measured, rule: Rule, control: Control) -> Judgement | None:
    near, bound = claim.near(rule), control.bound(rule.direction)
    if rule.passes(near, bound):
        return None
    if math.isnan(control.estimate):
        return Judgement("inconclusive", f"The control {control.name!r} gave no number to compare with.")
    if not rule.passes(claim.estimate, control.estimate):
        ours, theirs = apart(claim.estimate, control.estimate)
        reason = f"The control {control.name!r} gives {theirs}, and the claim's {ours} is not {rule.word} it."
        return Judgement("not supported", reason)
    end, limit = apart(near, bound)
    reason = f"{_near_end(rule, end)} is not {rule.word} {limit}, which the control {control.name!r} reaches."
    return Judgement("inconclusive", reason)


def _success(claim: Measured, rule: Rule, rivals: Sequence[Control]) -> str:
    end, limit = apart(claim.near(rule), rule.threshold)
    text = f"{_near_end(rule, end)} is {rule.word} the threshold {limit}"
    if not rivals:
        return f"{text}."
    bounds = [control.bound(rule.direction) for control in rivals]
    hardest = max(bounds) if rule.direction == ">" else min(bounds)
    return f"{text} and {rule.word} every control it must beat (the closest reaches {three_digits(hardest)})."


def _near_end(rule: Rule, end: str) -> str:
    return f"The {'low' if rule.direction == '>' else 'high'} end of the interval, {end},"
