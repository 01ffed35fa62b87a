"""The relation-neurons study: units that respond to one relation, and what the model forgets without them.

What is claimed is written in ``relation_neurons_claims`` before anything runs. Here the numbers are measured:

1. Facts are split by subject. Detection facts in their first wording, those the model answers right, are read: every unit's mean over
   the tokens.
2. Each unit's average precision for "is of relation r", with four prompts of other relations per positive; the top k are the set of r. Many
   units tie at 1, since prompts of a relation share a wording: of these, those that lie furthest above the other relations come first.
   The same with shuffled labels, and in the random-weight twin.
3. On evaluation facts: the sets' precision with other subjects, another wording, and templates crossed with other relations' subjects.
4. On evaluation facts: answers without each set (every relation x every set), without random sets, without smaller and larger sets, in the
   second wording, in other languages; loss on neutral text.

Liu et al., arXiv 2502.17355; the wordings, crossed templates, shuffled labels and the twin are controls that the paper lacks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from mechlab.analyses.average_precision import prevalence
from mechlab.analyses.circumstances import study_report
from mechlab.analyses.facts import Fact, Facts, load_facts, split
from mechlab.analyses.facts_answers import MIN_RIGHT, known_facts
from mechlab.analyses.responses import Reduction, Responses, responses, streamed_to
from mechlab.analyses.units import Indices, Units, mlp_kinds, strongest, units_of
from mechlab.analyses.units_by_label import Found, find, labellings, shuffled
from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.lens.tokens import Tokens
from mechlab.models.twin import random_twin
from mechlab.results.report import Report
from mechlab.results.study import Progress, Study, named
from mechlab.studies import relation_neurons_claims, relation_neurons_tables
from mechlab.studies.relation_neurons_effects import Bench, evidence_of_effects
from mechlab.studies.relation_neurons_evidence import Evidence, HeldOut

Floats = NDArray[np.float64]
PAPER_SHARE = 3000 / 835_584
"""Of all units, in the paper's set of a relation."""
NEGATIVES = 4


class Settings(BaseModel):
    """Settings of the relation-neurons study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: str = Field("bundled", description="bundled, or a CSV file with columns relation, subject, object")
    relations: tuple[str, ...] | None = Field(
        (
            "country_capital",
            "country_language",
            "country_continent",
            "city_country",
            "past_tense",
            "antonym",
            "plural",
            "element_symbol",
        ),
        description="relations to test; none for all of the file",
    )
    sites: tuple[str, ...] | None = Field(None, description="kinds of units; none for the outputs of up, gate and down")
    reduction: Reduction = Field("mean", description="of a unit's values over a prompt's tokens")
    k: int | None = Field(None, ge=1, description="units of a set; none for the paper's share, 0.36 %")
    sweep: tuple[float, ...] = Field((0.0625, 0.25, 4.0, 16.0), description="other sizes of a set, in k")
    n_detection: int = Field(30, ge=MIN_RIGHT, description="facts of a relation to find units with, at most")
    n_evaluation: int = Field(12, ge=2, description="facts of a relation to judge units by, at most")
    draws: int = Field(10, ge=2, description="random sets per relation")
    texts: str = Field("bundled", description="source of neutral text")
    n_texts: int = Field(6, ge=2, description="neutral passages")
    multilingual: bool = Field(True, description="whether bundled facts are asked in other languages too")
    seed: int = Field(0, description="of the split, draws, intervals and the twin")


def run(lens: Lens, settings: Settings, progress: Progress) -> Report:
    """Runs the study on one model. See the module's text for the steps.

    Raises:
        MechlabError: facts that cannot be used, or fewer than two relations of which the model answers five facts right.
        SiteError: a kind of unit the model lacks.
    """
    started = datetime.now(UTC)
    evidence, prompts = gather(lens, settings, progress)
    tables, figures = relation_neurons_tables.tables_and_figures(evidence)
    return study_report(
        STUDY,
        lens,
        started,
        prompts,
        seed=settings.seed,
        config=settings.model_dump(mode="json"),
        summary=relation_neurons_tables.summary(evidence),
        findings=relation_neurons_claims.findings(evidence),
        tables=tables,
        figures=figures,
    )


def gather(lens: Lens, settings: Settings, progress: Progress) -> tuple[Evidence, list[Tokens]]:
    """Every number of the study, and the prompts of detection and evaluation; no judgement yet."""
    units = units_of(lens, settings.sites or mlp_kinds(lens))
    k = settings.k or max(1, round(PAPER_SHARE * len(units)))
    facts = load_facts(settings.facts, _named_relations(settings))
    sides = split(facts, settings.n_detection, settings.n_evaluation, seed=settings.seed)
    known, detected, left_out = known_facts(lens, facts, sides, named(progress, "which facts it knows"))
    if len(known) < 2:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise MechlabError(
            f"{lens.model.name} knows enough of {len(known)} relations, and two are needed ({reasons}): "
            "give facts it answers right, or use a larger model."
        )
    names = tuple(known)
    with streamed_to() as folder:
        prompts = lens.tokens([text for name in names for text in _texts(facts, known[name], 0)])
        labels = [name for name in names for _ in known[name]]
        search = Search(units, k, settings)
        read = _read(lens, prompts, search, folder / "model", named(progress, "reading units"))
        found = search.found(read, labels)
        muddled = search.found(read, shuffled(labels, settings.seed))
        twin = Lens(random_twin(lens.model, settings.seed), prepend_bos=lens.prepend_bos)
        read_by_twin = _read(twin, prompts, search, folder / "twin", named(progress, "reading units (twin)"))
        twin_found = search.found(read_by_twin, labels)
        judged = {name: sides.evaluation[name] for name in names}
        held_out = _held_out(lens, facts, judged, search, (found, muddled), folder, progress)
    bench = Bench(lens, twin, facts, judged, units, k, found, muddled, twin_found, settings.model_dump(mode="json"))
    seen = {fact.subject for rows in known.values() for fact in rows}
    evidence = evidence_of_effects(bench, detected, left_out, held_out, seen, progress)
    return evidence, [prompts, *(bench.ask(name, 0).bare for name in names)]


@dataclass(frozen=True, eq=False)
class Search:
    """How units are found: from labelled responses to the top ``k`` of every label."""

    units: Units
    k: int
    settings: Settings

    def found(self, read: Responses, labels: list[str]) -> Found:
        def choose(precision: Floats, separation: Floats) -> Indices:
            return strongest(precision, self.k, separation)

        return find(read, labels, choose, negatives=NEGATIVES, seed=self.settings.seed)


def _named_relations(settings: Settings) -> tuple[str, ...] | None:
    """The default names are those of the bundled facts: a file of one's own is taken whole unless relations are named."""
    default = Settings.model_fields["relations"].default
    return None if settings.facts != "bundled" and settings.relations == default else settings.relations


