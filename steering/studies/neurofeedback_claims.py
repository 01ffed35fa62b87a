"""The neurofeedback study's claims and their rules, written before the run; the verdicts are computed.

Accuracies are over the second half of the examples, a mean per context; chance is 0.5. Effects of control are in standard deviations of the
held-out sentences' scores.
"""

import numpy as np

from mechlab.results.finding import Finding
from mechlab.results.rule import Control, Rule
from mechlab.results.stating import UNKNOWN, claim, control
from mechlab.results.statistics import Interval, bootstrap_difference, bootstrap_mean
from steering.studies.neurofeedback_directions import FLIPPED, PROBE, RANDOM, SHUFFLED, Floats, component_name
from steering.studies.neurofeedback_evidence import TWIN, Controlled, Evidence, Measured, late

MIN_ACCURACY, MIN_OVER_BAG, MIN_LEARNT, MIN_IMPLICIT, MIN_EXPLICIT = 0.55, 0.02, 0.03, 0.1, 0.2
EARLY = slice(0, 2)
"""Reports after no example and after one: what cannot have been learnt yet."""


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [
        _reported(evidence),
        _beyond_words(evidence),
        _kinds(evidence),
        _learnt(evidence),
        _moved(
            evidence,
            "implicit",
            "Asked for a score, the model moves its own state over a sentence that is given, towards that score.",
            MIN_IMPLICIT,
            [SHUFFLED, RANDOM, FLIPPED, TWIN],
        ),
        _moved(
            evidence,
            "explicit",
            "Asked for a score, the model writes sentences that have it.",
            MIN_EXPLICIT,
            [SHUFFLED, TWIN],
        ),
    ]


def accuracy(one: Measured, slots: slice | None = None) -> Floats:
    """``[contexts]``: share of right reports in those slots; none: the late ones."""
    return one.reported.right[:, slots or late(one.reported.right.shape[1])].mean(1)


def _reported(evidence: Evidence) -> Finding:
    return claim(
        "report",
        "From a few examples the model tells how its own activation on a probe's direction is scored.",
        "accuracy of the reported score, second half of the examples",
        _mean(evidence, accuracy(evidence.measured[PROBE])),
        [control(name, _mean(evidence, accuracy(evidence.measured[name]))) for name in (SHUFFLED, TWIN)],
        Rule(direction=">", threshold=MIN_ACCURACY),
    )


def _beyond_words(evidence: Evidence) -> Finding:
    def gain(name: str) -> Interval:
        one = evidence.measured[name]
        return bootstrap_difference(accuracy(one), one.bag.mean(1), seed=_seed(evidence))

    return claim(
        "beyond_words",
        "The report is better than what the words of the same examples tell: a bag of words does not explain it.",
        "accuracy of the report minus that of a bag-of-words classifier fitted to the same examples",
        gain(PROBE),
        [control(name, gain(name)) for name in (SHUFFLED, TWIN)],
        Rule(direction=">", threshold=MIN_OVER_BAG),
    )


def _kinds(evidence: Evidence) -> Finding:
    rivals = [RANDOM, component_name(max(components(evidence)))]
    return claim(
        "direction_types",
        "A direction with a meaning is reported better than random ones and than a late principal component.",
        "accuracy of the reported score of the probe's direction",
        _mean(evidence, accuracy(evidence.measured[PROBE])),
        [control(name, _mean(evidence, accuracy(evidence.measured[name]))) for name in rivals],
        Rule(direction=">", threshold=0.5),
    )


def components(evidence: Evidence) -> list[int]:
    """Ranks of the principal components that were measured."""
    found = evidence.settings["components"]
    assert isinstance(found, tuple)
    return [int(k) for k in found]


def _learnt(evidence: Evidence) -> Finding:
    def rise(name: str) -> Interval:
        one = evidence.measured[name]
        return bootstrap_difference(accuracy(one), accuracy(one, EARLY), seed=_seed(evidence))

    return claim(
        "learning",
        "Reports get better with more examples.",
        "accuracy in the second half of the examples minus accuracy after none and one",
        rise(PROBE),
        [control(name, rise(name)) for name in (SHUFFLED, TWIN)],
        Rule(direction=">", threshold=MIN_LEARNT),
    )


def _moved(evidence: Evidence, key: str, statement: str, threshold: float, names: list[str]) -> Finding:
    def effect(name: str) -> Interval:
        one = evidence.measured[name]
        return moved(one.implicit if key == "implicit" else one.explicit, _seed(evidence))

    controls: list[Control] = [control(name, effect(name)) for name in names]
    return claim(
        f"{key}_control",
        statement,
        "score on the probe when 1 is asked for minus when 0 is, in standard deviations of sentences",
        effect(PROBE),
        controls,
        Rule(direction=">", threshold=threshold),
    )


def moved(found: Controlled | None, seed: int = 0) -> Interval:
    """Mean effect over contexts."""
    return UNKNOWN if found is None else bootstrap_mean(found.effect, seed=seed)


def cohens_d(effect: Floats) -> float:
    """Mean of paired differences over their standard deviation; NaN where they do not vary."""
    spread = effect.std(ddof=1) if len(effect) > 1 else 0.0
    return float(effect.mean() / spread) if spread > 0 else float(np.nan)


def _mean(evidence: Evidence, values: Floats) -> Interval:
    return bootstrap_mean(values, seed=_seed(evidence))


def _seed(evidence: Evidence) -> int:
    return int(str(evidence.settings["seed"]))
