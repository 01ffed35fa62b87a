"""The bricks study's claims and their rules, written before the run; the verdicts are computed.

Losses are nats per token of the continuations. Switching off the neurons with the largest activations breaks any function, so it is shown
beside a brick and need not be beaten: what a brick must be is specific.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mechlab.results.finding import Finding
from mechlab.results.rule import Control, Rule
from mechlab.results.stating import claim, control, drawn
from mechlab.results.statistics import Interval, bootstrap_mean
from mechlab.studies.bricks_evidence import Evidence

Floats = NDArray[np.float64]
MIN_NATS = 0.1
"""Rise of the loss that counts as one."""
MOST_OVERLAP = 0.15
"""Overlap of two bricks that still counts as small; the paper's are at most 0.09."""
RANDOM, OTHERS, SHUFFLED = "random neurons, same layers", "other functions' bricks", "bricks of shuffled labels"
ELSEWHERE = "same brick, other functions' texts"
LARGEST, TWIN = "largest activations", "random-weight twin"
RISE = "rise of the loss on held-out continuations, nats per token"
BREAKS = Rule(direction=">", threshold=MIN_NATS, beats=(RANDOM, OTHERS, ELSEWHERE, SHUFFLED, TWIN))


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [
        _own(evidence),
        *(_own_of(evidence, place, name) for place, name in enumerate(evidence.functions, 1)),
        _overlap(evidence),
        _scores(evidence),
    ]


def _own(evidence: Evidence) -> Finding:
    names = evidence.functions
    own = evidence.joined({name: evidence.own_rise(name) for name in names})
    others = evidence.joined({name: evidence.rise_by_others(name) for name in names})
    elsewhere = np.concatenate([evidence.rise_elsewhere(name) for name in names])
    return claim(
        "own_brick",
        "Without a function's own neurons its texts are predicted worse, and more so than without those of other functions.",
        f"{RISE}, all functions",
        _mean(evidence, own),
        _controls(evidence, evidence.joined(evidence.base), others, elsewhere, _by_all(evidence)),
        BREAKS,
    )


def _own_of(evidence: Evidence, place: int, name: str) -> Finding:
    parts = {
        key: values[name]
        for key, values in {
            "draws": evidence.draws,
            "shuffled": evidence.shuffled_off,
            "largest": evidence.largest_off,
            "twin": evidence.twin_off,
            "twin_base": evidence.twin_base,
        }.items()
    }
    return claim(
        f"own_{place}_{''.join(c if c.isalnum() else '_' for c in name.lower())}",
        f"There is a brick of {name}: without it {name} suffers, more than other functions, and more than without other neurons.",
        RISE,
        _mean(evidence, evidence.own_rise(name)),
        _controls(evidence, evidence.base[name], evidence.rise_by_others(name), evidence.rise_elsewhere(name), parts),
        BREAKS,
    )


def _by_all(evidence: Evidence) -> dict[str, Floats]:
    return {
        "draws": evidence.joined(evidence.draws),
        "shuffled": evidence.joined(evidence.shuffled_off),
        "largest": evidence.joined(evidence.largest_off),
        "twin": evidence.joined(evidence.twin_off),
        "twin_base": evidence.joined(evidence.twin_base),
    }


def _controls(
    evidence: Evidence, base: Floats, others: Floats, elsewhere: Floats, parts: Mapping[str, Floats]
) -> list[Control]:
    rises = parts["draws"] - base
    return [
        drawn(RANDOM, rises.mean(axis=1), rises.shape[1]),
        control(OTHERS, _mean(evidence, others), "mean over the other bricks, same prompts"),
        control(ELSEWHERE, _mean(evidence, elsewhere), "a brick that breaks everything is no brick of one function"),
        control(SHUFFLED, _mean(evidence, parts["shuffled"] - base)),
        control(TWIN, _mean(evidence, parts["twin"] - parts["twin_base"]), "its own bricks"),
        control(LARGEST, _mean(evidence, parts["largest"] - base), "shown, not to be beaten: it breaks everything"),
    ]


def _overlap(evidence: Evidence) -> Finding:
    names = evidence.functions
    pairs = [evidence.overlap(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    muddled = [
        len(np.intersect1d(evidence.shuffled.sets[a], evidence.shuffled.sets[b])) / len(evidence.shuffled.sets[a])
        for place, a in enumerate(names)
        for b in names[place + 1 :]
    ]
    return claim(
        "overlap",
        "Two functions' bricks hardly overlap.",
        "share of a brick's neurons that lie in another brick, mean over pairs",
        _mean(evidence, np.array(pairs)),
        [control(SHUFFLED, _mean(evidence, np.array(muddled)), "shown, not to be beaten")],
        Rule(direction="<", threshold=MOST_OVERLAP, beats=()),
    )


def _scores(evidence: Evidence) -> Finding:
    """FuncScore generalises: bricks score above chance on prompts they were not found with."""
    chance = 1 / len(evidence.functions)
    scores = np.array([evidence.held_out[name].mean() for name in evidence.functions])
    whole = np.array([evidence.found.precision[name].mean() for name in evidence.functions])
    return claim(
        "scores",
        "The neurons of a brick tell their function on prompts that they were not found with.",
        "FuncScore (average precision) on held-out prompts, mean over a brick, then over functions",
        _mean(evidence, scores),
        [control("all neurons", _mean(evidence, whole), "on the detection prompts")],
        Rule(direction=">", threshold=round(2 * chance, 3)),
    )


def _mean(evidence: Evidence, values: Floats) -> Interval:
    return bootstrap_mean(values, seed=evidence.seed)