def _texts(facts: Facts, rows: tuple[Fact, ...], wording: int) -> list[str]:
    return [facts.templates[fact.relation][wording].replace("{subject}", fact.subject) for fact in rows]


def _read(lens: Lens, prompts: Tokens, search: Search, folder: Path, progress: Progress) -> Responses:
    folder.mkdir()
    return responses(lens, prompts, search.units, search.settings.reduction, folder=folder, progress=progress)


def _held_out(
    lens: Lens,
    facts: Facts,
    judged: Mapping[str, tuple[Fact, ...]],
    search: Search,
    both: tuple[Found, Found],
    folder: Path,
    progress: Progress,
) -> tuple[HeldOut, HeldOut]:
    """Precision of the sets found by the labels, and of those found by shuffled ones, on evaluation facts."""
    names = tuple(judged)
    rows = [fact for name in names for fact in judged[name]]
    generator = np.random.default_rng([search.settings.seed, 3])
    crossed = [str(generator.choice([other for other in names if other != fact.relation])) for fact in rows]
    worded = {
        "same": [facts.templates[fact.relation][0].replace("{subject}", fact.subject) for fact in rows],
        "other": [facts.templates[fact.relation][1].replace("{subject}", fact.subject) for fact in rows],
        "crossed": [
            facts.templates[to][0].replace("{subject}", fact.subject) for fact, to in zip(rows, crossed, strict=True)
        ],
    }
    parts: dict[str, Responses] = {}
    for kind, texts in worded.items():
        label = f"reading held-out prompts, {kind}"
        parts[kind] = _read(lens, lens.tokens(texts), search, folder / kind, named(progress, label))
    own = [fact.relation for fact in rows]
    return _precisions(parts, own, crossed, both[0]), _precisions(parts, own, crossed, both[1])


def _precisions(parts: Mapping[str, Responses], own: list[str], crossed: list[str], found: Found) -> HeldOut:
    by_subject, by_template = labellings(own), labellings(crossed)

    def of(kind: str, labels: list[str]) -> Callable[[str], Floats]:
        def of_relation(name: str) -> Floats:
            positive = np.array([label == name for label in labels])
            few = Responses(
                Units(parts[kind].units.sites[:1], (len(found.sets[name]),)), (parts[kind].of(found.sets[name]),)
            )
            return few.average_precision(positive)[0]

        return of_relation

    names = tuple(name for name in by_subject.names if name in by_template.names)
    chance = dict(zip(by_subject.names, prevalence(by_subject.positive).tolist(), strict=True))
    crossed_chance = dict(zip(by_template.names, prevalence(by_template.positive).tolist(), strict=True))
    return HeldOut(
        same={name: of("same", own)(name) for name in by_subject.names},
        other={name: of("other", own)(name) for name in by_subject.names},
        chance=chance,
        by_template={name: of("crossed", crossed)(name) for name in names},
        by_subject={name: of("crossed", own)(name) for name in names},
        crossed_chance={name: crossed_chance[name] for name in names},
    )


STUDY = Study(
    name="relation-neurons",
    title="Are there units for single relations?",
    paper="Liu et al. 2025, On Relation-Specific Neurons in Large Language Models, arXiv 2502.17355",
    line="Units whose response tells one relation from others, and which facts are lost without them: own, others, other wording.",
    settings=Settings,
    run=run,
)
