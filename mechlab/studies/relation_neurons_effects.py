"""What happens without units: the relation-neurons study's deactivations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mechlab.analyses.facts import Fact, Facts, Foreign, foreign_facts
from mechlab.analyses.facts_answers import Answers, Questions, answered, continuation_losses, questions
from mechlab.analyses.units import Indices, Units, matched_random, switched_off, uniform_random
from mechlab.analyses.units_by_label import Found
from mechlab.lens.lens import Lens
from mechlab.results.study import Progress, named
from mechlab.studies.relation_neurons_evidence import Evidence, Foreigners, HeldOut
from mechlab.texts import passages

Floats = NDArray[np.float64]
MIN_FOREIGN = 5
"""Facts that the model must answer right in a language, or transfer to it cannot be tested."""
MOST_FOREIGN = 8
UNIFORM_DRAWS = 3


@dataclass(frozen=True, eq=False)
class Bench:
    """All that deactivations need. ``facts``, ``judged``: wordings and evaluation facts by relation; the rest as in ``Evidence``."""

    lens: Lens
    twin: Lens
    facts: Facts
    judged: Mapping[str, tuple[Fact, ...]]
    units: Units
    k: int
    found: Found
    shuffled: Found
    twin_found: Found
    settings: dict[str, object]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.judged)

    @property
    def seed(self) -> int:
        return int(str(self.settings["seed"]))

    @cached_property
    def _asked(self) -> dict[tuple[str, int], Questions]:
        def wording(number: int) -> Callable[[Fact], str]:
            return lambda fact: self.facts.templates[fact.relation][number]

        return {
            (name, number): questions(self.lens, wording(number), rows)
            for name, rows in self.judged.items()
            for number in (0, 1)
        }

    def ask(self, name: str, wording: int) -> Questions:
        """A relation's evaluation questions in one wording."""
        return self._asked[name, wording]

    def without(self, name: str, chosen: Indices, wording: int = 0, *, twin: bool = False) -> Answers:
        """Answers to a relation's evaluation questions with some units switched off."""
        lens = self.twin if twin else self.lens
        return answered(lens, self.ask(name, wording), switched_off(self.units, chosen))

    @cached_property
    def random_sets(self) -> dict[str, list[Indices]]:
        """Relation -> random sets of the same sites as its own."""
        draws = int(str(self.settings["draws"]))
        return {
            name: matched_random(self.units, self.found.sets[name], draws=draws, seed=self.seed + place)
            for place, name in enumerate(self.names)
        }


def evidence_of_effects(
    bench: Bench,
    detected: Mapping[str, tuple[int, int]],
    left_out: Mapping[str, str],
    held_out: tuple[HeldOut, HeldOut],
    seen: set[str],
    progress: Progress,
) -> Evidence:
    """Every deactivation, and all that was measured before.

    Args:
        seen: subjects that units were found with.
    """
    names, none = bench.names, np.empty(0, dtype=np.int64)
    sets, other = bench.found.sets, bench.shuffled.sets

    def each(label: str, of: Callable[[str], Answers]) -> dict[str, Answers]:
        step = named(progress, label)
        found: dict[str, Answers] = {}
        for done, name in enumerate(names, 1):
            found[name] = of(name)
            step("", done, len(names))
        return found

    base = each("answers, unedited", lambda name: bench.without(name, none))
    base_other = each("answers, other wording", lambda name: bench.without(name, none, 1))
    without: dict[tuple[str, str], Answers] = {}
    for source in names:
        row = each(f"without the units of {source}", lambda name, s=source: bench.without(name, sets[s]))
        without |= {(source, name): answers for name, answers in row.items()}
    sweep = _sweep(bench, without, progress)
    return Evidence(
        settings=bench.settings,
        units=bench.units,
        k=bench.k,
        relations=names,
        left_out=left_out,
        detected=detected,
        found=bench.found,
        shuffled=bench.shuffled,
        twin=bench.twin_found,
        held_out=held_out[0],
        held_out_shuffled=held_out[1],
        base=base,
        base_other=base_other,
        without=without,
        without_other=each("own units, other wording", lambda name: bench.without(name, sets[name], 1)),
        draws=_draws(bench, 0, named(progress, "random units")),
        draws_other=_draws(bench, 1, named(progress, "random units, other wording")),
        uniform=_uniform(bench, named(progress, "random units of any layer")),
        shuffled_own=each("units of shuffled labels", lambda name: bench.without(name, other[name])),
        shuffled_other=each(
            "units of shuffled labels, other wording", lambda name: bench.without(name, other[name], 1)
        ),
        sweep=sweep,
        cumulative=_cumulative(bench, base, sweep, named(progress, "differences between sets")),
        twin_base=each("answers (twin)", lambda name: bench.without(name, none, twin=True)),
        twin_own=each("own units (twin)", lambda name: bench.without(name, bench.twin_found.sets[name], twin=True)),
        neutral=_neutral(bench, named(progress, "neutral text")),
        foreign=tuple(_foreign(bench, seen, named(progress, "other languages"))),
    )


