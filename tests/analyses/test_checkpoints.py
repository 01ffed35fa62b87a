"""Growth over training: the fit, its peak, training that goes on where it stopped, checkpoints from folders, the predictor."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mechlab.analyses.checkpoints import over_checkpoints, ratios, step_of
from mechlab.analyses.checkpoints_fit import Curve, curve, fit, rivals, slopes
from mechlab.analyses.checkpoints_predictor import INPUTS, TARGETS, cross_validated, sample
from mechlab.analyses.checkpoints_training import Recipe, train
from mechlab.errors import MechlabError, StoreError
from mechlab.lens.lens import Lens
from mechlab.models import tiny
from mechlab.results.study import silent

STEPS = np.unique(np.round(np.geomspace(1, 3000, 35)))
CURVES = [
    Curve(50, 0.3, 0.01, 1.2, 10),  # an early peak, then decay
    Curve(20, 0.01, 0.003, 1.0, 5),  # a slow rise: the peak lies after the last point
    Curve(-8, 0.2, 0.02, 0.5, 30),  # a trough
    Curve(100, 2.0, 0.005, 0.3, 2),
]
TINY = Recipe(2, 16, 2, steps=12, batch=4, length=16, n_checkpoints=8, n_characters=20)
TEXT = "the cat sat on the mat, and the dog sat on the cat. " * 60


@pytest.mark.parametrize("planted", CURVES)
def test_planted_curves_are_recovered(planted: Curve) -> None:
    """I10: the curve, not the parameters; also under 2 % noise."""
    values = planted(STEPS)
    found = fit(STEPS, values)
    assert found.r2 > 0.999
    assert found.curve is not None and np.allclose(found.curve(STEPS), values, atol=0.01 * np.ptp(values))
    noisy = values + 0.02 * np.ptp(values) * np.random.default_rng(0).normal(size=len(values))
    assert fit(STEPS, noisy).r2 > 0.97


@pytest.mark.parametrize("planted", [CURVES[0], CURVES[1], CURVES[3]])
def test_the_peak_is_where_the_curve_is_largest(planted: Curve) -> None:
    grid = np.arange(0, 20000, 0.1)
    assert planted.t_peak == pytest.approx(grid[planted(grid).argmax()], abs=0.1)
    assert planted.has_peak


def test_no_peak_after_the_start() -> None:
    assert not Curve(5, 0.3, 0.01, 50.0, 1).has_peak  # x* < t0: it only falls
    assert not CURVES[2].has_peak
    found = fit(STEPS, CURVES[0](STEPS))
    assert found.curve is not None and found.curve.t_peak == pytest.approx(CURVES[0].t_peak, rel=1e-3)


def test_slopes_are_finite_differences() -> None:
    at, step = np.array([1.5, 0.4, 2.0, 0.7, 0.1]), 1e-6
    times = np.linspace(0, 1, 9)
    for index, column in enumerate(slopes(times, *at).T):
        high, low = at.copy(), at.copy()
        high[index] += step
        low[index] -= step
        assert np.allclose(column, (curve(times, *high) - curve(times, *low)) / (2 * step), atol=1e-6)


def test_simpler_curves_win_where_they_are_true() -> None:
    steps = np.where(STEPS < 300, 2.0, 9.0)
    by_name = {one.name: one for one in rivals(STEPS, steps)}
    assert by_name["one step"].r2 == pytest.approx(1)
    assert (
        by_name["one step"].aic < by_name["two steps"].aic < by_name["log"].aic
    )  # more parameters for the same fit cost
    growing = {one.name: one for one in rivals(STEPS, 3 * np.log1p(STEPS) + 1)}
    assert growing["log"].r2 == pytest.approx(1) and growing["one step"].r2 < 0.9
    fading = {one.name: one for one in rivals(STEPS, 5 - 2 * np.exp(-STEPS / 500))}
    assert fading["exponential"].r2 > 0.999
    cubic = {one.name: one for one in rivals(STEPS, 1e-9 * (STEPS - 1000) ** 3)}
    assert cubic["cubic spline"].r2 == pytest.approx(1)


def test_points_that_cannot_be_fitted() -> None:
    with pytest.raises(MechlabError, match="7 checkpoints or more, and there are 6"):
        fit(range(6), range(6))
    with pytest.raises(MechlabError, match="growing steps"):
        fit([0, 1, 2, 2, 3, 4, 5, 6], range(8))
    with pytest.raises(MechlabError, match="finite"):
        rivals(range(8), [*range(7), np.nan])
    constant = fit(range(8), np.ones(8))
    assert np.isnan(constant.r2) and constant.curve is None and rivals(range(8), np.ones(8)) == []


def test_ratios_by_hand() -> None:
    lens = Lens(tiny("llama", seed=1))
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12, 13]]
    run = [lens.run([ids], read=["L2.resid_post"], logits="none")["L2.resid_post"][0].abs() for ids in prompts]
    by_hand = np.mean([float(h.max() / h.flatten().median()) for h in run])
    assert ratios(lens, prompts)[2] == pytest.approx(by_hand, rel=1e-5)


def test_checkpoint_steps() -> None:
    assert [step_of(name) for name in ("step1000", "/a/b/run7-step-20", "3")] == [1000, 20, 3]
    with pytest.raises(MechlabError, match="'main' has no step"):
        step_of("main")
    found = Recipe(2, 16, 2, steps=400).checkpoints
    assert found[0] == 0 and found[-1] == 400 and len(found) == 30 and sorted(set(found)) == found
    assert Recipe(2, 16, 2, steps=20, n_checkpoints=30).checkpoints == list(range(21))


def test_training_that_was_stopped_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    whole = train(TINY, TEXT, tmp_path / "whole", silent)
    assert whole.steps.tolist() == TINY.checkpoints and whole.ratios.shape == (len(TINY.checkpoints), 2)
    assert not np.allclose(whole.ratios[0], whole.ratios[-1], rtol=1e-3)

    def stop(_label: str, done: int, _total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TINY, TEXT, tmp_path / "parts", stop)
    saved = json.loads(next((tmp_path / "parts").rglob("state.json")).read_text())
    assert 0 < saved["step"] <= 7
    seen: list[int] = []
    resumed = train(TINY, TEXT, tmp_path / "parts", lambda _label, done, _total: seen.append(done))
    assert seen[0] == saved["step"] + 1  # no step is done twice
    assert np.array_equal(resumed.ratios, whole.ratios)
    again = train(TINY, TEXT, tmp_path / "parts", stop)  # finished: nothing is left to do
    assert np.array_equal(again.ratios, whole.ratios)
    other = train(Recipe(**{**vars(TINY), "seed": 1}), TEXT, tmp_path / "parts", silent)
    assert not np.allclose(other.ratios, whole.ratios)


def test_a_damaged_training_folder_is_told(tmp_path: Path) -> None:
    train(TINY, TEXT, tmp_path, silent)
    state = next(tmp_path.rglob("state.json"))
    state.write_text(json.dumps({"step": 5, "ratios": [], "weights": "gone.safetensors"}))
    with pytest.raises(StoreError, match="delete it to train anew"):
        train(TINY, TEXT, tmp_path, silent)


def test_checkpoints_in_folders(tmp_path: Path) -> None:
    """In the order of their steps, whatever order they are given in."""
    models = {30: tiny("llama", seed=3), 4: tiny("llama", seed=4)}
    for step, model in models.items():
        model.hf.save_pretrained(tmp_path / f"step{step}")
        model.tokenizer.save_pretrained(tmp_path / f"step{step}")
    text = ["the cat sat on the mat", "a dog was in the garden ."]
    names = [str(tmp_path / f"step{step}") for step in models]
    trace = over_checkpoints(models[4], names, text, silent)
    assert trace.steps.tolist() == [4, 30]
    for row, step in enumerate((4, 30)):
        assert trace.ratios[row] == pytest.approx(ratios(Lens(models[step]), text), rel=1e-4)
    with pytest.raises(MechlabError, match="3 checkpoints have 2 different steps"):
        over_checkpoints(models[4], [*names, "step30"], text, silent)


def test_the_predictor_finds_what_depends_on_architecture_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    rows = pd.concat(
        [sample(np.linspace(0, 1, n), n, width, 4) for n, width in ((6, 32), (12, 64), (18, 96))], ignore_index=True
    )
    noise = {name: generator.normal(size=len(rows)) for name in TARGETS}
    samples = pd.concat([rows, pd.DataFrame(noise)], axis=1).assign(a=rows["depth"] * 7 + 0.1 * rows["n_layers"])
    found = cross_validated(samples, draws=1)
    assert found is not None
    by_target = found.set_index("target")
    assert by_target.loc["a", "r2"] > 0.8 > by_target.loc["a", "shuffled_high"]
    assert by_target.loc["k", "r2"] < 0.4
    assert set(INPUTS) <= set(samples.columns)
    assert cross_validated(samples.head(9), draws=2) is None
