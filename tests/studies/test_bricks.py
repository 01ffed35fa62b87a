"""The bricks study: on the machinery of relation-neurons; a planted brick is found and needed, a random model supports nothing."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mechlab.errors import MechlabError, SiteError
from mechlab.lens.lens import Lens
from mechlab.models import tiny
from mechlab.models.planted_relations import RELATIONS, planted_relations
from mechlab.results.study import silent
from mechlab.studies import bricks_claims
from mechlab.studies.bricks import STUDY, Settings, gather
from mechlab.studies.bricks_evidence import Evidence


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Each planted relation as a function: its questions as prompts, its objects as continuations."""
    planted, path = planted_relations(), tmp_path_factory.mktemp("prompts") / "prompts.csv"
    with path.open("w", newline="", encoding="utf-8") as lines:
        table = csv.writer(lines)
        table.writerow(["function", "prompt", "continuation"])
        table.writerows((r, planted.templates[r][0].replace("{subject}", s), o) for r, s, o in planted.facts)
    return Settings(prompts=str(path), share=0.25, n_evaluation=4, draws=3)


@pytest.fixture(scope="module")
def evidence(settings: Settings) -> Evidence:
    return gather(Lens(planted_relations().model), settings, silent)[0]


def test_planted_neurons_are_in_their_brick(evidence: Evidence) -> None:
    """Layer 0: relation r's neuron and its wording's are the only ones on for r; layer 1: the neurons of r's facts."""
    for place, name in enumerate(RELATIONS):
        names = [str(evidence.units.named(int(unit))) for unit in evidence.found.sets[name]]
        assert {f"L0N{place}", f"L0N{3 + place}"} <= set(names)
        assert evidence.found.precision[name][[place, 3 + place]].tolist() == [1, 1]
        assert len(names) == 22 and (evidence.units.layers(evidence.found.sets[name]) == 1).sum() == 11


def test_losses_by_hand(evidence: Evidence) -> None:
    """Unedited, the answer is certain; without the relation's neuron every word is as likely as any other."""
    even = np.log(planted_relations().model.vocab_size)
    for name in RELATIONS:
        assert np.allclose(evidence.base[name], 0, atol=0.05)
        assert np.allclose(evidence.without[name, name], even, atol=0.05)
    found = {finding.key: finding for finding in bricks_claims.findings(evidence)}
    assert found["own_brick"].estimate == pytest.approx(even, abs=0.1)
    controls = {control.name: control.estimate for control in found["own_brick"].controls}
    assert controls[bricks_claims.TWIN] == pytest.approx(0, abs=0.5)
    assert evidence.held_out.keys() == set(RELATIONS)


def test_random_weights_support_no_brick(settings: Settings) -> None:
    for seed in (0, 1):
        found = bricks_claims.findings(
            gather(Lens(tiny("llama", seed)), settings.model_copy(update={"share": 0.05}), silent)[0]
        )
        assert [f.key for f in found if f.key.startswith("own_") and f.verdict == "supported"] == []


def test_a_brick_that_breaks_no_more_than_random_neurons_is_not_supported(evidence: Evidence) -> None:
    draws = {name: np.stack([evidence.without[name, name]] * 2) for name in RELATIONS}
    found = {f.key: f for f in bricks_claims.findings(dataclasses.replace(evidence, draws=draws))}
    assert found["own_brick"].verdict != "supported"


def test_ranking_over_the_model_and_the_report(settings: Settings) -> None:
    report = STUDY.run(Lens(planted_relations().model), settings.model_copy(update={"ranking": "model"}), silent)
    assert {table.key for table in report.tables} == {"paper", "matrix", "controls", "scores", "overlap"}
    plain = STUDY.run(Lens(tiny("gpt2")), Settings(prompts=settings.prompts, n_evaluation=4, draws=2), silent)
    assert len(plain.findings) == 1 + 3 + 2


def test_bad_input(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="absent"):
        gather(Lens(tiny("mixtral")), settings, silent)
    with pytest.raises(MechlabError, match="has 12 prompts, and 24 are needed"):
        gather(Lens(tiny("llama")), settings.model_copy(update={"n_evaluation": 20}), silent)
    with pytest.raises(MechlabError, match="There is no file"):
        gather(Lens(tiny("llama")), Settings(prompts=str(tmp_path / "none.csv")), silent)
