"""The relation-neurons study: planted units come first, template units are flagged, bad input is told, a random model supports nothing."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mechlab.analyses.facts import load_facts, split
from mechlab.analyses.facts_answers import answered, questions
from mechlab.errors import MechlabError, SiteError
from mechlab.lens.lens import Lens
from mechlab.models import load, tiny
from mechlab.models.planted_relations import RELATIONS, PlantedRelations, planted_relations
from mechlab.results.study import silent
from mechlab.studies import relation_neurons_claims, relation_neurons_tables
from mechlab.studies.relation_neurons import STUDY, Settings, gather
from mechlab.studies.relation_neurons_evidence import Evidence, Foreigners

K = 17


def write(path: Path, planted: PlantedRelations, rows: tuple[tuple[str, str, str], ...] | None = None) -> str:
    with path.open("w", newline="", encoding="utf-8") as lines:
        table = csv.writer(lines)
        table.writerow(["relation", "subject", "object", "template", "other_template"])
        table.writerows((*row, *planted.templates[row[0]]) for row in (planted.facts if rows is None else rows))
    return str(path)


@pytest.fixture(scope="module")
def planted() -> PlantedRelations:
    return planted_relations()


@pytest.fixture(scope="module")
def settings(planted: PlantedRelations, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    path = write(tmp_path_factory.mktemp("facts") / "facts.csv", planted)
    return Settings(facts=path, k=K, n_detection=8, n_evaluation=4, draws=4, sweep=(0.25, 2.0), n_texts=2)


@pytest.fixture(scope="module")
def evidence(planted: PlantedRelations, settings: Settings) -> Evidence:
    return gather(Lens(planted.model), settings, silent)[0]


def test_the_planted_model_knows_its_facts(planted: PlantedRelations, settings: Settings) -> None:
    lens, facts = Lens(planted.model), load_facts(settings.facts)
    for wording in (0, 1):
        for rows in facts.by_relation.values():
            asked = questions(lens, lambda fact, w=wording: facts.templates[fact.relation][w], rows)
            assert answered(lens, asked).right.all()


@pytest.mark.parametrize("relation", RELATIONS)
def test_planted_units_come_first_with_precision_one(
    planted: PlantedRelations, evidence: Evidence, relation: str
) -> None:
    names = [str(evidence.units.named(int(unit))) for unit in evidence.found.sets[relation]]
    truth = planted.relation_units[relation] | planted.template_units[relation]
    assert set(names) == truth and len(names) == K
    precision = evidence.found.precision[relation]
    assert np.flatnonzero(precision == 1).tolist() == sorted(evidence.found.sets[relation].tolist())
    assert evidence.held_out.same[relation].tolist() == [1] * K


@pytest.mark.parametrize("relation", RELATIONS)
def test_template_units_are_flagged_and_no_others(planted: PlantedRelations, evidence: Evidence, relation: str) -> None:
    flags = evidence.held_out.template_units(relation)
    names = np.array([str(evidence.units.named(int(unit))) for unit in evidence.found.sets[relation]])
    assert set(names[flags]) == planted.template_units[relation]
    by_name = dict(zip(names.tolist(), evidence.held_out.other[relation].tolist(), strict=True))
    for name in planted.relation_units[relation]:
        assert by_name[name] == 1
    for name in planted.template_units[relation]:
        assert by_name[name] == pytest.approx(evidence.held_out.chance[relation])
    # and crossed with other relations' subjects, all of them follow the template
    assert evidence.held_out.by_template[relation].tolist() == [1] * K


def test_planted_sets_break_their_relation_and_nothing_else(evidence: Evidence) -> None:
    for source in RELATIONS:
        for relation in RELATIONS:
            assert evidence.without[source, relation].right.mean() == float(source != relation)
        assert evidence.without_other[source].right.sum() == 0
        assert all(one.right.all() for one in evidence.draws[source] + evidence.draws_other[source])
    found = {finding.key: finding for finding in relation_neurons_claims.findings(evidence)}
    assert {found[key].verdict for key in ("own_relation", "others_spared", "other_wording")} == {"supported"}
    for place, name in enumerate(
        RELATIONS, 1
    ):  # 17 units of shuffled labels are some of the 248 that matter, by chance: then the claim may not stand
        harmless = evidence.shuffled_own[name].right.all()
        assert (found[f"own_{place}_{name}"].verdict == "supported") == harmless
    assert found["own_relation"].estimate == 1 and found["others_spared"].estimate == 0
    assert found["template_units"].estimate == pytest.approx(2 / K)
    assert found["other_languages"].verdict == "inconclusive"
    drops = relation_neurons_tables.drop_grid(evidence).set_index(["units of", "facts of"])["drop"]
    assert drops["p", "p"] == 1 and drops["p", "q"] == 0


def test_sizes_and_cumulativity(evidence: Evidence) -> None:
    sizes = sorted({size for _, size in evidence.sweep})
    assert sizes == [4, K, 2 * K]
    for small, large in ((4, K), (K, 2 * K)):
        for name in RELATIONS:
            survived = (evidence.sweep[name, small].right > 0) & (evidence.sweep[name, large].right == 0)
            assert evidence.cumulative[name, small, large][0] == survived.sum()


def test_a_set_that_does_no_more_than_random_units_is_not_supported(evidence: Evidence) -> None:
    draws = {name: [evidence.without[name, name]] * 3 for name in RELATIONS}
    found = {f.key: f for f in relation_neurons_claims.findings(dataclasses.replace(evidence, draws=draws))}
    assert found["own_relation"].verdict != "supported" and found["own_1_p"].verdict != "supported"


def test_a_set_that_breaks_every_relation_is_no_set_of_one(evidence: Evidence) -> None:
    without = dict(evidence.without) | {("p", name): evidence.without[name, name] for name in RELATIONS}
    found = {f.key: f for f in relation_neurons_claims.findings(dataclasses.replace(evidence, without=without))}
    assert found["own_1_p"].verdict == "not supported" and "other relations' facts" in found["own_1_p"].reason


@pytest.mark.parametrize("seed", [0, 1])
def test_random_weights_support_no_set(settings: Settings, evidence: Evidence, seed: int) -> None:
    """The twin never answers, so without its units nothing is lost; and by itself it is refused."""
    assert all(one.right.sum() == 0 for one in evidence.twin_base.values())
    assert not evidence.lost(evidence.twin_own, evidence.twin_base).any()
    swapped = dataclasses.replace(
        evidence,
        base=evidence.twin_base,
        without={key: evidence.twin_own[key[1]] for key in evidence.without},
        draws={name: [evidence.twin_base[name]] * 2 for name in RELATIONS},
        shuffled_own=evidence.twin_base,
    )
    verdicts = {f.key: f.verdict for f in relation_neurons_claims.findings(swapped) if f.key.startswith("own_")}
    assert "supported" not in verdicts.values() and len(verdicts) == 4
    with pytest.raises(MechlabError, match=r"knows enough of 0 relations, and two are needed .*fewer than 5"):
        gather(Lens(tiny("llama", seed)), settings, silent)


def test_too_few_right_leave_a_relation_out_and_the_rest_goes_on(
    planted: PlantedRelations, settings: Settings, tmp_path: Path
) -> None:
    wrong = tuple((r, s, "objectpa" if r == "r" else o) for r, s, o in planted.facts)
    path = write(tmp_path / "wrong.csv", planted, wrong)
    report = STUDY.run(Lens(planted.model), settings.model_copy(update={"facts": path}), silent)
    assert "r (0 of 8 facts answered right, fewer than 5)" in report.summary_text
    facts = next(table for table in report.tables if table.key == "facts").frame
    assert facts.set_index("relation")["left out because"]["r"].startswith("0 of 8")
    assert {finding.key for finding in report.findings} >= {"own_1_p", "own_2_q"}


def test_other_bad_input(planted: PlantedRelations, settings: Settings, tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", planted, tuple(row for row in planted.facts if row[0] == "p"))
    with pytest.raises(MechlabError, match="give one relation"):
        gather(Lens(planted.model), settings.model_copy(update={"facts": one}), silent)
    with pytest.raises(SiteError, match="absent"):
        gather(Lens(tiny("gpt2")), settings.model_copy(update={"sites": ("mlp_pre_linear",)}), silent)
    with pytest.raises(MechlabError, match="k=400 units cannot be chosen"):
        gather(Lens(planted.model), settings.model_copy(update={"k": 400, "sites": ("mlp_post",)}), silent)


def test_other_languages_by_hand(evidence: Evidence) -> None:
    """Six questions right in German, four lost without the own units; French cannot be tested."""
    own, none = np.array([0.0] * 4 + [1.0] * 2), np.ones((3, 6))
    german = Foreigners("de", "p", 20, 6, own=own, others=none, draws=none)
    french = Foreigners("fr", "p", 20, 2)
    for foreign in ((german, french), (french,)):
        changed = dataclasses.replace(evidence, foreign=foreign)
        tables, _ = relation_neurons_tables.tables_and_figures(changed)
        frame = next(table for table in tables if table.key == "languages").frame
        assert frame["state"].tolist()[-1] == "not testable"
        found = {f.key: f for f in relation_neurons_claims.findings(changed)}["other_languages"]
        assert found.verdict == ("supported" if len(foreign) == 2 else "inconclusive")
        assert np.isnan(found.estimate) if len(foreign) == 1 else found.estimate == pytest.approx(4 / 6)


def test_the_report_is_whole(planted: PlantedRelations, settings: Settings) -> None:
    report = STUDY.run(Lens(planted.model), settings, silent)
    assert {"paper", "drops", "sweep", "wordings", "units", "overlap", "layers", "cumulativity", "neutral"} <= {
        table.key for table in report.tables
    }
    assert report.config["k"] == K


@pytest.mark.default_model
def test_detection_facts_of_the_default_model_are_known() -> None:
    """Enough of each default relation for the study to run, in a few of its facts."""
    lens, facts = Lens(load()), load_facts(relations=["country_capital", "plural"])
    sides = split(facts, 14, 4)
    for name in facts.by_relation:
        asked = questions(lens, lambda fact: facts.templates[fact.relation][0], sides.detection[name])
        assert answered(lens, asked).right.sum() >= 5
