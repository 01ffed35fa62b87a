"""The activation-reasoning study's claims and their rules, written before the run; the verdicts are computed.

The twin's detectors are made from its own activations, so what it reaches needs no training: the identity of a word, seen through random
weights, and the rules that are given to it as to the model.
"""

from collections.abc import Callable

from mechlab.results.finding import Finding
from mechlab.results.rule import Control, Rule
from mechlab.results.stating import UNKNOWN, claim, control, drawn
from mechlab.results.statistics import bootstrap_difference, bootstrap_mean
from steering.studies.activation_reasoning_evidence import Evidence, Floats, Steered, Suite, Told
from steering.studies.activation_reasoning_tasks import CHAINS, INDIRECT, NAMED

MIN_GAIN = 0.1
"""Gain in accuracy that counts as one."""
MIN_HITS = 0.25
"""Share of statements whose concept is detected; there are twelve countries."""
MIN_SHARE = 0.02
"""Rise of the right answer's share that counts as one."""
LABELS, RANDOM, RULES, TWIN = "shuffled concept labels", "random directions", "shuffled rules", "random-weight twin"
OTHERS = "vectors of other facts"


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [
        _decay(evidence),
        *(_gain(evidence, name, key) for name, key in ((CHAINS, "kinds"), (NAMED, "named"), (INDIRECT, "indirect"))),
        _detection(evidence),
        _action(evidence),
    ]


def _decay(evidence: Evidence) -> Finding:
    one, seed = evidence.suite(CHAINS), _seed(evidence)
    few, many = min(one.base), max(one.base)
    return claim(
        "base_decay",
        "The model alone loses accuracy with the number of hops.",
        f"accuracy at {few} hop minus accuracy at {many} hops, {CHAINS}",
        bootstrap_difference(one.base[few], one.base[many], seed=seed),
        [control(TWIN, bootstrap_difference(one.twin_base[few], one.twin_base[many], seed=seed))],
        Rule(direction=">", threshold=MIN_GAIN),
    )


def _gain(evidence: Evidence, name: str, key: str) -> Finding:
    one, seed = evidence.suite(name), _seed(evidence)
    hops = max(one.base)
    base = one.base[hops]
    mean: Callable[[Told], float] = lambda told: float((told.right[hops] - base).mean())  # noqa: E731
    draws = ((LABELS, one.shuffled_labels), (RANDOM, one.random), (RULES, one.shuffled_rules))
    return claim(
        f"{key}_gain",
        f"{name.capitalize()}: rules over detected concepts answer questions of {hops} hops better than the model alone does.",
        f"accuracy by rules minus the model's own, {hops} hops; a guess counts a half",
        bootstrap_difference(one.told.right[hops], base, seed=seed),
        [
            *(drawn(label, [mean(told) for told in found], len(base)) for label, found in draws),
            control(TWIN, bootstrap_difference(one.twin.right[hops], one.twin_base[hops], seed=seed), "minus its own"),
        ],
        Rule(direction=">", threshold=MIN_GAIN),
    )


def _detection(evidence: Evidence) -> Finding:
    one, seed = evidence.suite(INDIRECT), _seed(evidence)
    return claim(
        "indirect_detection",
        "The country behind an indirect cue is detected by directions made from cities' names.",
        "share of statements whose own country is the one detected",
        bootstrap_mean(one.told.hit, seed=seed),
        [
            _hits(LABELS, one.shuffled_labels, one),
            _hits(RANDOM, one.random, one),
            control(TWIN, bootstrap_mean(one.twin.hit, seed=seed)),
        ],
        Rule(direction=">", threshold=MIN_HITS),
    )


def _hits(name: str, found: list[Told], one: Suite) -> Control:
    return drawn(name, [float(told.hit.mean()) for told in found], len(one.told.hit))


def _action(evidence: Evidence) -> Finding:
    found, kl, seed = evidence.actions, evidence.settings["kl"], _seed(evidence)
    return claim(
        "action",
        "Steering along the continent that follows makes the right answer likelier, more than any other direction that moves the "
        "output as far.",
        f"rise of the right continent's share among the four, at a KL of {kl} nats, where a continent follows",
        UNKNOWN if found.own is None else bootstrap_mean(found.own.gain, seed=seed),
        [
            _acted(RANDOM, found.random),
            _acted(OTHERS, found.others),
            control(
                TWIN,
                UNKNOWN if found.twin is None else bootstrap_mean(found.twin.gain, seed=seed),
                "its own detectors and vectors" if found.twin else "this KL is reached at no strength",
            ),
        ],
        Rule(direction=">", threshold=MIN_SHARE),
    )


def _acted(name: str, found: list[Steered]) -> Control:
    gains: list[Floats] = [one.gain for one in found]
    return drawn(name, [float(gain.mean()) for gain in gains] or None, len(gains[0]) if gains else 0)


def _seed(evidence: Evidence) -> int:
    return int(str(evidence.settings["seed"]))
