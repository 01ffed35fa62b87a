"""The mp-sae study end to end on a tiny model, and its readers against the dictionaries' own numbers."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from mechlab.dictionaries.harvest import harvest
from mechlab.dictionaries.training import train
from mechlab.dictionaries.training_settings import SaeSettings
from mechlab.lens.lens import Lens
from mechlab.models.tiny_models import tiny
from mechlab.results.report import Report
from mechlab.studies import mp_sae
from mechlab.studies.mp_sae_activations import MP, RANDOM, REFIT, SHUFFLED, TOPK, _largest, _pursuer  # pyright: ignore
from mechlab.texts.passage import passages

SMALL = {
    "cosines": (0.0,),
    "toy_seeds": 2,
    "toy_steps": 20,
    "n_passages": 8,
    "n_held_out": 4,
    "n_features": 48,
    "k": 3,
    "tokens": 8000,
    "batch": 64,
}


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(tiny("llama"))


@pytest.fixture(scope="module")
def report(lens: Lens) -> Report:
    return mp_sae.run(lens, mp_sae.Settings.model_validate(SMALL), lambda *_: None)


def test_every_claim_is_judged_and_every_table_drawn(report: Report) -> None:
    keys = ["parts", "l1_absorbs", "recovers", "tied", "learned", "topk_rises", "mp_falls", "lower_error", "agrees"]
    assert [finding.key for finding in report.findings] == keys
    assert {table.key for table in report.tables} == {"absorption", "paper", "truth", "curves", "shapes"}
    verdicts = {finding.key: finding.verdict for finding in report.findings}
    assert verdicts["parts"] != "supported"  # 20 steps teach a toy nothing


def test_error_falls_with_every_step_of_a_pursuit(report: Report) -> None:
    curves = next(table.frame for table in report.tables if table.key == "curves")
    assert sorted(set(curves["k"])) == [1, 2, 3, 4, 8, 12]
    for reader in (MP, RANDOM, SHUFFLED):
        fvu = curves[curves["reader"] == reader]["fvu"].to_numpy()
        assert (np.diff(fvu) <= 1e-9).all()
        assert fvu[-1] < fvu[0]
    by_reader = curves.set_index(["reader", "k"])["fvu"]
    assert all(float(by_reader[REFIT, k]) <= float(by_reader[MP, k]) + 1e-6 for k in (1, 2, 3, 4, 8, 12))
    assert np.isfinite(by_reader[TOPK].to_numpy()).all()


def test_readers_at_the_training_k_are_the_dictionaries_themselves(lens: Lens, tmp_path: Path) -> None:
    at = "L1.resid_post"
    kept = harvest(lens, passages(count=6), [at], tmp_path / "activations")
    x = kept.read([at], kept.rows[:100])[0]
    for kind in ("topk", "matching_pursuit"):
        settings = SaeSettings.model_validate(
            {"architecture": kind, "n_features": 40, "k": 4, "tokens": 8000, "batch": 64}
        )
        trained = train(kept, at, settings, tmp_path / kind)
        own = trained.reconstruct(x)
        if kind == "topk":
            torch.testing.assert_close(_largest(trained, x, 4), own, atol=1e-4, rtol=1e-4)
            assert not torch.allclose(_largest(trained, x, 5), own, atol=1e-4)
        else:
            rules = {"residual_threshold": 0.0, "stop_on_duplicate": False}
            assert _pursuer(trained).rules.model_dump() == {"steps": 4, "nonnegative": True, **rules}
            stopping = _pursuer(trained).with_rules(
                residual_threshold=max(0.0, float(cast(float, trained.sae.cfg.residual_threshold))),
                stop_on_duplicate=True,
            )
            torch.testing.assert_close(stopping.reconstruct(x), own, atol=1e-4, rtol=1e-4)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 k"):
        mp_sae.Settings.model_validate({"n_features": 8, "k": 3})
    with pytest.raises(ValueError, match="below 1"):
        mp_sae.Settings.model_validate({"cosines": (1.0,)})
