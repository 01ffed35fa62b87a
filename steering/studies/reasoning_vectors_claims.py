"""The reasoning-vectors study's claims and their rules, written before the run; the verdicts are computed.

Gains are in the right answer's share of the probability of all candidates: accuracy moves in steps of whole questions, the share does not.
A gain below the threshold is of no interest, however sure it is.
"""

from collections.abc import Sequence

import numpy as np

from mechlab.results.finding import Finding
from mechlab.results.rule import Control, Rule
from mechlab.results.stating import UNKNOWN, claim, control, drawn
from mechlab.results.statistics import Interval, bootstrap_difference, bootstrap_mean
from steering.studies.reasoning_vectors_evidence import Answered, Evidence, Floats, Matched, TaskEvidence

MIN_GAIN = 0.02
"""Rise of the right answer's share that counts as one."""
MIN_BITS = 0.2
"""Rise of the next token's entropy that counts as one."""
RANDOM, SHUFFLED, WRONG_LAYER, TWIN = "random directions", "shuffled labels", "wrong layer", "random-weight twin"
GENTLE = "smallest strengths"


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [*(_gain(evidence, one) for one in evidence.tasks), _entropy(evidence)]


def _gain(evidence: Evidence, one: TaskEvidence) -> Finding:
    kl = evidence.settings["kl"]
    cross = [_control(f"vector of {one.cross_name}", one, one.cross, evidence)] if one.cross_name else []
    return claim(
        f"{one.task}_gain",
        f"The {one.task} vector makes right answers likelier, more than any other direction that moves the output as far.",
        f"rise of the right answer's share among the candidates, all steered to a KL of {kl} nats",
        UNKNOWN if one.own is None else _difference(one.own.answered, one.base, evidence),
        [
            _draws(RANDOM, one, one.random),
            _draws(SHUFFLED, one, one.shuffled),
            *cross,
            _control(
                WRONG_LAYER, one, one.wrong_layer, evidence, f"at L{evidence.wrong_layer} instead of L{evidence.layer}"
            ),
            control(
                TWIN,
                UNKNOWN if one.twin is None else _difference(one.twin.answered, one.twin_base, evidence),
                "its own vector" if one.twin else "its own vector reaches this KL at no strength",
            ),
        ],
        Rule(direction=">", threshold=MIN_GAIN),
    )


def _entropy(evidence: Evidence) -> Finding:
    strengths = sorted(evidence.tasks[0].by_strength, key=abs)
    low, high = abs(strengths[0]), abs(strengths[-1])
    seed = _seed(evidence)
    twin = np.concatenate(
        [np.mean([x.entropy for x in one.twin_extremes], axis=0) - one.twin_base.entropy for one in evidence.tasks]
    )
    return claim(
        "entropy",
        "Strong steering makes the model unsure: the next token's entropy rises at the largest strengths, either way.",
        f"rise of the entropy at strengths of size {high:g}, bits, over the questions of all tasks",
        bootstrap_mean(_rise(evidence, high), seed=seed),
        [
            control(GENTLE, bootstrap_mean(_rise(evidence, low), seed=seed), f"strengths of size {low:g}"),
            control(TWIN, bootstrap_mean(twin, seed=seed), "its own vectors at the largest strengths"),
        ],
        Rule(direction=">", threshold=MIN_BITS),
    )


def _rise(evidence: Evidence, size: float) -> Floats:
    """``[questions]``: entropy at strengths of that size minus unsteered, the two signs averaged."""
    return np.concatenate(
        [
            np.mean([x.entropy - one.base.entropy for s, x in one.by_strength.items() if abs(s) == size], axis=0)
            for one in evidence.tasks
        ]
    )


def _difference(steered: Answered, base: Answered, evidence: Evidence) -> Interval:
    return bootstrap_difference(steered.share, base.share, seed=_seed(evidence))


def _control(name: str, one: TaskEvidence, found: Matched | None, evidence: Evidence, note: str = "") -> Control:
    if found is None:
        return control(name, UNKNOWN, "reaches this KL at no strength")
    return control(name, _difference(found.answered, one.base, evidence), note)


def _draws(name: str, one: TaskEvidence, found: Sequence[Matched]) -> Control:
    gains = [float((draw.answered.share - one.base.share).mean()) for draw in found]
    return drawn(name, gains or None, len(one.base.share))


def _seed(evidence: Evidence) -> int:
    return int(str(evidence.settings["seed"]))
