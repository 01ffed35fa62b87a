"""Training: stopped runs go on to the same numbers, seeds are paired, right clamps help and wrong ones do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mechlab.errors import StoreError, UnknownName
from mechlab.formation import training
from mechlab.formation.exported import exported
from mechlab.formation.fewshot import Task
from mechlab.formation.heads import judge_heads
from mechlab.formation.measures import first_time, share_near
from mechlab.formation.stack import Shape, forward
from mechlab.formation.training import Recipe, judged, train
from mechlab.lens.edit import zero
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models.keeping import home, kept
from mechlab.results.study import silent

SMALL = Recipe(
    seeds=(0, 1), task=Task(8, 4, 4), shape=Shape(16, 2), steps=20, batch=8, rate=3e-3, every=1, judged=40
)  # fmt: skip


class Stopped(Exception):
    pass


def stop_at(step: int):
    def progress(_label: str, done: int, _total: int) -> None:
        if done == step:
            raise Stopped

    return progress


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    whole = train(SMALL, tmp_path / "whole", silent)
    for step in (3, 12, 18):  # before the first write, and twice after one
        with pytest.raises(Stopped):
            train(SMALL, tmp_path / "parts", stop_at(step))
    state = kept(home(tmp_path / "parts", SMALL))
    assert state is not None and 0 < state.step < 20 and not state.finished
    steps: list[int] = []
    again = train(SMALL, tmp_path / "parts", lambda _label, done, _total: steps.append(done))
    assert steps == list(range(state.step + 1, 21))
    for name, curve in whole.curves.items():
        assert np.array_equal(curve, again.curves[name]), name
    for name, value in whole.weights.items():
        assert torch.equal(value, again.weights[name]), name


def test_what_is_finished_is_only_read(tmp_path: Path) -> None:
    first = train(SMALL, tmp_path, silent)
    read = train(SMALL, tmp_path, stop_at(1))
    assert np.array_equal(first.curves["loss train"], read.curves["loss train"])
    assert np.array_equal(first.steps, read.steps)


def test_a_seed_s_run_does_not_depend_on_its_company_nor_its_start_on_the_clamp(tmp_path: Path) -> None:
    both, alone = train(SMALL, tmp_path, silent), train(replace(SMALL, seeds=(1,)), tmp_path, silent)
    assert both.curves["loss train"][:, 1] == pytest.approx(alone.curves["loss train"][:, 0], abs=1e-4)
    other = train(replace(SMALL, clamp="shift-by-two", steps=2), tmp_path, silent)
    first = training.fresh(SMALL.task, SMALL.shape, SMALL.seeds)
    assert torch.equal(both.weights["items"], other.weights["items"])
    assert torch.equal(both.weights["items"], first["items"])  # data, not trained
    assert not torch.equal(both.weights["labels"], first["labels"])


def test_a_right_match_is_learned_from_at_once_and_a_blind_one_is_not(tmp_path: Path) -> None:
    longer = replace(SMALL, steps=80, batch=16, every=10)
    right = train(replace(longer, clamp="match"), tmp_path, silent)
    blind = train(replace(longer, clamp="blind-match"), tmp_path, silent)
    assert (right.curves["accuracy train"][-1] >= 0.9).all() and right.steps[-1] < 80  # it ends once all have learned
    assert (blind.curves["accuracy train"] < 0.8).all() and blind.steps[-1] == 80
    assert (right.curves["induction train"][..., 0] == 1).all() and (
        np.abs(blind.curves["induction train"][..., 0]) < 0.7
    ).all()


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean previous"):
        train(replace(SMALL, clamp="previos"), tmp_path, silent)
    train(replace(SMALL, steps=2), tmp_path, silent)
    at = home(tmp_path, replace(SMALL, steps=2))
    (at / "step2.safetensors").write_bytes(b"no tensors")
    with pytest.raises(StoreError, match="delete it to train anew"):
        train(replace(SMALL, steps=2), tmp_path, silent)


def test_heads_through_a_lens_are_those_of_the_stack(tmp_path: Path) -> None:
    done = train(SMALL, tmp_path, silent)
    batch = judged(SMALL)["train"]
    for run in (0, 1):
        heads = judge_heads(Lens(exported(done.weights, run, SMALL.task, SMALL.shape)), SMALL.task, batch[run])

        def accuracy(*edits, run: int = run) -> float:
            logits = forward(done.weights, SMALL.shape, SMALL.task, batch.ids, edits).logits.unflatten(0, (2, -1))[run]
            return float((logits.argmax(dim=1) == batch.answer[run]).double().mean())

        assert heads.whole == accuracy() == pytest.approx(done.curves["accuracy train"][-1, run])
        assert heads.none == accuracy(zero("L1.z"))
        assert heads.kept.tolist() == [accuracy(zero(Site("z", 1, 1))), accuracy(zero(Site("z", 1, 0)))]
        assert heads.dropped.tolist() == heads.kept.tolist()[::-1]  # of two heads


def test_first_times_by_hand() -> None:
    steps = np.array([0.0, 10.0, 20.0, 40.0])
    values = np.array([[0.2, 0.95, 0.1], [0.5, 0.1, 0.2], [0.7, 0.1, 0.3], [1.0, 0.1, 0.89]])
    times, reached = first_time(steps, values, 0.9)
    assert times == pytest.approx([20 + 20 * 0.2 / 0.3, 0.0, 40.0])
    assert reached.tolist() == [True, True, False]


def test_shares_near_a_level_by_hand() -> None:
    steps, losses = np.array([0.0, 1.0, 2.0, 3.0]), np.array([[2.0], [0.75], [0.65], [0.7]])
    assert share_near(steps, losses, np.array([3.0]), 0.7, 0.1) == pytest.approx(
        [2 / 3]
    )  # the last is not before the end
    assert np.isnan(share_near(steps, losses, np.array([0.0]), 0.7, 0.1)[0])
