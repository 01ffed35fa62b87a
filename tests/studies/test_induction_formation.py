"""The induction-formation study: planted times give the verdicts they must, models that never change give none, and a small run reports."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mechlab.formation.heads import Heads
from mechlab.formation.training import Recipe, Training
from mechlab.lens.lens import Lens
from mechlab.models import tiny
from mechlab.results.study import silent
from mechlab.studies import induction_formation_claims
from mechlab.studies.induction_formation import STUDY, gather, recipes
from mechlab.studies.induction_formation_evidence import Evidence, Floats, log_ratio
from mechlab.studies.induction_formation_settings import Settings

SEEDS = 6
STEPS = np.arange(0, 1025, 25, dtype=np.float64)


def planted(recipe: Recipe, time: float) -> Training:
    """Runs that wait at a guess and change at about ``time`` (each seed a little later), or never."""
    times = time * (1 + 0.02 * np.arange(SEEDS))
    after = STEPS[:, None] >= times
    curves: dict[str, Floats] = {
        "accuracy train": np.where(after, 1.0, 0.5),
        "loss train": np.where(after, 0.05, np.log(2)),
    }
    return Training(recipe, STEPS, curves, {})


def heads(*, trained: bool) -> Heads:
    if not trained:
        return Heads(0.2, 0.2, np.full(8, 0.2), np.full(8, 0.2), 0.2)
    return Heads(0.99, 0.4, np.array([0.9, 0.7, 0.6, *[0.4] * 5]), np.full(8, 0.95), 0.98)


RIGHT = {"previous": 400, "layer-1": 250, "match": 100, "copy": 300, "layer-1+copy": 75, "layer-1+match": 50}
WRONG = {"shift-by-two": 600, "random-pattern": 610, "layer-1-by-two": 700, "blind-match": 5000}
DATA = {"100 classes": 700, "200 classes": 900, "10 labels": 750, "15 labels": 1000}


def evidence(times: dict[str, float], *, trained: bool = True) -> Evidence:
    settings = Settings(seeds=SEEDS)
    toy = pd.DataFrame(
        [
            (held, seed, wait + seed, True)
            for held, wait in {"none": 900, "c": 200, "b and c": 10, "wrong c": 2000}.items()
            for seed in range(SEEDS)
        ],
        columns=["held", "seed", "wait", "reached"],
    )
    every = recipes(settings)
    trainings = {name: planted(recipe, times.get(name, 600)) for name, recipe in every.items()}
    both = tuple(heads(trained=trained) for _ in range(SEEDS)), tuple(heads(trained=False) for _ in range(SEEDS))
    return Evidence(settings, trainings, *both, toy, {})


def verdicts(found: Evidence) -> dict[str, str]:
    return {finding.key: finding.verdict for finding in induction_formation_claims.findings(found)}


def test_planted_times_are_told_as_they_are() -> None:
    found = evidence(RIGHT | WRONG | DATA)
    assert found.doublings("copy") == pytest.approx(np.ones(SEEDS), abs=0.15)  # 600 steps against 300
    assert set(verdicts(found).values()) == {"supported"}


def test_a_wrong_pattern_that_helps_as_much_takes_support_away() -> None:
    found = verdicts(evidence(RIGHT | WRONG | DATA | {"shift-by-two": 390, "layer-1-by-two": 240, "blind-match": 90}))
    assert {found[key] for key in ("previous", "wrong_pattern", "layer-1", "match")} == {"not supported"}


def test_a_second_part_that_adds_nothing_takes_support_away() -> None:
    found = verdicts(evidence(RIGHT | WRONG | DATA | {"layer-1+copy": 250, "layer-1+match": 100}))
    assert found["layer-1_copy"] == found["layer-1_match"] == "not supported"


def test_models_that_never_change_support_nothing_but_the_toy() -> None:
    never = dict.fromkeys([*RIGHT, *WRONG, *DATA, "none"], 1e6)
    flat = evidence(never, trained=False)
    lost = {
        name: dataclasses.replace(one, curves={**one.curves, "loss train": one.curves["loss train"] * 0 + 1.6})
        for name, one in flat.trainings.items()
    }
    found = verdicts(dataclasses.replace(flat, trainings=lost))
    # That a wrong clamp does not help is true and says nothing alone: its control must be beaten too.
    assert found.pop("toy") == "supported"
    assert "supported" not in found.values()


def test_log_ratios_by_hand() -> None:
    assert log_ratio(np.array([8.0, 0.0]), np.array([2.0, 4.0])).tolist() == [2.0, -2.0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        seeds=2, classes=6, more_classes=(8,), more_labels=(6,), d_model=16, n_heads=2, steps=4, every=2, judged=8, settle=0, toy_steps=50,
        folder=str(tmp_path_factory.mktemp("training")),
    )  # fmt: skip


def test_a_report_with_its_tables_figures_and_progress(small: Settings) -> None:
    told: list[tuple[int, int]] = []
    report = STUDY.run(Lens(tiny("llama")), small, lambda _label, done, total: told.append((done, total)))
    assert {table.key for table in report.tables} == {
        "paper_beside_ours",
        "times",
        "curves",
        "progress",
        "heads",
        "toy",
    }
    assert "tiny-llama itself is not used" in report.summary_text
    assert len({total for _, total in told}) == 1 and [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]
    times = next(table.frame for table in report.tables if table.key == "times")
    assert len(times) == 2 * (11 + 2)


def test_what_was_trained_is_read_again(small: Settings) -> None:
    before = sorted(Path(small.folder).rglob("*.safetensors"))
    first, again = gather(small, silent), gather(small, silent)
    assert before and sorted(Path(small.folder).rglob("*.safetensors")) == before
    assert np.array_equal(first.trainings["none"].curves["loss train"], again.trainings["none"].curves["loss train"])


@pytest.mark.parametrize("wrong", [{"more_classes": (50,)}, {"d_model": 30}, {"seeds": 1}])
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"more_classes|d_model|greater"):
        Settings.model_validate(wrong)
