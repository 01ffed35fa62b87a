"""The context-mixture study's claims and their rules, written before the run; the verdicts are computed.

All are about ``follows``: the right answer's share in the probability of the two answers, after passages for both.
"""

from collections.abc import Mapping

import numpy as np

from mechlab.results.finding import Finding
from mechlab.results.rule import Rule
from mechlab.results.stating import claim, control, drawn
from mechlab.results.statistics import Interval, bootstrap_difference, bootstrap_mean
from steering.studies.context_mixture_evidence import Answered, Condition, Evidence
from steering.studies.context_mixture_learning import Floats, fit_linear, fit_logistic, fit_rescorla_wagner

MIN_DROP, MIN_BEND, MIN_AIC, MIN_ORDER = 0.05, 0.05, 2.0, 0.05
DILUTION, TWIN, SHUFFLED, LOGISTIC = "off-topic passages", "random-weight twin", "shuffled answers", "logistic curve"
Mixtures = Mapping[Condition, Answered]


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [contamination(evidence), first_hurt_most(evidence), learner(evidence), order(evidence)]


def contamination(evidence: Evidence) -> Finding:
    middle = float(str(evidence.settings["middle"]))
    own, off = Condition(middle), Condition(middle, "off-topic")
    return claim(
        "contamination",
        "Passages with a wrong answer draw the answer away, more than passages about something else thin it out.",
        f"fall of the right answer's share from 0 to {middle:.0%} inappropriate passages",
        _fall(evidence.answered, own, evidence),
        [
            control(DILUTION, _fall(evidence.answered, off, evidence), "as many passages, on other things"),
            control(TWIN, _fall(evidence.twin, own, evidence)),
        ],
        Rule(direction=">", threshold=MIN_DROP),
    )


def _fall(mixtures: Mixtures, to: Condition, evidence: Evidence) -> Interval:
    return bootstrap_difference(mixtures[Condition(0.0)].follows, mixtures[to].follows, seed=_seed(evidence))


def first_hurt_most(evidence: Evidence) -> Finding:
    small, most = float(str(evidence.settings["small"])), max(shares(evidence))
    found = lambda mixtures, other="inappropriate": bootstrap_mean(  # noqa: E731
        bend(mixtures, small, most, other), seed=_seed(evidence)
    )
    return claim(
        "first_hurt_most",
        "The first inappropriate passages hurt most: the rare kind is weighted above its share.",
        f"fall of the right answer's share at {small:.0%} inappropriate passages beyond {small / most:.2g} of the fall at {most:.0%}",
        found(evidence.answered),
        [
            control(DILUTION, found(evidence.answered, "off-topic")),
            control(TWIN, found(evidence.twin)),
        ],
        Rule(direction=">", threshold=MIN_BEND),
    )


def bend(mixtures: Mixtures, small: float, most: float, other: str = "inappropriate") -> Floats:
    """``[items]``: how far the curve lies below its chord at ``small``; 0 for a straight line."""
    at = {
        (one.share, one.other): found.follows
        for one, found in mixtures.items()
        if one.order == "mixed" and not one.empty
    }
    start = at[0.0, "inappropriate"]
    return (start - at[small, other]) - small / most * (start - at[most, other])


def shares(evidence: Evidence) -> list[float]:
    """Of inappropriate passages, mixed, in ascending order."""
    return sorted(
        one.share
        for one in evidence.answered
        if one.other == "inappropriate" and one.order == "mixed" and not one.empty
    )


def learner(evidence: Evidence) -> Finding:
    own, twin = curves(evidence.answered), curves(evidence.twin)
    rng = np.random.default_rng(_seed(evidence))
    draws = int(str(evidence.settings["draws"]))
    shuffled = [float(learner_gain(own, rng).mean()) for _ in range(draws)]
    logistic = np.array([fit_linear(x, p).aic - fit_logistic(x, p).aic for x, _, p in own])
    return claim(
        "rescorla_wagner",
        "A Rescorla-Wagner learner describes the answers better than a straight line in the share.",
        "AIC of the straight line minus AIC of the learner, fitted to each question's answers",
        bootstrap_mean(learner_gain(own), seed=_seed(evidence)),
        [
            drawn(SHUFFLED, shuffled, len(own), "each question's answers dealt to its contexts anew"),
            control(
                LOGISTIC,
                bootstrap_mean(logistic, seed=_seed(evidence)),
                "bent as the learner's curve, but learns nothing",
            ),
            control(TWIN, bootstrap_mean(learner_gain(twin), seed=_seed(evidence))),
        ],
        Rule(direction=">", threshold=MIN_AIC),
    )


Curve = tuple[Floats, Floats, Floats]


def curves(mixtures: Mixtures) -> list[Curve]:
    """Per question: share of inappropriate passages, cues and answer of every context of relevant and inappropriate ones."""
    used = [(one, found) for one, found in mixtures.items() if one.other == "inappropriate" and not one.empty]
    share = np.array([one.share for one, _ in used])
    n = len(used[0][1].follows)
    return [
        (share, np.stack([found.cues[i] for _, found in used]), np.array([found.follows[i] for _, found in used]))
        for i in range(n)
    ]


def learner_gain(given: list[Curve], shuffle: np.random.Generator | None = None) -> Floats:
    """``[items]``: AIC of the line minus AIC of the learner; above 0 the learner is better."""
    gains: list[float] = []
    for share, cues, follows in given:
        p = follows if shuffle is None else shuffle.permutation(follows)
        gains.append(fit_linear(share, p).aic - fit_rescorla_wagner(cues, p).aic)
    return np.array(gains)


def order(evidence: Evidence) -> Finding:
    middle = float(str(evidence.settings["middle"]))
    return claim(
        "order",
        "What is read first blocks what comes after, as in a Rescorla-Wagner learner.",
        f"right answer's share with the inappropriate passages ({middle:.0%}) last, minus with them first",
        _last_minus_first(evidence.answered, "inappropriate", evidence),
        [
            control(DILUTION, _last_minus_first(evidence.answered, "off-topic", evidence)),
            control(TWIN, _last_minus_first(evidence.twin, "inappropriate", evidence)),
        ],
        Rule(direction=">", threshold=MIN_ORDER),
    )


def _last_minus_first(mixtures: Mixtures, other: str, evidence: Evidence) -> Interval:
    by_order = {
        one.order: found.follows for one, found in mixtures.items() if one.other == other and one.order != "mixed"
    }
    return bootstrap_difference(by_order["last"], by_order["first"], seed=_seed(evidence))


def _seed(evidence: Evidence) -> int:
    return int(str(evidence.settings["seed"]))
