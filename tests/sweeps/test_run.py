"""A sweep computes what the engine computes, once; what fails stays apart; what is there is not computed again."""

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mechlab.errors import EditError, MechlabError, ModelError, SiteError
from mechlab.lens.edit import Edit, mean, patch, zero
from mechlab.lens.lens import Lens
from mechlab.patching.task import Task
from mechlab.sweeps import work
from mechlab.sweeps.cells import Unit, cell_key
from mechlab.sweeps.export import compare, export, group_effects
from mechlab.sweeps.plan import PlanError, parse_plan
from mechlab.sweeps.processes import LocalProcesses
from mechlab.sweeps.run import Settings, resume, sweep
from mechlab.sweeps.store import CellStore
from mechlab.sweeps.work import Bench


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Cells of each engine call."""
    seen: list[int] = []
    real = Lens.effects

    def counted(self, task, interventions, *args, **options):
        seen.append(len(interventions))
        return real(self, task, interventions, *args, **options)

    monkeypatch.setattr(Lens, "effects", counted)
    return seen


def test_values_are_those_of_the_engine(plan, settings, lens: Lens, task: Task, tmp_path: Path):
    asked = plan(
        interventions=[
            {"sites": "z[*.*]", "verb": ["zero", "mean"], "over": "tokens"},
            {"sites": ["resid_pre[1-2]@S2", "L0H1"], "verb": "patch"},
        ]
    )
    done = sweep(asked, tmp_path, settings)
    assert (done.counts.done, done.counts.total, done.computed) == (27, 27, 27)
    heads = [f"L{layer}H{head}" for layer in range(3) for head in range(4)]
    edits = [zero(at) for at in heads] + [mean(at, "corrupted", over="tokens") for at in heads]
    edits += [patch(at, "corrupted") for at in ("L1.resid_pre@S2", "L2.resid_pre@S2", "L0H1")]
    expected = lens.effects(task, edits, base="clean", exhaustive=True)
    with CellStore(tmp_path) as store:
        [group] = store.groups()
        found = group_effects(store, group)
    pd.testing.assert_frame_equal(found.frame, expected.frame, atol=1e-5)
    assert (found.frame["after"] - found.frame["before"]).abs().max() > 0.1


def test_twice_is_once_and_resuming_what_is_done_loads_no_model(plan, settings, calls, monkeypatch, tmp_path: Path):
    first = sweep(plan(), tmp_path, settings)
    assert (first.computed, sum(calls)) == (12, 12)
    again = sweep(plan(), tmp_path, settings)
    assert (again.computed, again.counts.done, sum(calls)) == (0, 12, 12)
    monkeypatch.setattr("mechlab.sweeps.work.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert resume(tmp_path, settings).counts.done == 12


def test_plans_that_overlap_share_cells(plan, settings, calls, tmp_path: Path):
    sweep(plan("z[0-1.*]"), tmp_path, settings)
    done = sweep(plan(["z[*.*]", "L2H0", "blocks.0.attn.hook_z"]), tmp_path, settings)
    assert (done.counts.total, done.computed, sum(calls)) == (13, 5, 13)
    with CellStore(tmp_path) as store:
        assert store.counts().done == 13 and len(store.plans()) == 2


def test_what_is_another_cell(plan, settings, tmp_path: Path):
    sweep(plan("L1H1"), tmp_path, settings)
    others = (
        {"base": "corrupted"},
        {"metrics": "probability"},
        {"seeds": 1},
        {"tasks": {"task": "ioi", "n": 2}},
        {"dtype": "bfloat16"},
    )
    for more in others:
        assert sweep(plan("L1H1", **more), tmp_path, settings).computed == 1, more
    assert sweep(plan("L1H1", name="another name"), tmp_path, settings).computed == 0
    with CellStore(tmp_path) as store:
        keys = {cell.key for group in store.groups() for cell in store.done(group)}
        assert len(keys) == 6


def test_seeds_reach_prompts_and_draws(plan, settings, tmp_path: Path):
    sweep(plan("L0.z", "resample", seeds=[0, 1]), tmp_path, settings)
    with CellStore(tmp_path) as store:
        edits = [json.loads(cell.edits)[0] for group in store.groups() for cell in store.done(group)]
        hashes = {group.task_hash for group in store.groups().values()}
    assert [edit.get("seed", 0) for edit in edits] == [0, 1] and len(hashes) == 2


def test_together_is_one_cell(plan, settings, lens: Lens, task: Task, tmp_path: Path):
    sites = {"sites": ["z[0.*]", "L2.mlp_out"], "verb": "zero", "together": True}
    assert sweep(plan(interventions=sites), tmp_path, settings).computed == 1
    whole = lens.effects(task, [[*(zero(f"L0H{head}") for head in range(4)), zero("L2.mlp_out")]], base="clean")
    with CellStore(tmp_path) as store:
        found = group_effects(store, 1)
    np.testing.assert_allclose(found.frame["after"], whole.frame["after"], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"sites": "z[9.*]"}, SiteError, "this model has layer 0 to 2"),
        ({"sites": "z[*.*]@S9"}, MechlabError, "'S9' is unknown"),
        ({"verb": "melt"}, MechlabError, "melt"),
        ({"verb": "scale"}, EditError, "needs a value"),
        ({"metrics": "los"}, MechlabError, "did you mean|choose one of"),
        ({"tasks": {"task": "iio"}}, MechlabError, "did you mean ioi"),
        ({"models": "/no/such/folder"}, ModelError, "/no/such/folder"),
        (
            {"interventions": [{"sites": "L0H0", "verb": "zero"}, {"sites": "router[*.*]", "verb": "zero"}]},
            SiteError,
            "absent",
        ),
    ],
)
def test_a_wrong_plan_leaves_an_empty_store(plan, settings, tmp_path: Path, changes, error, says):
    with pytest.raises(error, match=says):
        sweep(plan(**changes), tmp_path, settings)
    with CellStore(tmp_path) as store:
        assert store.counts().total == 0 and store.plans() == {}


@pytest.fixture
def out_of_memory(monkeypatch: pytest.MonkeyPatch):
    """Engine calls with this site run out of memory, as a real device says it."""
    real, bad = Lens.effects, {"L1H2", "L2H0"}

    def short(self, task, interventions, *args, **options):
        if bad & {str(edit.site) for group in interventions for edit in group}:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines")
        return real(self, task, interventions, *args, **options)

    monkeypatch.setattr(Lens, "effects", short)
    return bad


def test_a_cell_that_fails_takes_no_other_with_it(plan, settings, out_of_memory, calls, tmp_path: Path):
    done = sweep(plan(), tmp_path, settings)
    assert (done.counts.done, done.counts.failed, done.counts.waiting) == (10, 2, 0)
    with CellStore(tmp_path) as store:
        failures = store.failures()
    assert {json.loads(edits)[0]["site"] for edits, _ in failures} == out_of_memory
    assert {why for _, why in failures} == {"OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"}
    before = len(calls)
    assert sweep(plan(), tmp_path, settings).failed_now == 0 and len(calls) == before, "failed cells are left alone"
    out_of_memory.clear()
    retried = resume(tmp_path, Settings(settings.make_task, device="cpu", retry_failed=True))
    assert (retried.computed, retried.counts.done, retried.counts.failed) == (2, 12, 0)


def test_an_edit_that_no_activation_fits_is_a_failed_cell(plan, settings, tmp_path: Path):
    wrong = {"sites": "L1.resid_pre@-1", "verb": "add", "value": [1.0, 2.0]}  # 64 dimensions
    right = {"sites": "L1.resid_pre@-1", "verb": "add", "value": 0.5}
    done = sweep(plan(interventions=[wrong, right]), tmp_path, settings)
    assert (done.counts.done, done.counts.failed) == (1, 1)


def test_an_interrupt_that_came_out_as_another_error_is_no_failed_cell(plan, settings, monkeypatch, tmp_path: Path):
    def foreign(*_args, **_options):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("a callback failed") from None

    monkeypatch.setattr(Lens, "effects", foreign)
    with pytest.raises(KeyboardInterrupt):
        sweep(plan(), tmp_path, settings)
    with CellStore(tmp_path) as store:
        assert (store.counts().failed, store.counts().waiting) == (0, 12)


def test_cells_are_not_computed_with_another_model_than_they_were_planned_for(
    plan, settings, tiny_folder, tmp_path: Path
):
    import shutil

    from mechlab.models import tiny
    from mechlab.models.quiet import quiet

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    asked = plan(models=str(folder))
    with CellStore(tmp_path / "store") as store:
        from mechlab.sweeps.run import lay_out

        lay_out(store, asked, Bench(settings.make_task, "cpu"))
    with quiet():
        tiny("llama", 1).hf.save_pretrained(folder)
    with pytest.raises(ModelError, match="run the plan again"):
        resume(tmp_path / "store", settings)
    assert sweep(asked, tmp_path / "store", settings).computed == 12


def test_units_grow_to_the_time_they_should_take(plan, settings, calls, tmp_path: Path):
    sweep(plan("z[*.*]@*"), tmp_path, settings)  # a cell takes about a millisecond, a unit should take seconds
    assert calls[0] == 32 and calls[1] > 32 and sum(calls) == 12 * 14
    short = Settings(settings.make_task, device="cpu", unit_seconds=1e-6)
    del calls[:]
    sweep(plan("z[0.0-2]@*", base="corrupted"), tmp_path, short)
    assert calls[0] == 32 and calls[1:] == [1] * 10


class Elsewhere:
    """An executor of one's own: what Ray would be. It answers in another order, and each half of a unit apart."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def outcomes(self, units):
        halves: list[Unit] = [half for unit in units for half in unit.halves() if half.cells]
        for half in reversed(halves):
            yield self.bench.run(half)