def _draws(bench: Bench, wording: int, progress: Progress) -> dict[str, list[Answers]]:
    total, found = sum(map(len, bench.random_sets.values())), dict[str, list[Answers]]()
    for name, draws in bench.random_sets.items():
        progress("", sum(map(len, found.values())), total)
        found[name] = [bench.without(name, drawn, wording) for drawn in draws]
    return found


def _uniform(bench: Bench, progress: Progress) -> dict[str, list[Answers]]:
    found: dict[str, list[Answers]] = {}
    for done, name in enumerate(bench.names):
        progress("", done, len(bench.names))
        draws = uniform_random(bench.units, bench.found.sets[name], draws=UNIFORM_DRAWS, seed=bench.seed + done)
        found[name] = [bench.without(name, drawn) for drawn in draws]
    return found


def _sweep(
    bench: Bench, without: Mapping[tuple[str, str], Answers], progress: Progress
) -> dict[tuple[str, int], Answers]:
    """Own sets of other sizes; that of size k is known."""
    shares: Sequence[float] = bench.settings["sweep"]  # pyright: ignore[reportAssignmentType]
    sizes = sorted({max(1, min(len(bench.units), round(share * bench.k))) for share in shares} - {bench.k})
    found = {(name, bench.k): without[name, name] for name in bench.names}
    for size in sizes:
        step = named(progress, f"own top {size} units")
        for done, name in enumerate(bench.names, 1):
            found[name, size] = bench.without(name, bench.found.top(name, size))
            step("", done, len(bench.names))
    return found


def _cumulative(
    bench: Bench, base: Mapping[str, Answers], sweep: Mapping[tuple[str, int], Answers], progress: Progress
) -> dict[tuple[str, int, int], tuple[int, int]]:
    """Prompts that survive the top k1 and fail without the top k2: how many fail without ranks k1+1..k2 alone."""
    sizes = sorted({size for _, size in sweep})
    found: dict[tuple[str, int, int], tuple[int, int]] = {}
    pairs = [(name, small, large) for name in bench.names for small, large in pairwise(sizes)]
    for done, (name, small, large) in enumerate(pairs):
        progress("", done, len(pairs))
        survived = (base[name].right > 0) & (sweep[name, small].right > 0)
        rows = np.flatnonzero(survived & (sweep[name, large].right == 0)).tolist()
        affected = 0
        if rows:
            between = bench.found.top(name, large)[small:]
            again = answered(bench.lens, bench.ask(name, 0).select(rows), switched_off(bench.units, between))
            affected = int((again.right == 0).sum())
        found[name, small, large] = (len(rows), affected)
    return found


def _neutral(bench: Bench, progress: Progress) -> dict[str, Floats]:
    """Loss on passages that have nothing to do with the facts: unedited, without each set, without random ones."""
    count, source = int(str(bench.settings["n_texts"])), str(bench.settings["texts"])
    texts = bench.lens.tokens(passages(source, count=count, seed=bench.seed, part="held-out", characters=160))
    starts = [1] * len(texts)
    sets = {"nothing": np.empty(0, dtype=np.int64)} | dict(bench.found.sets)
    # one draw each for as many relations as there are draws asked for: the sets are alike in size and layers
    drawn = [draws[number % len(draws)] for number, draws in enumerate(bench.random_sets.values())]
    sets |= {f"random {number}": one for number, one in enumerate(drawn)}
    found: dict[str, Floats] = {}
    for done, (name, chosen) in enumerate(sets.items()):
        progress("", done, len(sets))
        found[name] = continuation_losses(bench.lens, texts, starts, switched_off(bench.units, chosen))
    return found


def _foreign(bench: Bench, seen: set[str], progress: Progress) -> list[Foreigners]:
    """The bundled facts in other languages, where the model answers enough of them."""
    if not bench.settings["multilingual"] or bench.settings["facts"] != "bundled":
        return []
    asked = [
        (language, relation, [one for one in rows if one.fact.relation == relation])
        for language, rows in foreign_facts(bench.names, seen).items()
        for relation in bench.names
    ]
    asked = [(language, relation, rows) for language, relation, rows in asked if rows]
    found: list[Foreigners] = []
    for done, (language, relation, rows) in enumerate(asked):
        progress(f"{language}, {relation}", done, len(asked))
        found.append(_of_language(bench, language, relation, rows))
    return found


def _of_language(bench: Bench, language: str, relation: str, rows: list[Foreign]) -> Foreigners:
    asked = questions(bench.lens, lambda _: rows[0].template, [one.fact for one in rows])
    right = np.flatnonzero(answered(bench.lens, asked).right)
    if len(right) < MIN_FOREIGN:
        return Foreigners(language, relation, len(rows), len(right))
    tested = asked.select(right[:MOST_FOREIGN].tolist())

    def still_right(chosen: Indices) -> Floats:
        return answered(bench.lens, tested, switched_off(bench.units, chosen)).right

    others = [bench.found.sets[name] for name in bench.names if name != relation]
    return Foreigners(
        language,
        relation,
        len(rows),
        len(right),
        own=still_right(bench.found.sets[relation]),
        others=np.stack([still_right(chosen) for chosen in others]),
        draws=np.stack([still_right(chosen) for chosen in bench.random_sets[relation]]),
    )
