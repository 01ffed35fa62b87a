"""The dictionaries study's claims and their rules, written before the run; the verdicts are computed.

Each is about the TopK SAE trained on the spot, against what would do as well if training had found nothing: random atoms read by matching
pursuit (a pursuit alone explains some variance), an untrained SAE, one trained on activations whose dimensions were shuffled apart, the
best of as many random directions, shuffled labels, the random-weight twin.
"""

from collections.abc import Sequence

import numpy as np

from mechlab.results.finding import Finding
from mechlab.results.rule import Control, Rule
from mechlab.results.stating import claim, control, drawn
from mechlab.results.statistics import Interval, bootstrap_difference, bootstrap_mean
from mechlab.studies.dictionaries_evidence import (
    NEURONS,
    RIVAL,
    SHUFFLED,
    SUBJECT,
    TWIN,
    UNTRAINED,
    Evidence,
    Floats,
    aucs,
    correlations,
    probes,
)

MIN_VARIANCE, MIN_NATS, MIN_AUC, MIN_MASS, MIN_COSINE, MIN_CORRELATION = 0.05, 0.1, 0.6, 0.005, 0.5, 0.1
RANDOM_BEST, RANDOM_ANY = "best of as many random directions", "random directions"
LABELS, OTHERS = "shuffled labels", "labels of other features"


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [
        _reconstruction(evidence),
        _splice(evidence),
        _detection(evidence),
        _probing(evidence),
        _steering(evidence),
        _seeds(evidence),
        _labels(evidence),
    ]


def _reconstruction(evidence: Evidence) -> Finding:
    rival = evidence.families[RIVAL].unexplained

    def less(name: str) -> Floats:
        return rival - evidence.families[name].unexplained

    return claim(
        "reconstruction",
        "A trained TopK SAE leaves less of held-out activations unexplained than a pursuit over random atoms, at the same width and L0.",
        "variance unexplained by random atoms with matching pursuit minus that by the SAE, share of the variance, mean over texts",
        bootstrap_mean(less(SUBJECT), seed=_seed(evidence)),
        [
            control(name, bootstrap_mean(less(name), seed=_seed(evidence)), "the same difference for it")
            for name in (UNTRAINED, SHUFFLED)
        ],
        Rule(direction=">", threshold=MIN_VARIANCE),
    )


def _splice(evidence: Evidence) -> Finding:
    def saved(name: str) -> tuple[Floats, Floats]:
        losses = [evidence.families[one].score.loss for one in (RIVAL, name)]
        rival, own = (np.asarray(one.spliced) for one in losses if one is not None)
        return rival, own

    return claim(
        "splice",
        "With the TopK SAE in the activation's place the model predicts text better than with random atoms and pursuit in its place.",
        "next-token loss with random atoms and pursuit spliced in minus that with the SAE, nats, mean over texts",
        bootstrap_difference(*saved(SUBJECT), seed=_seed(evidence)),
        [
            control(name, bootstrap_difference(*saved(name), seed=_seed(evidence)), "the same difference for it")
            for name in (UNTRAINED, SHUFFLED)
        ],
        Rule(direction=">", threshold=MIN_NATS),
    )


def _detection(evidence: Evidence) -> Finding:
    score = evidence.families[SUBJECT].score
    return claim(
        "detection",
        "The best TopK feature for a concept, chosen on other sentences, tells its sentences apart better than the best random direction.",
        "AUC of the largest cosine in a sentence, mean over concepts",
        bootstrap_mean(aucs(score), seed=_seed(evidence)),
        [
            drawn(RANDOM_BEST, evidence.random_auc.mean(1), len(evidence.concepts)),
            drawn(LABELS, evidence.shuffled_auc.mean(1), len(evidence.concepts), "where the feature was chosen"),
            _twins(evidence, aucs(evidence.twin.score)),
        ],
        Rule(direction=">", threshold=MIN_AUC),
    )


def _probing(evidence: Evidence) -> Finding:
    score = evidence.families[SUBJECT].score
    controls = [
        drawn(LABELS, evidence.shuffled_probe.mean(1), len(evidence.concepts), "where the probe was fitted"),
        *(control(name, _mean(evidence, probes(evidence.families[name].score))) for name in (UNTRAINED, NEURONS)),
        _twins(evidence, probes(evidence.twin.score)),
    ]
    return claim(
        "probing",
        "One code of the TopK SAE says what a sentence is about.",
        "AUROC of a probe on the one feature chosen on other sentences, mean over concepts",
        _mean(evidence, probes(score)),
        controls,
        Rule(direction=">", threshold=MIN_AUC),
    )


def _steering(evidence: Evidence) -> Finding:
    found = evidence.steering
    return claim(
        "steering",
        "Steered by the concept's TopK feature, the model says the concept's words more, at the same KL as a random direction.",
        "probability of the concept's words at a new token, less that of unsteered text, mean over concepts",
        _mean(evidence, found[SUBJECT].gains),
        [
            drawn(RANDOM_ANY, evidence.random_gains.mean(1), len(evidence.steered), "the same KL"),
            control(RANDOM_BEST, _mean(evidence, found[RIVAL].gains), "chosen as the feature was; the same KL"),
        ],
        Rule(direction=">", threshold=MIN_MASS),
    )


def _seeds(evidence: Evidence) -> Finding:
    return claim(
        "seeds",
        "Two TopK SAEs that differ in their seed find many of the same features.",
        "cosine with the matched feature of the other seed, mean over features",
        _mean(evidence, evidence.seeds),
        [control(UNTRAINED, _mean(evidence, evidence.untrained_seeds), "two untrained SAEs, matched alike")],
        Rule(direction=">", threshold=MIN_COSINE),
    )


def _labels(evidence: Evidence) -> Finding:
    own = evidence.labelled[SUBJECT]
    others = np.array([one.control for one in own.scores])
    return claim(
        "labels",
        "Labels by mutual information predict what TopK features do on other text.",
        "correlation of predicted with true codes on held-out text, mean over features",
        _mean(evidence, correlations(own)),
        [
            control(OTHERS, _mean(evidence, others)),
            control(RIVAL, _mean(evidence, correlations(evidence.labelled[RIVAL])), "labels of its own features"),
        ],
        Rule(direction=">", threshold=MIN_CORRELATION),
    )


def _twins(evidence: Evidence, values: Floats) -> Control:
    return control(TWIN, _mean(evidence, values), "a TopK SAE of its own activations")


def _mean(evidence: Evidence, values: Floats | Sequence[float]) -> Interval:
    return bootstrap_mean(values, seed=_seed(evidence))


def _seed(evidence: Evidence) -> int:
    return int(str(evidence.settings["seed"]))