def test_an_executor_of_ones_own(plan, settings, tmp_path: Path):
    done = sweep(plan(), tmp_path, settings, executor=Elsewhere(Bench(settings.make_task, "cpu")))
    assert (done.counts.done, done.computed) == (12, 12)


def test_export_and_compare(plan, settings, tmp_path: Path):
    asked = [
        {"sites": "z[*.*]", "verb": "zero"},
        {"sites": "resid_pre[*]@S2,END", "verb": "patch"},
        {"sites": "logits@-1", "verb": "zero"},
    ]
    sweep(plan(interventions=asked, metrics=["logit_difference", "kl"]), tmp_path / "a", settings)
    sweep(plan(tasks={"task": "ioi", "n": 3}), tmp_path / "b", settings)
    file = tmp_path / "cells.parquet"
    with CellStore(tmp_path / "a") as store:
        assert export(store, file) == 2 * 19 * 3
        assert export(store, tmp_path / "summary.parquet", summary=True) == 2 * 19
        wanted = group_effects(store, 1).frame
    table = pd.read_parquet(file)
    assert set(table["metric"]) == {"logit_difference", "kl"} and table["cell"].nunique() == 38
    mine = table[table["metric"] == "logit_difference"].reset_index(drop=True)
    np.testing.assert_array_equal(mine["after"], wanted["after"])
    assert mine.loc[0, "edits"] == '[{"site":"L0H0","verb":"zero"}]' and mine.loc[0, "head"] == 0
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    summary = pd.read_parquet(tmp_path / "summary.parquet")
    assert {"change", "change_low", "change_high", "n"} <= set(summary)
    for one in (tmp_path / "a", file, tmp_path / "summary.parquet"):
        both = compare(one, tmp_path / "b")
        assert len(both) == 12 and both["difference"].abs().max() < 5e-6
    with pytest.raises(MechlabError, match="share no cell"):
        sweep(plan("L0.z"), tmp_path / "c", settings)
        compare(tmp_path / "b", tmp_path / "c")


