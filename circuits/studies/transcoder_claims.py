"""The transcoder study's claims and their rules, written before the run; the verdicts are computed."""

import numpy as np

from circuits.studies.transcoder_evidence import Evidence, Floats
from mechlab.results.finding import Finding
from mechlab.results.rule import Rule
from mechlab.results.stating import claim, control, drawn
from mechlab.results.statistics import Interval, bootstrap_mean, bootstrap_ratio

MAX_GAP = 1e-3
"""Of a sum of contributions from its target, in logits or units of a pre-activation."""
MIN_RECOVERED = 0.7
"""Share of the loss that zeroing the MLPs costs and that their transcoders must save."""
MIN_FALL = 0.3
"""Fall of the logit difference that counts as one, in logits."""
MIN_SHARE = 0.1
"""Share of a target's feature inputs that features picked by weights must hold."""
UNTRAINED, LINEAR, SAE = "untrained transcoders", "linear maps", "autoencoders on the MLPs' outputs"
RANDOM, PERMUTED, TWIN = "random active features, same layers", "permuted decoder rows", "random-weight twin"
NEURONS = "neurons"


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [_sum(evidence), _replacement(evidence), _ablation(evidence), _neurons(evidence), _invariant(evidence)]


def _sum(evidence: Evidence) -> Finding:
    seed = _seed(evidence)
    return claim(
        "sum",
        "With attention patterns and norms frozen, what features, errors, embeddings and biases contribute adds up to the target.",
        "largest difference between a target (the logit difference, a feature's pre-activation) and the sum of its terms",
        bootstrap_mean(evidence.gaps, seed=seed),
        [
            control(
                "errors left out",
                bootstrap_mean(evidence.gaps_without_errors, seed=seed),
                "the same sum without what transcoders miss and MLPs without one",
            )
        ],
        Rule(direction="<", threshold=MAX_GAP),
    )


def _replacement(evidence: Evidence) -> Finding:
    losses = evidence.losses

    def recovered(name: str) -> Interval:
        return bootstrap_ratio(
            losses["zeroed"] - losses[name], losses["zeroed"] - losses["model"], seed=_seed(evidence)
        )

    controls = [
        control(UNTRAINED, recovered(UNTRAINED), "random directions of the same lengths, as many active"),
        control(LINEAR, recovered(LINEAR), "ridge regression on the same activations"),
    ]
    rivals = (UNTRAINED, LINEAR)
    if SAE in losses:
        controls.append(control(SAE, recovered(SAE), "shown, not to be beaten: they see the output they give back"))
    return claim(
        "replacement",
        f"In the place of the MLPs of layers {_named(evidence.layers)}, their transcoders save most of the loss that zeroing them costs.",
        "share of the rise in loss by zeroing that is saved, held-out text",
        recovered("transcoders"),
        controls,
        Rule(direction=">", threshold=MIN_RECOVERED, beats=rivals),
    )


def _ablation(evidence: Evidence) -> Finding:
    found, n = evidence.model, len(evidence.model.base)
    return claim(
        "ablation",
        f"The {len(found.chosen)} features of the largest contributions on other prompts are needed for the task.",
        "fall of the logit difference when they are ablated and errors kept, logits",
        _interval(found.falls["transcoders"], evidence),
        [
            drawn(RANDOM, found.draws["random"].mean(axis=1), n, "drawn by how much they write"),
            drawn(PERMUTED, found.draws["permuted"].mean(axis=1), n, "features chosen with each other's decoder rows"),
            control(UNTRAINED, _interval(found.falls[UNTRAINED], evidence), "their own choice"),
            control(TWIN, _interval(evidence.twin.falls["transcoders"], evidence), "its own transcoders and choice"),
        ],
        Rule(direction=">", threshold=MIN_FALL),
    )


def _neurons(evidence: Evidence) -> Finding:
    found = evidence.model
    between = found.draws["random"] - found.draws["random neurons"]
    return claim(
        "neurons",
        "The features carry more of the task than as many neurons of the same layers, chosen by gradient times activation.",
        "fall of the logit difference by features minus that by neurons, logits",
        _interval(found.falls["transcoders"] - found.falls[NEURONS], evidence),
        [
            drawn(
                "random features minus random neurons", between.mean(axis=1), len(found.base), "same numbers per layer"
            )
        ],
        Rule(direction=">", threshold=0.0),
    )


def _invariant(evidence: Evidence) -> Finding:
    found, n = evidence.connections, len(evidence.connections.share)
    return claim(
        "invariant",
        f"Weights alone (decoder of layer {found.lower} times encoder of layer {found.upper}) tell which features feed "
        f"a target on prompts "
        "that were not looked at.",
        f"contributions of the picked features over the sizes of all of layer {found.lower}'s, mean over targets",
        _interval(found.share, evidence),
        [
            drawn(PERMUTED, found.permuted.mean(axis=1), n, "picked by weights with each other's decoder rows"),
            drawn("random features", found.random.mean(axis=1), n, "as many of the same"),
        ],
        Rule(direction=">", threshold=MIN_SHARE),
    )


def _interval(values: Floats, evidence: Evidence) -> Interval:
    return bootstrap_mean(np.asarray(values, dtype=np.float64), seed=_seed(evidence))


def _seed(evidence: Evidence) -> int:
    return int(str(evidence.settings["seed"]))


def _named(layers: list[int]) -> str:
    return ", ".join(map(str, layers[:-1])) + f" and {layers[-1]}" if len(layers) > 1 else str(layers[0])
