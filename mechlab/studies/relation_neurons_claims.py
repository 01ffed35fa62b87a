"""The relation-neurons study's claims and their rules, written before the run; the verdicts are computed.

What a set does is the share of held-out questions that are answered right before and not after it is switched off (absolute, so that a
model that answers nothing gives 0 and not a ratio of nothings). Effects below the thresholds are of no interest, however sure they are.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mechlab.analyses.facts_answers import Answers
from mechlab.results.finding import Finding
from mechlab.results.rule import Control, Rule
from mechlab.results.stating import UNKNOWN, claim, control, drawn
from mechlab.results.statistics import Interval, bootstrap_mean
from mechlab.studies.relation_neurons_evidence import Evidence

Floats = NDArray[np.float64]
MIN_DROP = 0.1
"""Share of questions lost that counts as a loss."""
MOST_NATS = 0.1
"""Rise of the loss on neutral text that still counts as an intact model."""
RANDOM, OTHERS, SHUFFLED = "random units, same layers", "other relations' units", "units of shuffled labels"
ELSEWHERE = "same units, other relations' facts"
UNIFORM, TWIN = "random units, any layer", "random-weight twin"
LOST = "held-out questions right before minus right after, share of all"
FORGETS = Rule(direction=">", threshold=MIN_DROP, beats=(RANDOM, OTHERS, ELSEWHERE, SHUFFLED, TWIN))


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [
        _own(evidence),
        *(_own_of(evidence, place, name) for place, name in enumerate(evidence.relations, 1)),
        _other_wording(evidence),
        _spared(evidence),
        _template_units(evidence),
        _crossed(evidence),
        _neutral(evidence),
        _languages(evidence),
    ]


def _own(evidence: Evidence) -> Finding:
    base, own = evidence.base, {name: evidence.without[name, name] for name in evidence.relations}
    others = np.concatenate([evidence.lost_to_others(name) for name in evidence.relations])
    elsewhere = np.concatenate([evidence.lost_elsewhere(name) for name in evidence.relations])
    return claim(
        "own_relation",
        "Without a relation's own units, facts of that relation are lost, with subjects that the units were not found with.",
        f"{LOST}, all relations",
        _mean(evidence, evidence.lost(own)),
        [
            _drawn(RANDOM, evidence.lost_to_draws(evidence.draws, base)),
            control(OTHERS, _mean(evidence, others), "mean over the other sets, same questions"),
            control(ELSEWHERE, _mean(evidence, elsewhere), "a set that breaks everything is no set of one relation"),
            control(SHUFFLED, _mean(evidence, evidence.lost(evidence.shuffled_own))),
            control(TWIN, _mean(evidence, evidence.lost(evidence.twin_own, evidence.twin_base)), "its own units"),
            _drawn(UNIFORM, evidence.lost_to_draws(evidence.uniform, base), "shown, weaker: layers differ"),
        ],
        FORGETS,
    )


def _own_of(evidence: Evidence, place: int, name: str) -> Finding:
    before = evidence.base[name].right
    lost_by = np.stack([before - one.right for one in evidence.draws[name]])
    return claim(
        f"own_{place}_{_key(name)}",
        f"There are units of {name}: without them its facts are lost more than others' facts, and more than without other units.",
        LOST,
        _mean(evidence, before - evidence.without[name, name].right),
        [
            _drawn(RANDOM, lost_by),
            control(OTHERS, _mean(evidence, evidence.lost_to_others(name)), "mean over the other sets"),
            control(ELSEWHERE, _mean(evidence, evidence.lost_elsewhere(name))),
            control(SHUFFLED, _mean(evidence, before - evidence.shuffled_own[name].right)),
            control(
                TWIN, _mean(evidence, evidence.twin_base[name].right - evidence.twin_own[name].right), "its own units"
            ),
        ],
        FORGETS,
    )


def _other_wording(evidence: Evidence) -> Finding:
    base = evidence.base_other
    return claim(
        "other_wording",
        "The same units are needed when the question is worded differently than the prompts they were found with.",
        f"{LOST}, second wording, all relations",
        _mean(evidence, evidence.lost(evidence.without_other, base)),
        [
            _drawn(RANDOM, evidence.lost_to_draws(evidence.draws_other, base)),
            control(SHUFFLED, _mean(evidence, evidence.lost(evidence.shuffled_other, base))),
        ],
        Rule(direction=">", threshold=MIN_DROP),
    )


def _spared(evidence: Evidence) -> Finding:
    others = np.concatenate([evidence.lost_to_others(name) for name in evidence.relations])
    own = evidence.lost({name: evidence.without[name, name] for name in evidence.relations})
    return claim(
        "others_spared",
        "Facts of other relations are hardly lost without a relation's units.",
        f"{LOST}, mean over the other relations' sets",
        _mean(evidence, others),
        [
            control("own units", _mean(evidence, own)),
            _drawn(RANDOM, evidence.lost_to_draws(evidence.draws, evidence.base)),
        ],
        Rule(direction="<", threshold=MIN_DROP, beats=("own units",)),
    )


def _template_units(evidence: Evidence) -> Finding:
    """The unit of counting is the relation: units of one set see the same prompts."""
    shares = [evidence.held_out.template_units(name).mean() for name in evidence.relations]
    muddled = [evidence.held_out_shuffled.template_units(name).mean() for name in evidence.relations]
    return claim(
        "template_units",
        "Fewer than half of the units that were found follow one wording only.",
        "share of a set's units that lose over half of their average precision above chance in the second wording, mean over relations",
        _mean(evidence, np.array(shares)),
        [control(SHUFFLED, _mean(evidence, np.array(muddled)), "shown, not to be beaten")],
        Rule(direction="<", threshold=0.5, beats=()),
    )


def _crossed(evidence: Evidence) -> Finding:
    def ahead(found: Mapping[str, Floats], other: Mapping[str, Floats]) -> Interval:
        return _mean(evidence, np.array([found[name].mean() - other[name].mean() for name in found]))

    held_out, muddled = evidence.held_out, evidence.held_out_shuffled
    return claim(
        "crossed_templates",
        "Where a template meets subjects of another relation, the units follow the template and not the subject.",
        "average precision for the template's relation minus that for the subject's, mean over units, then over relations",
        ahead(held_out.by_template, held_out.by_subject),
        [control(SHUFFLED, ahead(muddled.by_template, muddled.by_subject))],
        Rule(direction=">", threshold=0.0),
    )


def _neutral(evidence: Evidence) -> Finding:
    base = evidence.neutral["nothing"]
    rises = np.stack([evidence.neutral[name] - base for name in evidence.relations])
    random_rises = np.stack([losses - base for name, losses in evidence.neutral.items() if name.startswith("random ")])
    return claim(
        "neutral_text",
        "The model is intact without a relation's units: neutral text is predicted as well as before.",
        "rise of the loss on neutral passages, mean over sets, nats per token",
        _mean(evidence, rises.mean(axis=0)),
        [_drawn(RANDOM, random_rises, "shown, not to be beaten")],
        Rule(direction="<", threshold=MOST_NATS, beats=()),
    )


def _languages(evidence: Evidence) -> Finding:
    tested = [one for one in evidence.foreign if one.own is not None]
    found = UNKNOWN
    controls = [Control(name=name, estimate=float("nan"), n=0, note="nothing to test") for name in (RANDOM, OTHERS)]
    if tested:
        found = _mean(evidence, np.concatenate([1 - one.own for one in tested if one.own is not None]))
        draws = np.concatenate([1 - one.draws for one in tested if one.draws is not None], axis=1)
        others = np.concatenate([1 - one.others.mean(axis=0) for one in tested if one.others is not None])
        controls = [_drawn(RANDOM, draws), control(OTHERS, _mean(evidence, others))]
    return claim(
        "other_languages",
        "Units found in English are needed for the same relation in German, French and Spanish."
        + ("" if tested else " Not testable: the model answers too few facts in these languages."),
        "questions in other languages, right before, that are lost; share",
        found,
        controls,
        Rule(direction=">", threshold=MIN_DROP),
    )


def accuracy(evidence: Evidence, answers: Mapping[str, Answers]) -> float:
    """Share of all relations' questions answered right."""
    return float(np.concatenate([answers[name].right for name in evidence.relations]).mean())


def _key(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def _mean(evidence: Evidence, values: Floats | Sequence[float]) -> Interval:
    return bootstrap_mean(values, seed=evidence.seed)


def _drawn(name: str, values: Floats, note: str = "") -> Control:
    """``[draw, prompt]``: each draw's mean."""
    return drawn(name, values.mean(axis=1), values.shape[1], note)