def test_the_key_of_a_cell_is_its_group_and_edits(plan, settings, tmp_path: Path):
    sweep(plan("L1H2"), tmp_path, settings)
    with CellStore(tmp_path) as store:
        [(number, group)] = store.groups().items()
        [cell] = store.done(number)
        store.check()
    edit = Edit.from_dict(json.loads(cell.edits)[0])
    assert edit == zero("L1H2") and cell.key == cell_key(group.key, cell.edits)


def test_models_are_compared_cell_by_cell(plan, settings, tiny_folder: Path, monkeypatch, tmp_path: Path):
    twin = f"{tiny_folder}@random:1"
    made: list[weakref.ref[Lens]] = []
    held: list[int] = []
    real_lens, real_load = Bench.lens, work.load

    def lens(self, *args):
        made.append(weakref.ref(real_lens(self, *args)))
        return made[-1]()

    def load(*args, **options):
        held.append(sum(one() is not None for one in made))
        return real_load(*args, **options)

    monkeypatch.setattr(Bench, "lens", lens)
    monkeypatch.setattr(work, "load", load)
    done = sweep(plan(models=[str(tiny_folder), twin]), tmp_path / "both", settings)
    assert done.counts.done == 24 and held == [0, 0, 0, 0], "never two models at once"
    sweep(plan(), tmp_path / "one", settings)
    sweep(plan(models=twin), tmp_path / "twin", settings)
    assert len(compare(tmp_path / "both", tmp_path / "one")) == 12, "a cell meets its own model's"
    across = compare(tmp_path / "one", tmp_path / "twin")
    assert len(across) == 12 and across["difference"].abs().max() > 0.1
    assert set(across["model_b"]) == {twin}


def test_code_that_comes_with_a_model_runs_only_when_the_user_says_so(tiny_folder, tmp_path, settings):
    """A plan is a file from anywhere: it cannot say so itself."""
    one = {"sites": "L0H0", "verb": "zero"}
    with pytest.raises(PlanError, match="trust_remote_code"):
        parse_plan({"models": "m", "tasks": {"task": "ioi"}, "interventions": one, "trust_remote_code": True})
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    record = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.LlamaForCausalLM"}}
    (folder / "config.json").write_text(json.dumps({**record, **own, "model_type": "mine"}))
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM as Theirs\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class LlamaForCausalLM(Theirs):\n    config_class = MineConfig\n"
    )
    fields = {"models": str(folder), "tasks": {"task": "ioi", "n": 3}}
    asked = parse_plan({**fields, "interventions": {"sites": "z[0.*]", "verb": "zero"}})
    with pytest.raises(ModelError, match="--trust-remote-code"):
        sweep(asked, tmp_path / "store", settings)
    trusting = replace(settings, trust_remote_code=True)
    assert sweep(asked, tmp_path / "store", trusting).counts.done == 4
    worker = LocalProcesses(1, settings.make_task, "cpu", threads=1, trust_remote_code=True)
    assert sweep(asked, tmp_path / "other", trusting, executor=worker).counts.done == 4
