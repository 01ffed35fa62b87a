"""The massive-activations study: a planted model is described exactly, a random one has none."""

import dataclasses

import numpy as np
import pytest

from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.models import load, tiny
from mechlab.models.planted_sink import MASSIVE_DIMENSIONS, planted_sinks
from mechlab.results.study import silent
from mechlab.studies import massive, massive_claims, massive_tables
from mechlab.studies.massive import STUDY, gather
from mechlab.studies.massive_evidence import MEAN, NEXT, ZERO, Evidence
from mechlab.studies.massive_settings import Settings

LENGTH = 24


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One folder for all: what is trained once is read after that."""
    folder = str(tmp_path_factory.mktemp("training"))
    return Settings(
        n_discovery=5, n_evaluation=5, length=LENGTH, draws=3, train_steps=20, n_checkpoints=8, folder=folder
    )


@pytest.fixture(scope="module", autouse=True)
def small_shapes() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(massive, "SHAPES", ((2, 16, 2),))
        yield


def gathered(lens: Lens, settings: Settings) -> Evidence:
    generator = np.random.default_rng(0)
    rows = [generator.permutation(np.arange(4, 34))[:LENGTH].tolist() for _ in range(10)]
    return gather(lens, lens.tokens(rows[:5]), lens.tokens(rows[5:]), settings, silent)


@pytest.fixture(scope="module")
def planted(settings: Settings) -> Evidence:
    return gathered(Lens(planted_sinks()), settings)


def test_planted_entries_are_described_and_their_claims_supported(planted: Evidence) -> None:
    assert planted.layer == 1
    assert set(massive_claims.top_dimensions(planted)) == set(MASSIVE_DIMENSIONS)
    assert set(planted.held_out.entries["dimension"]) == set(MASSIVE_DIMENSIONS)
    found = planted.interventions
    assert found is not None and found.entries.tolist() == [2] * 5
    assert found.changed[MEAN] == pytest.approx(found.base, abs=1e-3)  # they are the same in every text
    assert (found.changed[ZERO] > found.base + 0.3).all()
    verdicts = {finding.key: finding.verdict for finding in massive_claims.findings(planted)}
    assert {verdicts[key] for key in ("there", "few_dimensions", "few_tokens", "zero", "mean", "another_text")} == {
        "supported"
    }


def test_controls_that_do_as_well_take_support_away(planted: Evidence) -> None:
    found = planted.interventions
    assert found is not None
    as_bad = dataclasses.replace(found, changed={**found.changed, NEXT: found.changed[ZERO], MEAN: found.changed[ZERO]})
    changed = dataclasses.replace(planted, interventions=as_bad, twin=planted.held_out)
    verdicts = {finding.key: finding.verdict for finding in massive_claims.findings(changed)}
    assert {verdicts[key] for key in ("zero", "mean", "there")} == {"not supported"}


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_a_random_model_has_none(family: str, settings: Settings) -> None:
    evidence = gathered(Lens(tiny(family, seed=2)), settings)
    assert evidence.layer is None and evidence.interventions is None
    verdicts = {finding.key: finding.verdict for finding in massive_claims.findings(evidence)}
    assert verdicts.pop("there") == "not supported"
    verdicts.pop("growth")  # of the models trained here, not of this one
    assert set(verdicts.values()) == {"inconclusive"}


def test_full_stops_and_line_breaks_are_delimiters() -> None:
    import pandas as pd

    pieces = pd.Series(["The", ".", "\n\n", " .", "a.", " ", "", "the"])
    positions = pd.Series([0, 3, 4, 5, 6, 7, 8, 9])
    assert massive_claims.is_expected(pieces, positions).tolist() == [
        True,
        True,
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_a_report_with_its_tables_figures_and_progress(settings: Settings) -> None:
    stages: list[str] = []
    report = STUDY.run(Lens(planted_sinks()), settings, lambda label, _done, _total: stages.append(label))
    tables = {table.key: table.frame for table in report.tables}
    assert set(tables) == {"paper_beside_ours", "layers", "entries", "interventions", "growth", "fits"}
    assert len(tables["growth"]) == 2 * 8 and len(tables["fits"]) == 2
    assert "after layer 1" in report.summary_text
    assert {"entries set, held-out text", "sizes of entries, twin", "curves over training"} <= set(stages)


def test_what_a_model_without_any_shows(settings: Settings) -> None:
    evidence = gathered(Lens(tiny("gpt2", seed=1)), settings)
    tables, _ = massive_tables.tables_and_figures(evidence)
    assert {table.key for table in tables} == {"paper_beside_ours", "layers", "growth", "fits"}
    assert "No layer has one in half of the texts" in massive_tables.summary(evidence)


def test_too_few_checkpoints_are_refused(settings: Settings) -> None:
    with pytest.raises(MechlabError, match="7 checkpoints or more, and there are 2"):
        STUDY.run(Lens(tiny("llama")), settings.model_copy(update={"checkpoints": ("step1", "step2")}), silent)


@pytest.mark.default_model
def test_default_model_end_to_end(settings: Settings) -> None:
    report = STUDY.run(
        Lens(load()), settings.model_copy(update={"n_discovery": 3, "n_evaluation": 3, "draws": 2}), silent
    )
    found = {finding.key: finding for finding in report.findings}
    assert found["there"].verdict == found["zero"].verdict == "supported"
    assert "507" in found["few_dimensions"].statement
