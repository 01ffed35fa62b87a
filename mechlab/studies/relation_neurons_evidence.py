"""What the relation-neurons study measured, before it is judged."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mechlab.analyses.facts_answers import Answers
from mechlab.analyses.units import Units
from mechlab.analyses.units_by_label import Found

Floats = NDArray[np.float64]
OF_TEMPLATE_KEPT = 0.5
"""A unit that keeps less than this share of its average precision (above chance) under another wording is a template unit."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Average precision of each relation's own set on facts with other subjects, ``[k]`` per relation.

    Attributes:
        same, other: in the wording that units were found with, and in the other one.
        chance: of both, a unit that knows nothing.
        by_template, by_subject: on prompts that word one relation's subjects by another relation's template: how well units tell
            the template's relation, and the subject's.
        crossed_chance: of both.
    """

    same: Mapping[str, Floats]
    other: Mapping[str, Floats]
    chance: Mapping[str, float]
    by_template: Mapping[str, Floats]
    by_subject: Mapping[str, Floats]
    crossed_chance: Mapping[str, float]

    def template_units(self, relation: str) -> NDArray[np.bool_]:
        """``[k]``: which units lose more than half of their precision above chance under the other wording."""
        same, other = (part[relation] - self.chance[relation] for part in (self.same, self.other))
        return other < OF_TEMPLATE_KEPT * np.maximum(same, 0)


@dataclass(frozen=True, eq=False)
class Foreigners:
    """Questions in one language about one relation that the model answers right, and what happens to them.

    Attributes:
        language, relation: which.
        asked: facts asked.
        right: of them, answered right.
        own: ``[right]`` still right without the relation's units (found in English); None where there are too few to test.
        others: ``[set, right]`` without each other relation's units.
        draws: ``[draw, right]`` without random units of the same layers.
    """

    language: str
    relation: str
    asked: int
    right: int
    own: Floats | None = None
    others: Floats | None = None
    draws: Floats | None = None


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a claim is judged by. Answers are to the evaluation questions of one relation; a key (set, relation) reads "the
    answers of the second without the units of the first".

    Attributes:
        settings: of the study.
        units: all that were looked at.
        k: units of a set.
        relations: those tested, in order.
        left_out: relation -> why not.
        detected: relation -> facts asked and facts answered right on the detection side.
        found, shuffled, twin: units found by the labels, by shuffled labels, and in the random-weight twin.
        held_out, held_out_shuffled: precision of the sets on other subjects, wordings and templates.
        base, base_other: unedited, in the two wordings.
        without: (set, relation) -> first wording.
        without_other: own set, second wording.
        draws, draws_other: relation -> ``[draw]`` answers without random units of the same layers, in the two wordings.
        uniform: relation -> ``[draw]`` the same with units drawn over all layers alike.
        shuffled_own, shuffled_other: without the set found by shuffled labels, in the two wordings.
        sweep: (relation, k) -> answers without the own top k.
        cumulative: (relation, k1, k2) -> (prompts lost between k1 and k2, of them also lost without ranks k1+1..k2 alone).
        twin_base, twin_own: of the random-weight twin.
        neutral: name of a set (or "nothing") -> ``[text]`` loss in nats per token; random sets are "random 0", ....
        foreign: by language and relation.
    """

    settings: dict[str, object]
    units: Units
    k: int
    relations: tuple[str, ...]
    left_out: Mapping[str, str]
    detected: Mapping[str, tuple[int, int]]
    found: Found
    shuffled: Found
    twin: Found
    held_out: HeldOut
    held_out_shuffled: HeldOut
    base: Mapping[str, Answers]
    base_other: Mapping[str, Answers]
    without: Mapping[tuple[str, str], Answers]
    without_other: Mapping[str, Answers]
    draws: Mapping[str, list[Answers]]
    draws_other: Mapping[str, list[Answers]]
    uniform: Mapping[str, list[Answers]]
    shuffled_own: Mapping[str, Answers]
    shuffled_other: Mapping[str, Answers]
    sweep: Mapping[tuple[str, int], Answers]
    cumulative: Mapping[tuple[str, int, int], tuple[int, int]]
    twin_base: Mapping[str, Answers]
    twin_own: Mapping[str, Answers]
    neutral: Mapping[str, Floats]
    foreign: tuple[Foreigners, ...]

    @property
    def seed(self) -> int:
        return int(str(self.settings["seed"]))

    def lost(self, answers: Mapping[str, Answers], base: Mapping[str, Answers] | None = None) -> Floats:
        """``[prompt]`` of all relations: right before minus right after."""
        before = base or self.base
        return np.concatenate([before[name].right - answers[name].right for name in self.relations])

    def lost_to_others(self, relation: str) -> Floats:
        """``[prompt]`` of one relation: right before minus right after, mean over the other relations' sets."""
        others = [self.without[other, relation].right for other in self.relations if other != relation]
        return self.base[relation].right - np.mean(others, axis=0)

    def lost_elsewhere(self, source: str) -> Floats:
        """``[prompt]`` of all other relations: right before minus right after one relation's set is switched off."""
        others = [name for name in self.relations if name != source]
        return np.concatenate([self.base[name].right - self.without[source, name].right for name in others])

    def lost_to_draws(self, draws: Mapping[str, list[Answers]], base: Mapping[str, Answers]) -> Floats:
        """``[draw, prompt]`` of all relations."""
        n_draws = len(next(iter(draws.values())))
        return np.stack(
            [
                np.concatenate([base[name].right - draws[name][number].right for name in self.relations])
                for number in range(n_draws)
            ]
        )
