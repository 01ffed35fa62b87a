"""What the Relations page computes: the units that answer to each relation, and what is known without them.

The steps are those of the ``relation-neurons`` study, on the relations that are asked for: units are found on facts the model answers
right, and judged on facts with other subjects. The study adds the controls that take longer (other wordings, shuffled labels, the twin).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mechlab.analyses.facts import Fact, Facts, split
from mechlab.analyses.facts_answers import Questions, answered, known_facts, questions
from mechlab.analyses.responses import responses, streamed_to
from mechlab.analyses.units import Indices, Units, matched_random, mlp_kinds, strongest, switched_off, units_of
from mechlab.analyses.units_by_label import Found, find
from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.results.statistics import bootstrap_mean
from mechlab.results.study import Progress, named
from mechlab.studies.relation_neurons import NEGATIVES, PAPER_SHARE

Floats = NDArray[np.float64]
LISTED = 200
"""Units of a relation that are listed by name, at most."""


@dataclass(frozen=True, eq=False)
class RelationUnits:
    """Units found, and the facts to judge them by.

    Attributes:
        units: all that were searched. found: their precision, relation by relation.
        facts: wordings. judged: evaluation facts of the relations that the model knows.
        asked: relation -> (detection facts asked, answered right). left_out: relation -> why it is not used.
    """

    units: Units
    found: Found
    facts: Facts
    judged: Mapping[str, tuple[Fact, ...]]
    asked: Mapping[str, tuple[int, int]]
    left_out: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.judged)

    def default_k(self) -> int:
        """The paper's share of all units, 0.36 %."""
        return max(1, round(PAPER_SHARE * len(self.units)))

    def listed(self, relation: str, k: int) -> pd.DataFrame:
        """The best units: ``unit``, ``layer``, ``precision`` and ``separation``; at most ``LISTED``."""
        chosen = self.found.top(relation, k)[:LISTED]
        return pd.DataFrame(
            {
                "unit": [str(self.units.named(int(one))) for one in chosen],
                "layer": self.units.layers(chosen),
                "average precision": self.found.precision[relation][chosen],
                "separation (SD)": self.found.separation[relation][chosen],
            }
        )

    def by_layer(self, k: int) -> pd.DataFrame:
        """One row per unit of every relation: ``relation`` and ``layer``."""
        parts = [
            pd.DataFrame({"relation": name, "layer": self.units.layers(self.found.top(name, k))}) for name in self.names
        ]
        return pd.concat(parts, ignore_index=True)

    def shared(self, k: int) -> pd.DataFrame:
        """relation x relation: share of the row's units that are the column's too."""
        sets = {name: self.found.top(name, k) for name in self.names}
        return pd.DataFrame(
            [[len(np.intersect1d(sets[a], sets[b])) / k for b in self.names] for a in self.names],
            index=pd.Index(self.names, name="units of"),
            columns=pd.Index(self.names, name="units of too"),
        )


def find_units(
    lens: Lens, facts: Facts, n_detection: int, n_evaluation: int, seed: int, progress: Progress
) -> RelationUnits:
    """Reads every unit of the MLPs' maps on facts that the model answers right, and scores it for every relation.

    Raises:
        MechlabError: fewer than two relations of which the model answers five facts right.
    """
    sides = split(facts, n_detection, n_evaluation, seed=seed)
    known, asked, left_out = known_facts(lens, facts, sides, named(progress, "which facts it knows"))
    if len(known) < 2:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise MechlabError(
            f"{lens.model.name} knows enough of {len(known)} of these relations, and two are needed ({why}): choose others, or "
            "allow more facts."
        )
    units = units_of(lens, mlp_kinds(lens))
    texts = [facts.templates[name][0].replace("{subject}", fact.subject) for name in known for fact in known[name]]
    labels = [name for name in known for _ in known[name]]
    with streamed_to() as folder:
        read = responses(lens, texts, units, folder=folder, progress=named(progress, "reading units"))
        progress("scoring units", 0, 1)
        found = find(read, labels, _best, negatives=NEGATIVES, seed=seed)
    return RelationUnits(units, found, facts, {name: sides.evaluation[name] for name in known}, asked, left_out)


def _best(precision: Floats, separation: Floats) -> Indices:
    return strongest(precision, max(1, round(PAPER_SHARE * len(precision))), separation)


def without_units(
    lens: Lens, of: RelationUnits, relation: str, k: int, draws: int, seed: int, progress: Progress
) -> pd.DataFrame:
    """Accuracy on every relation's evaluation facts: with all units, without the ``k`` of one relation, without as many random ones.

    Random units lie in the same sites (so the same layers), ``draws`` sets of them; per fact their mean counts. Columns ``relation``,
    ``n``, and ``before``, ``after``, ``random``, ``lost``, each with ``_low`` and ``_high`` (bootstrap over facts).

    Raises:
        MechlabError: more units than there are, or too few left for the random sets.
    """
    chosen = of.found.top(relation, k)
    sets = [np.empty(0, dtype=np.int64), chosen, *matched_random(of.units, chosen, draws=draws, seed=seed)]
    rows: list[dict[str, object]] = []
    for place, name in enumerate(of.names):
        asked = questions(lens, lambda fact: of.facts.templates[fact.relation][0], of.judged[name])
        step = _counted(progress, f"{name} without units of {relation}", place * len(sets), len(of.names) * len(sets))
        before, after, *drawn = _right(lens, of.units, asked, sets, step)
        measured = {"before": before, "after": after, "random": np.mean(drawn, axis=0), "lost": before - after}
        rows.append({"relation": name, "n": len(asked), **_intervals(measured, seed)})
    progress("done", 1, 1)
    return pd.DataFrame(rows)


def _right(lens: Lens, units: Units, asked: Questions, sets: Sequence[Indices], progress: Progress) -> list[Floats]:
    found: list[Floats] = []
    for done, chosen in enumerate(sets):
        progress("", done, len(sets))
        found.append(answered(lens, asked, switched_off(units, chosen)).right)
    return found


def _intervals(measured: Mapping[str, Floats], seed: int) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, values in measured.items():
        found = bootstrap_mean(values, seed=seed)
        row |= {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
    return row


def _counted(progress: Progress, text: str, before: int, in_all: int) -> Progress:
    def step(label: str, done: int, total: int) -> None:  # noqa: ARG001
        progress(text, before + done, in_all)

    return step
