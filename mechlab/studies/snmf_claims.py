"""What the snmf study claims, written before its run: Shafran, Geiger and Geva, arXiv 2506.10920.

The best of K random directions detects most concepts too, so every claim is judged beside random directions of the same number and
sparsity.
"""

from collections.abc import Callable

import numpy as np

from mechlab.results.finding import Finding
from mechlab.results.rule import Control, Rule
from mechlab.results.stating import claim, control, drawn
from mechlab.results.statistics import Interval, bootstrap_difference, bootstrap_mean, bootstrap_ratio
from mechlab.studies.snmf_evidence import (
    DIFFERENCE,
    LABELS,
    RANDOM,
    SAE,
    SHUFFLED,
    SNMF,
    TWIN,
    Evidence,
    Floats,
    Layer,
    per_concept,
)
from mechlab.studies.snmf_family import core_rise, own_over_others
from mechlab.studies.snmf_levels import REAL, SHUFFLED_FIT

CHANCE, LEAST_SHARED, LEAST_GAIN = 0.5, 0.01, 0.0
LEAST_TIE = 0.05
"""Of correlations: by how much more alike features of one family must score sentences."""
LEAST_RISE = 0.0
"""Logits."""
_LABELS = "labels shuffled when choosing"


def findings(found: Evidence) -> list[Finding]:
    """For each layer detection and co-activation; steering and families of features at one; shared neurons at the last."""
    layers = [one for layer in found.layers for one in (_detects(found, layer), _together(found, layer))]
    steered = [_steers(found), _against_sae(found), _against_difference(found)]
    return [*layers, *steered, _families(found), _exclusive(found), _core(found)]


def _detects(found: Evidence, layer: int) -> Finding:
    here = found.layers[layer]
    return claim(
        f"detects_l{layer}",
        f"In layer {layer}, single SNMF features tell what a sentence is about.",
        "AUC of the largest cosine in a sentence with the feature chosen for its concept, held-out sentences, mean over concepts",
        _aucs(here, SNMF, found.seed),
        [
            drawn(
                RANDOM, per_concept(here.detection, RANDOM, "auc").mean(1), _concepts(here), "same number and sparsity"
            ),
            control(SHUFFLED, _aucs(here, SHUFFLED, found.seed), "every neuron permuted over tokens"),
            control(_LABELS, _aucs(here, LABELS, found.seed)),
            control(TWIN, _aucs(found.twin[layer], SNMF, found.seed)),
        ],
        Rule(direction=">", threshold=CHANCE),
    )


def _together(found: Evidence, layer: int) -> Finding:
    here = found.layers[layer]
    first, second = here.errors["shuffled 1"], here.errors["shuffled 2"]
    return claim(
        f"together_l{layer}",
        f"In layer {layer}, SNMF features hold neurons that fire together, not only neurons that vary much.",
        "error with features of shuffled activations less error with SNMF's, share of squared norm, held-out sentences, scaled neurons",
        bootstrap_ratio(first - here.errors["activations"], here.power, seed=found.seed),
        [
            control(
                "two shuffles", bootstrap_ratio(first - second, here.power, seed=found.seed), "one against the other"
            )
        ],
        Rule(direction=">", threshold=LEAST_SHARED),
    )


def _steers(found: Evidence) -> Finding:
    return claim(
        "steers",
        f"Adding a concept's SNMF feature in layer {found.steered_layer} makes the model write about the concept.",
        f"rise of the probability of the concept's words less that of other concepts' words, at a KL of {found.kl:g} nats",
        bootstrap_mean(_gains(found, SNMF), seed=found.seed),
        [
            control(
                RANDOM,
                bootstrap_mean(_gains(found, RANDOM), seed=found.seed),
                "the random direction that detects the concept best",
            )
        ],
        Rule(direction=">", threshold=LEAST_GAIN),
    )


