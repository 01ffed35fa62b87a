"""Experts as cells of a sweep: every expert of every layer, off, dropped or on, with the numbers of the engine."""

from pathlib import Path

import pandas as pd
import pytest

from mechlab.errors import MechlabError
from mechlab.lens.edit import route
from mechlab.lens.lens import Lens
from mechlab.models import load, tiny
from mechlab.models.quiet import quiet
from mechlab.sweeps.export import group_effects
from mechlab.sweeps.plan import parse_plan
from mechlab.sweeps.run import sweep
from mechlab.sweeps.store import CellStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, model = tmp_path_factory.mktemp("models") / "moe", tiny("olmoe")
    with quiet():
        model.hf.save_pretrained(made)
        model.tokenizer.save_pretrained(made)
    return made


def asked(folder: Path, *interventions: dict[str, object]):
    return parse_plan({"models": str(folder), "tasks": {"task": "ioi", "n": 2}, "interventions": list(interventions)})


def test_every_expert_off_dropped_and_on(folder, settings, tmp_path):
    from circuits.tasks.catalogue import make_task

    options = [
        {"state": "off"},
        {"state": "drop", "renormalise": False},
        {"state": "on", "weight": 0.5, "renormalise": False},
    ]
    plan = asked(folder, *({"sites": "router[*.*]", "verb": "route", **option} for option in options))
    done = sweep(plan, tmp_path, settings)
    assert (done.counts.done, done.counts.total) == (36, 36)
    lens = Lens(load(str(folder), device="cpu"))
    experts = [f"L{layer}E{expert}" for layer in range(3) for expert in range(4)]
    edits = [route(at, **option) for option in options for at in experts]
    expected = lens.effects(make_task(lens, "ioi", 2), edits, base="clean", exhaustive=True)
    with CellStore(tmp_path) as store:
        [group] = store.groups()
        found = group_effects(store, group)
    pd.testing.assert_frame_equal(found.frame, expected.frame, atol=1e-5)
    assert found.frame["after"].nunique() > 24  # the options are not lost on the way


@pytest.mark.parametrize(
    ("sites", "more", "message"),
    [
        ("router[*.4]", {"state": "off"}, "this model has expert 0 to 3"),
        ("router[3.*]", {"state": "off"}, "this model has layer 0 to 2"),
        ("router[*.*]", {"state": "off", "weight": 0.5}, "belongs to an expert forced on"),
        ("router[*]", {"state": "off"}, "needs one expert"),
        ("expert_out[*.*]", {"state": "off"}, "can be read but not edited"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(folder, settings, tmp_path, sites, more, message):
    with pytest.raises(MechlabError, match=message):
        sweep(asked(folder, {"sites": sites, "verb": "route", **more}), tmp_path, settings)


def test_a_dense_model_has_none(plan, settings, tmp_path):
    with pytest.raises(MechlabError, match=r"Site L0.router is absent in this model"):
        sweep(plan(sites="router[*.*]", verb="route"), tmp_path, settings)
