"""The subspace-illusion study: its prompts and rules, verdicts from planted evidence, a random model that supports nothing."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from circuits.studies import subspace_illusion_claims as claims
from circuits.studies.subspace_illusion import Settings, gather, run
from circuits.studies.subspace_illusion_data import chosen_layer, order_labels, order_pairs, profile, reader_heads
from circuits.studies.subspace_illusion_evidence import MLP, RESIDUAL, Evidence, Side
from mechlab.lens.edit import patch
from mechlab.lens.lens import Lens
from mechlab.models import load, random_twin, tiny
from mechlab.patching.subspace import prompts_of
from mechlab.patching.subspace_check import FULL, NULL, ROW, SHUFFLED, SHUFFLED_MLP, WHOLE
from mechlab.results.study import silent

SMALL = Settings(n_training=8, n_evaluation=8, n_selection=4, steps=4, batch=4, draws=3, wide=2)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    lens = Lens(tiny("llama"))
    return gather(lens, Lens(random_twin(lens.model, 1)), SMALL, silent)


def test_only_the_order_of_the_names_differs() -> None:
    task = order_pairs(Lens(tiny("gpt2")), 12, seed=3, split="discovery")
    own, other = order_labels(task)
    assert own == [i % 2 for i in range(12)]
    assert other == [1 - one for one in own]
    for i in range(12):
        a, b = (list(side.pieces[i]) for side in (task.clean, task.corrupted))
        io, s1 = task.clean.labels["IO"][i], task.clean.labels["S1"][i]
        assert a[io] != a[s1]
        assert [a[s1], a[io]] == [b[io], b[s1]]
        a[io], a[s1] = a[s1], a[io]
        assert a == b
        assert b[task.corrupted.labels["IO"][i]] == task.clean.pieces[i][io]
        assert b[task.corrupted.labels["S2"][i]] == b[task.corrupted.labels["S1"][i]]
        assert task.corrupted.labels["S1+1"][i] == task.corrupted.labels["S1"][i] + 1


def test_training_and_evaluation_share_no_prompt(evidence: Evidence) -> None:
    sides = [prompts_of(task.clean, task.corrupted) for task in (evidence.training, evidence.evaluation)]
    assert not sides[0] & sides[1]
    for one in evidence.model.patched.values():
        assert one.subspace.seen == sides[0]


def test_the_rules_for_layer_and_readers() -> None:
    assert chosen_layer(pd.DataFrame({"layer": range(4), "change": [0.1, 0.3, 0.2, 0.9]})) == 1  # not the last one
    lens = Lens(tiny("llama"))
    task = order_pairs(lens, 4, seed=0, split="discovery")
    assert all(layer > 0 for layer, _ in reader_heads(lens, task, 0, 5, 0.2))
    everyone = reader_heads(lens, task, 1, lens.model.n_heads, 1.1)  # nobody attends that much: all by their effect
    assert sorted(everyone) == [(2, head) for head in range(lens.model.n_heads)]
    assert reader_heads(lens, task, 1, 4, 0.0) == everyone


def test_the_null_part_at_the_mlp_has_exactly_no_effect(evidence: Evidence) -> None:
    patched = evidence.model.patched[MLP]
    assert abs(patched.changes[NULL]).max() < 1e-5 < abs(patched.changes[WHOLE]).max()
    assert patched.check is not None
    assert patched.check.row_norm**2 + patched.check.null_norm**2 == pytest.approx(1)


def test_a_random_model_supports_nothing(evidence: Evidence) -> None:
    lens = Lens(tiny("gpt2", 1))
    settings = SMALL.model_copy(update={"seed": 1, "steps": 10})
    for one in (evidence, gather(lens, Lens(random_twin(lens.model, 100)), settings, silent)):
        assert [finding.key for finding in claims.findings(one) if finding.verdict == "supported"] == []


def planted(evidence: Evidence, model: dict[str, dict[str, float]], *, twin: float = 0.0) -> dict[str, str]:
    """Verdicts when a patch makes the logit difference fall by the given numbers (with a little spread), all else by nothing."""
    n = len(evidence.evaluation)
    spread = np.linspace(-0.01, 0.01, n)

    def side(given: Side, falls: dict[str, dict[str, float]]) -> Side:
        patched = {
            name: dataclasses.replace(
                one,
                changes={what: -falls.get(name, {}).get(what, 0.0) + spread for what in one.changes},
                random=np.zeros((3, n)) + spread,
            )
            for name, one in given.patched.items()
        }
        return dataclasses.replace(
            given,
            before=3 * bool(falls) + spread,
            patched=patched,
            random_readers=np.full((3, n), -0.5) + spread if len(given.random_readers) else given.random_readers,
        )

    twins = {name: {WHOLE: twin} for name in (RESIDUAL, MLP)} if twin else {}
    found = claims.findings(
        dataclasses.replace(
            evidence,
            model=side(evidence.model, model),
            twin=side(evidence.twin, twins),
            shuffled_answers=spread,
        )
    )
    return {one.key: one.verdict for one in found if one.key != "mlp_apart"}


AS_IN_THE_PAPER = {
    RESIDUAL: {WHOLE: 4.0, ROW: 3.6, NULL: 0.2, FULL: 3.5},
    MLP: {WHOLE: 1.5, ROW: 0.3, FULL: -0.2, SHUFFLED_MLP: 1.0},
}


def test_every_claim_can_be_supported_and_can_fail(evidence: Evidence) -> None:
    assert set(planted(evidence, AS_IN_THE_PAPER).values()) == {"supported"}
    none = {RESIDUAL: {WHOLE: 0.01}, MLP: {WHOLE: 0.01}}
    verdicts = planted(evidence, none)
    assert verdicts.pop("behaviour") == "supported"
    assert verdicts.pop("residual_kept") == verdicts.pop("mlp_lost") == "inconclusive"  # nothing to have a share of
    assert set(verdicts.values()) == {"not supported"}


@pytest.mark.parametrize(
    ("where", "what", "fall", "key"),
    [
        (RESIDUAL, ROW, 2.0, "residual_kept"),  # the readers' part loses half
        (RESIDUAL, SHUFFLED, 4.1, "residual"),  # a fit to other prompts' answers does as much
        (MLP, FULL, 1.6, "mlp"),  # the whole MLP does as much: no illusion
        (MLP, ROW, 1.2, "mlp_lost"),  # what is read carries it
        (MLP, f"{SHUFFLED_MLP}, {FULL}", 1.1, "mlp_shuffled"),
    ],
)
def test_each_control_decides(evidence: Evidence, where: str, what: str, fall: float, key: str) -> None:
    changed = {name: dict(falls) for name, falls in AS_IN_THE_PAPER.items()}
    changed[where][what] = fall
    assert planted(evidence, changed)[key] == "not supported"


def test_a_twin_that_does_as_well_takes_support_away(evidence: Evidence) -> None:
    verdicts = planted(evidence, AS_IN_THE_PAPER, twin=5.0)
    assert {verdicts[key] for key in ("residual", "mlp", "mlp_shuffled")} == {"not supported"}


def test_the_null_part_tells_apart_only_if_the_row_part_does_not(evidence: Evidence) -> None:
    """AUC of planted projections: 1 against chance, and 1 against 1."""
    one = evidence.model.patched[MLP]
    noise = np.random.default_rng(0).normal(size=(16, 1))
    for row, verdict in ((noise, "supported"), (one.labels[:, None] * 2, "not supported")):
        projections = {**one.projections, NULL: one.labels[:, None] * 3, ROW: row}
        patched = dataclasses.replace(
            one, projections=projections, changes={**one.changes, WHOLE: np.linspace(-2.1, -1.9, 8)}
        )
        model = dataclasses.replace(evidence.model, patched={**evidence.model.patched, MLP: patched})
        found = {f.key: f for f in claims.findings(dataclasses.replace(evidence, model=model))}["mlp_apart"]
        assert found.estimate > 0.25 if verdict == "supported" else found.estimate == 0
        assert found.verdict in (verdict, "inconclusive")
        assert (found.verdict == "not supported") == (verdict == "not supported")


def test_a_run_gives_a_whole_report() -> None:
    report = run(Lens(tiny("llama")), SMALL.model_copy(update={"n_evaluation": 4, "steps": 1}), silent)
    keys = [table.key for table in report.tables]
    assert keys == ["checks", "effects", "separation", "projections", "paper", "profile", "toy"]
    assert len(report.findings) == 8
    paper = report.tables[4].frame.set_index("quantity")
    assert paper.loc["FLDD, MLP: null part", "ours"] == pytest.approx(0, abs=1e-2)
    assert report.as_json()


def test_on_the_default_model_the_order_is_carried_two_thirds_of_the_way_up() -> None:
    lens = Lens(load())
    task = order_pairs(lens, 4, seed=0, split="discovery")
    layer = chosen_layer(profile(lens, task, silent))
    assert 18 <= layer <= 22
    points = lens.effects(task, [patch(f"L{layer}.resid_post@END", "corrupted")], base="clean").points()
    assert points["change"][0] < -1
