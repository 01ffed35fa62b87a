"""The vocabulary study's claims and their rules, written before the run; the verdicts are computed."""

import math

import numpy as np
from numpy.typing import NDArray

from mechlab.results.finding import Finding
from mechlab.results.rule import Control, Rule
from mechlab.results.stating import UNKNOWN, claim, control, drawn
from mechlab.results.statistics import Interval, bootstrap_mean
from mechlab.studies.vocabulary_evidence import DEPTHS, Evidence

Floats = NDArray[np.float64]
MIN_SHARE = 0.05
"""Share of meaningful neurons that is worth a claim."""
MIN_SHIFT = 0.1
"""Shift of the words' log-probability that counts as one, nats."""
DIRECTIONS, TWIN = "random directions", "random-weight twin"
RANDOM, AT_MEAN, SHUFFLED = "random clusters, same layers", "same neurons at their mean", "constants shuffled"
_LAYERS = {"early": "the first third of the layers", "late": "the last third of the layers"}


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [
        *(_meaning(evidence, depth) for depth in DEPTHS),
        *(_steers(evidence, depth) for depth in DEPTHS),
        _later(evidence),
    ]


def _meaning(evidence: Evidence, depth: str) -> Finding:
    """Neurons are what is counted: their meaning is read off the weights, no prompt is run."""
    layers = evidence.by_depth[depth]
    return claim(
        f"meaning_{depth}",
        f"Neurons in {_LAYERS[depth]} write related words, more often than random directions do.",
        "share of neurons with at least 4 of their 30 highest words in one theme",
        _mean(evidence, _joined(evidence.meaningful, layers)),
        [
            control(DIRECTIONS, _mean(evidence, evidence.directions[depth].astype(float)), "same covariance"),
            control(TWIN, _mean(evidence, _joined(evidence.twin_meaningful, layers)), "its own unembedding and themes"),
        ],
        Rule(direction=">", threshold=MIN_SHARE),
    )


def _steers(evidence: Evidence, depth: str) -> Finding:
    found = evidence.of(depth)
    missing = [Control(name=name, estimate=math.nan, n=0, note="no cluster") for name in (RANDOM, AT_MEAN, TWIN)]
    controls = missing
    if found:
        draws = np.mean([one.draws for one in found], axis=0)  # [draw, text]
        twin = [shift for where, shift in evidence.twin_shifts if where == depth]
        twins = _mean(evidence, np.mean(twin, axis=0)) if twin else Interval(0.0, 0.0, 0.0, 0)
        controls = [
            drawn(
                RANDOM, draws.mean(axis=1), draws.shape[1], "equal size and layers, each neuron at the same strength"
            ),
            control(AT_MEAN, _mean(evidence, np.mean([one.at_mean for one in found], axis=0))),
            control(TWIN, twins, "its own clusters" if twin else "it has no cluster: nothing to clamp"),
            control(
                SHUFFLED, _mean(evidence, np.mean([one.shuffled for one in found], axis=0)), "shown, not to be beaten"
            ),
        ]
    return claim(
        f"steers_{depth}",
        f"Clamping a cluster of neurons in {_LAYERS[depth]} makes the words they write more likely."
        + ("" if found else " No cluster was found."),
        "rise of the log-probability of a cluster's words on held-out text, mean over clusters, nats",
        _mean(evidence, np.mean([one.shift for one in found], axis=0)) if found else UNKNOWN,
        controls,
        Rule(direction=">", threshold=MIN_SHIFT, beats=(RANDOM, AT_MEAN, TWIN)),
    )


def _later(evidence: Evidence) -> Finding:
    early, late = ([one.shift for one in evidence.of(depth)] for depth in DEPTHS)
    early_draws, late_draws = ([one.draws for one in evidence.of(depth)] for depth in DEPTHS)
    both = bool(early) and bool(late)
    difference = np.mean(late_draws, axis=0) - np.mean(early_draws, axis=0) if both else None
    return claim(
        "late_over_early",
        "Clusters of late layers move their words more than clusters of early layers.",
        "rise by late clusters minus rise by early ones, same texts, nats",
        _mean(evidence, np.mean(late, axis=0) - np.mean(early, axis=0)) if both else UNKNOWN,
        [
            drawn(
                RANDOM,
                None if difference is None else difference.mean(axis=1),
                0 if difference is None else difference.shape[1],
            )
        ],
        Rule(direction=">", threshold=0.0),
    )


def _joined(by_layer: object, layers: list[int]) -> Floats:
    assert isinstance(by_layer, dict)
    return np.concatenate([by_layer[layer] for layer in layers]).astype(np.float64)


def _mean(evidence: Evidence, values: Floats) -> Interval:
    return bootstrap_mean(values, seed=evidence.seed)
