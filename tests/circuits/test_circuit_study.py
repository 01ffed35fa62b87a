"""The circuit and methods studies: planted circuits are supported, a random model yields nothing, every list agrees with what it names."""

import json

import numpy as np
import pytest

from circuits.methods import catalogue
from circuits.studies import circuit, methods
from circuits.tasks.pairs import load_pairs
from circuits.wiring import Wiring
from mechlab.errors import MechlabError, UnknownName
from mechlab.lens.lens import Lens
from mechlab.models import PLANTED_INDUCTION_EDGES, planted_induction, random_twin, tiny
from mechlab.results.report import Report
from mechlab.results.study import silent

SMALL = circuit.Settings(
    task="induction", size=0.1, n_discovery=12, n_evaluation=12, others=(), draws=3, compared=20, options=("steps=30",)
)


@pytest.fixture(scope="module")
def planted() -> Report:
    return circuit.run(Lens(planted_induction()), SMALL, silent)


def test_the_planted_circuit_is_found_and_judged(planted: Report) -> None:
    table = next(table for table in planted.tables if table.key == "circuit").frame
    # the task's prompts differ in which token follows, which the values of the induction head carry
    assert set(table["edge"]) >= {"input->a1.h2<v>", "a1.h2->logits"}
    found = {finding.key: finding for finding in planted.findings}
    assert found["behaviour"].verdict == "supported"
    assert found["needed"].verdict == "supported"
    for key, value in (("kept", found["behaviour"].estimate), ("faithful", 1.0), ("needed", 1.0)):
        assert found[key].estimate == pytest.approx(value, abs=1e-3)
        random = next(control for control in found[key].controls if control.name.startswith("random circuits"))
        assert random.high < 0.5 * value
    assert "specific" not in found  # no other task was named


def test_estimates_are_beside_exact_effects(planted: Report) -> None:
    """In this model the edges of the circuit have exact effects, all others none."""
    frame = next(table for table in planted.tables if table.key == "exact").frame.set_index("edge")
    assert len(frame) == 20
    inside = frame.index.isin(list(PLANTED_INDUCTION_EDGES))
    assert frame["exact"][inside].abs().max() > 1
    assert frame["exact"][~inside].abs().max() < 1e-3


def test_a_random_model_supports_nothing() -> None:
    lens = Lens(random_twin(tiny("qwen2"), 3))
    report = circuit.run(lens, SMALL.model_copy(update={"task": "ioi", "options": ()}), silent)
    assert [finding.key for finding in report.findings if finding.verdict == "supported"] == []


def test_exact_methods_need_no_comparison_and_other_tasks_are_taken_out() -> None:
    lens = Lens(tiny("gpt2"))
    settings = circuit.Settings(
        task="ioi", method="exact-nodes", others=("induction", "ioi"), size=0.2, n_discovery=4, n_evaluation=4, draws=2
    )
    report = circuit.run(lens, settings, silent)
    assert [table.key for table in report.tables] == ["circuit", "faithfulness", "areas", "taken_out"]
    specific = next(finding for finding in report.findings if finding.key == "specific")
    assert [control.name for control in specific.controls] == ["taken out on induction"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "eap-gi"}, "eap-ig"),
        ({"task": "oio"}, "ioi"),
        ({"options": ("step=3",)}, "steps"),
        ({"options": ("steps=none",)}, "steps"),
    ],
)
def test_bad_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(MechlabError, match=message):
        circuit.run(Lens(tiny("gpt2")), SMALL.model_copy(update=changes), silent)


def test_methods_side_by_side_on_the_planted_model() -> None:
    settings = methods.Settings(
        task="induction", methods=("eap-ig", "exact-edges", "eap", "random"), n_discovery=6, n_evaluation=6
    )
    report = methods.run(Lens(planted_induction()), settings, silent)
    areas = next(table for table in report.tables if table.key == "areas").frame
    cmd = areas[(areas["area"] == "CMD") & (areas["ranking"] == "absolute")].set_index("method")["estimate"]
    assert cmd["EAP-IG (inputs)"] == pytest.approx(cmd.min())
    assert cmd["Random"] > 0.5 if "Random" in cmd else True
    assert [finding.key for finding in report.findings] == [
        "nearer_than_exact_edges",
        "nearer_than_eap",
        "nearer_than_random",
    ]
    agreement = next(table for table in report.tables if table.key == "agreement").frame
    same = agreement[agreement["method"] == agreement["other"]]
    np.testing.assert_allclose(same["spearman"], 1.0)


def test_the_subject_must_be_compared() -> None:
    lens = Lens(tiny("gpt2"))
    with pytest.raises(UnknownName, match="eap-ig"):
        methods.run(lens, methods.Settings(methods=("eap", "random")), silent)
    with pytest.raises(MechlabError, match="alone"):
        methods.run(lens, methods.Settings(methods=("eap-ig",)), silent)


def test_the_list_of_methods_agrees_with_the_methods() -> None:
    for entry in catalogue.METHODS:
        found = catalogue.method(entry.name)
        assert (found.name, found.line) == (entry.name, entry.line)
        assert found.settings().seed == 0  # every setting has a default
    with pytest.raises(UnknownName, match="acdc"):
        catalogue.method("adcd")


def test_every_quick_method_scores_a_file_of_ones_own_pairs(tmp_path) -> None:
    lens = Lens(tiny("qwen2"))
    own = [lens.model.tokenizer.convert_ids_to_tokens(i) for i in range(10, 14)]
    pair = {
        "clean": " ".join(own),
        "corrupted": " ".join([*own[:2], own[0], own[3]]),
        "answer": f" {own[2]}",
        "foil": f" {own[0]}",
    }
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(pair))
    wiring, task = Wiring.of(lens), load_pairs(lens, path)
    for entry in catalogue.METHODS:
        if entry.cost == "quick":
            method = catalogue.method(entry.name)
            scores = method.score(wiring, task, method.settings())
            assert scores.values.shape == wiring.graph.shape
            assert not scores.values[~wiring.graph.real].any()
            assert scores.top(30).edges.sum() <= 30
