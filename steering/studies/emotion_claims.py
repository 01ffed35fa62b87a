"""The emotion study's claims and their rules, written before the run; the verdicts are computed.

A rise below its threshold is of no interest, however sure it is. Intervals are over held-out scenarios, the six emotions averaged in each.
"""

from mechlab.results.finding import Finding
from mechlab.results.rule import Control, Rule
from mechlab.results.stating import claim, control, drawn
from mechlab.results.statistics import Interval, bootstrap_difference, bootstrap_mean
from steering.emotion.directions import HEADS, NEURONS
from steering.studies.emotion_evidence import JUDGES, ByEmotion, Evidence, Floats, gain, single

MIN_SPECIFICITY = 0.1
"""Cosine with the own direction above the mean cosine with the others'."""
MIN_LOSS = 0.02
"""Projection lost, in mean lengths of what emotions add."""
MIN_GAIN = {"words": 0.02, "projection": 0.1, "probe": 0.05}
CIRCUIT, PLAIN, PROMPTING, UNIFORM = "circuit", "plain steering", "prompting", "uniform allocation"
RANDOM, SHUFFLED, WRONG_LAYER = "random units", "shuffled labels", "wrong layer"
OTHER, RANDOM_VALUES, TWIN = "another emotion's difference", "random direction", "random-weight twin"
RANDOM_DIRECTIONS, OTHERS_UNITS = "random directions", "another emotion's units"
_WHAT = {
    "words": "rise of the probability of the emotion's words",
    "projection": "rise of the projection on the emotion's direction at a stream that is not edited, in mean lengths of an emotion there",
    "probe": "rise of the probability of the emotion by a probe on that stream",
}


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [
        _directions(evidence),
        *(_units(evidence, kind) for kind in (NEURONS, HEADS)),
        *(_circuit(evidence, judge) for judge in JUDGES),
        *(_over(evidence, rival) for rival in (PLAIN, PROMPTING, UNIFORM)),
    ]


def _directions(evidence: Evidence) -> Finding:
    found = evidence.recognition
    n = len(found.own)
    return claim(
        "directions",
        "What an emotion adds on held-out scenarios, asked for in other words, points along its own direction and not the others'.",
        f"cosine with the own direction minus the mean cosine with the five others, at {evidence.readout}",
        _mean(found.own, evidence),
        [
            drawn(SHUFFLED, found.shuffled, n),
            drawn(RANDOM_DIRECTIONS, found.random, n),
            control(TWIN, _mean(evidence.twin_specificity, evidence), "its own directions on its own activations"),
        ],
        Rule(direction=">", threshold=MIN_SPECIFICITY),
    )


def _units(evidence: Evidence, kind: str) -> Finding:
    found = evidence.ablations[kind]
    name = {NEURONS: "neurons", HEADS: "heads"}[kind]
    k = evidence.settings[f"k_{name}"]
    n = len(found.top)
    return claim(
        name,
        f"The {name} that add most along an emotion's direction carry it: without the top {k} of each layer its projection falls.",
        f"projection on the emotion's direction lost at {evidence.readout}, in mean lengths of an emotion there",
        _mean(found.top, evidence),
        [
            drawn(RANDOM, found.random, n, "as many of each layer"),
            drawn(SHUFFLED, found.shuffled, n, "units chosen along directions of shuffled labels"),
            control(OTHERS_UNITS, _mean(found.other, evidence)),
            control(TWIN, _mean(evidence.twin_ablations[kind], evidence), "its own units"),
        ],
        Rule(direction=">", threshold=MIN_LOSS),
    )


def _circuit(evidence: Evidence, judge: str) -> Finding:
    return claim(
        f"circuit_{judge}",
        f"Adding an emotion's differences to its circuit brings the emotion out, by the {judge}, more than controls at the same KL do.",
        f"{_WHAT[judge]}, all steered to {_kl(evidence)}",
        _mean(gain(single(evidence.methods[CIRCUIT]), judge), evidence),
        [
            *(_draws(evidence, name, judge) for name in (RANDOM, SHUFFLED, RANDOM_VALUES)),
            *(_one(evidence, name, evidence.methods[name], judge) for name in (WRONG_LAYER, OTHER)),
            _one(evidence, TWIN, [evidence.twin_circuit], judge),
        ],
        Rule(direction=">", threshold=MIN_GAIN[judge]),
    )


def _over(evidence: Evidence, rival: str) -> Finding:
    key = {PLAIN: "over_plain", PROMPTING: "over_prompting", UNIFORM: "over_uniform"}[rival]
    told = {
        PLAIN: "The circuit brings emotions out more than plain steering along the directions does at the same KL.",
        PROMPTING: "The circuit brings emotions out more than asking in the prompt does, in so many replies that the KL is the same.",
        UNIFORM: "Sharing units out by causal influence beats giving every layer as many.",
    }[rival]
    twins = {PLAIN: evidence.twin_plain, PROMPTING: evidence.twin_prompting, UNIFORM: evidence.twin_uniform}[rival]
    other = gain(single(evidence.methods[rival]), "words")
    randoms = [float((gain(one, "words") - other).mean()) for one in evidence.methods[RANDOM]]
    return claim(
        key,
        told,
        f"{_WHAT['words']}: circuit minus {rival}, both at {_kl(evidence)}",
        _difference(gain(single(evidence.methods[CIRCUIT]), "words"), other, evidence),
        [
            drawn(RANDOM, randoms, len(other), f"random units minus {rival}"),
            control(
                TWIN,
                _difference(gain(evidence.twin_circuit, "words"), gain(twins, "words"), evidence),
                "both on the twin",
            ),
        ],
        Rule(direction=">", threshold=0.0),
    )


def _draws(evidence: Evidence, name: str, judge: str) -> Control:
    found = evidence.methods[name]
    return drawn(name, [float(gain(one, judge).mean()) for one in found], evidence.n_prompts, missed(found))


def _one(evidence: Evidence, name: str, found: list[ByEmotion], judge: str) -> Control:
    return control(name, _mean(gain(single(found), judge), evidence), missed(found))


def missed(found: list[ByEmotion]) -> str:
    """A note where some emotions do not reach the KL."""
    short = sum(not one.reached for draw in found for one in draw.values())
    return f"{short} of {sum(len(draw) for draw in found)} do not reach the KL" if short else ""


def _kl(evidence: Evidence) -> str:
    return f"a KL of {evidence.settings['kl']} nats"


def _mean(values: Floats, evidence: Evidence) -> Interval:
    return bootstrap_mean(values, seed=int(str(evidence.settings["seed"])))


def _difference(a: Floats, b: Floats, evidence: Evidence) -> Interval:
    return bootstrap_difference(a, b, seed=int(str(evidence.settings["seed"])))