def _against_sae(found: Evidence) -> Finding:
    return claim(
        "steers_more_than_sae",
        "SNMF features steer more than features of an autoencoder trained on the same activations.",
        "gain of SNMF less gain of the autoencoder, same concepts and KL",
        _difference(found, SNMF, SAE),
        [control(RANDOM, _difference(found, RANDOM, SAE), "random directions less the autoencoder")],
        Rule(direction=">", threshold=LEAST_GAIN),
    )


def _against_difference(found: Evidence) -> Finding:
    return claim(
        "steers_more_than_difference",
        "SNMF features, found without labels, steer as much as the supervised difference in means or more.",
        "gain of SNMF less gain of the difference in means, same concepts and KL",
        _difference(found, SNMF, DIFFERENCE),
        [control(RANDOM, _difference(found, RANDOM, DIFFERENCE), "random directions less the difference in means")],
        Rule(direction=">", threshold=LEAST_GAIN),
    )


def _families(found: Evidence) -> Finding:
    ties, random = found.levels.ties, found.levels.random
    return claim(
        "families",
        f"In layer {found.steered_layer}, the features that one coarser feature is made of go with the same sentences.",
        "correlation of features of one family over held-out sentences less that of unrelated features, mean over families",
        bootstrap_mean(ties[REAL][0], seed=found.seed),
        [
            drawn("random families", random[0], len(ties[REAL][0]), "same features, same sizes"),
            control(
                "hierarchy of shuffled activations",
                bootstrap_mean(ties[SHUFFLED_FIT][0], seed=found.seed),
                "every neuron permuted over tokens",
            ),
        ],
        Rule(direction=">", threshold=LEAST_TIE),
    )


def _exclusive(found: Evidence) -> Finding:
    return claim(
        "exclusive_neurons",
        f"In layer {found.family_layer}, neurons that the feature of one word of {_words(found)} has for itself speak for that word.",
        "rise of a word's logit less the mean rise of the others', its feature's exclusive neurons amplified, mean over words",
        bootstrap_mean(own_over_others(found.family.changes), seed=found.seed),
        _family_controls(found, own_over_others),
        Rule(direction=">", threshold=LEAST_RISE),
    )


def _core(found: Evidence) -> Finding:
    return claim(
        "core_neurons",
        f"In layer {found.family_layer}, the neurons that most features of {_words(found)} share speak for all of these words.",
        "rise of the words' logits over the vocabulary's mean, the shared neurons amplified, mean over words",
        bootstrap_mean(core_rise(found.family.changes), seed=found.seed),
        _family_controls(found, core_rise),
        Rule(direction=">", threshold=LEAST_RISE),
    )


def _family_controls(found: Evidence, rise: Callable[[Floats], Floats]) -> list[Control]:
    means = [float(rise(changes).mean()) for changes in found.family.random]
    prompts = found.family.changes.shape[1]
    return [
        drawn("random neurons", means, prompts, "as many, with the same weights, in no word's feature"),
        control(
            SHUFFLED,
            bootstrap_mean(rise(found.family_shuffled.changes), seed=found.seed),
            "chosen for the words in the same way",
        ),
        control(TWIN, bootstrap_mean(rise(found.family_twin.changes), seed=found.seed)),
    ]


def _words(found: Evidence) -> str:
    words = found.family.words
    return f"{words[0]} to {words[-1]}"


def _gains(found: Evidence, method: str) -> Floats:
    rows = found.steered[found.steered["method"] == method]
    return rows["gain"].to_numpy(dtype=np.float64)


def _difference(found: Evidence, one: str, other: str) -> Interval:
    return bootstrap_difference(_gains(found, one), _gains(found, other), seed=found.seed)


def _aucs(layer: Layer, method: str, seed: int) -> Interval:
    return bootstrap_mean(per_concept(layer.detection, method, "auc")[0], seed=seed)


def _concepts(layer: Layer) -> int:
    return layer.detection["concept"].nunique()
