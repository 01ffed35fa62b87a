"""The IOI study: verdicts follow from planted evidence, a random model yields no circuit, the default model runs end to end."""

import dataclasses
import re

import numpy as np
import pytest

from circuits.heads import CLASSES
from circuits.studies import ioi_claims
from circuits.studies.ioi import STUDY, Settings, gather, residual_claims
from circuits.studies.ioi_evidence import Behaviour, Evidence
from mechlab.lens.lens import Lens
from mechlab.models import load, random_twin, tiny
from mechlab.results.study import silent

SMALL = Settings(n_behaviour=8, n_discovery=4, n_evaluation=4, draws=2, top_heads=2, per_class=1, seed=1)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    lens = Lens(tiny("llama"))
    return gather(lens, Lens(random_twin(lens.model, 1)), SMALL.model_copy(update={"min_attention": 0.05}), silent)


def planted(evidence: Evidence, *, effect: float, control: float) -> dict[str, str]:
    """Verdicts when every claim measures ``effect`` and every control ``control`` (with a little spread over prompts)."""
    spread = np.linspace(-0.01, 0.01, 6)
    heads = {"top_heads": [(1, 0)]} | {c.name: [(1, 1)] for c in CLASSES}
    signs = {c.name: c.sign for c in CLASSES}
    names = [*heads, *residual_claims(3)]
    measured = lambda size: {  # noqa: E731
        name: signs.get(name, 1) * (control if name.endswith("_elsewhere") else size) + spread for name in names
    }
    direct = {name: np.full((6, 3, 4), control) + spread[:, None, None] for name in ("model", "twin", "shuffled")}
    direct["model"][:, 1, 1] = effect + spread
    behaviour = {"model": Behaviour(effect + spread, 0.5 + effect / 2 + spread)}
    behaviour |= {
        name: Behaviour(control + spread, 0.5 + control / 2 + spread)
        for name in ("random-weight twin", "shuffled answers")
    }
    found = dataclasses.replace(evidence.discovery, sets=heads)
    return {
        finding.key: finding.verdict
        for finding in ioi_claims.findings(
            dataclasses.replace(
                evidence,
                behaviour=behaviour,
                discovery=found,
                twin_discovery=found,
                changes=measured(effect),
                shuffled=measured(control),
                twin_changes=measured(control),
                random_changes={name: np.stack([measured(control)[name]] * 2) for name in heads},
                random_sets={name: [[(0, 0)], [(0, 1)]] for name in heads},
                direct=direct,
            )
        )
    }


def test_every_claim_can_be_supported_and_can_fail(evidence: Evidence) -> None:
    assert set(planted(evidence, effect=0.8, control=0.1).values()) == {"supported"}
    assert set(planted(evidence, effect=-0.8, control=0.1).values()) == {"not supported"}
    # the same effect in the controls: nothing is shown, whatever its size
    assert "supported" not in planted(evidence, effect=0.8, control=0.8).values()


def test_classes_without_heads_are_inconclusive_and_say_so(evidence: Evidence) -> None:
    bare = dataclasses.replace(evidence.discovery, sets=evidence.discovery.sets | {"induction": []})
    changes = {name: change for name, change in evidence.changes.items() if name != "induction"}
    found = {f.key: f for f in ioi_claims.findings(dataclasses.replace(evidence, discovery=bare, changes=changes))}
    assert found["induction"].verdict == "inconclusive"
    assert "No head qualifies" in found["induction"].statement


def test_a_random_model_shows_no_circuit(evidence: Evidence) -> None:
    """The subject here is itself a random-weight model: none of the claims about heads may be supported."""
    verdicts = {f.key: f.verdict for f in ioi_claims.findings(evidence)}
    assert not [
        key
        for key, verdict in verdicts.items()
        if verdict == "supported" and key in {c.name for c in CLASSES} | {"name_movers_direct"}
    ]


def test_chosen_heads_attend_and_act_as_their_class(evidence: Evidence) -> None:
    found = evidence.discovery
    for index, of_class in enumerate(CLASSES):
        for layer, head in found.sets[of_class.name]:
            assert found.attention[index, :, layer, head].mean() >= 0.05
            assert of_class.sign * found.effects[of_class.name][layer, head] > 0
    for name, sets in evidence.random_sets.items():
        for drawn in sets:
            assert not set(drawn) & set(found.sets[name])


def test_exhaustive_gives_the_same_numbers(evidence: Evidence) -> None:
    lens = Lens(tiny("llama"))
    settings = SMALL.model_copy(update={"min_attention": 0.05, "exhaustive": True})
    slow = gather(lens, Lens(random_twin(lens.model, 1)), settings, silent)
    assert slow.discovery.sets == evidence.discovery.sets
    for name, change in evidence.changes.items():
        assert abs(change - slow.changes[name]).max() < 1e-4


def test_discovery_and_evaluation_prompts_differ(evidence: Evidence) -> None:
    texts = [set(map("".join, task.clean.pieces)) for task in (evidence.discovery.task, evidence.evaluation)]
    assert not texts[0] & texts[1]


@pytest.mark.default_model
def test_default_model_end_to_end() -> None:
    lens = Lens(load())
    stages: list[str] = []
    settings = SMALL.model_copy(update={"n_behaviour": 60, "n_discovery": 2})
    report = STUDY.run(lens, settings, lambda label, _done, _total: stages.append(label))
    verdicts = {finding.key: finding for finding in report.findings}
    assert len(verdicts) == 12
    assert verdicts["behaviour_logit_difference"].verdict == "supported"
    assert verdicts["behaviour_accuracy"].estimate >= 0.85
    assert verdicts["resid_s2"].verdict == "supported"
    heads = {finding.key: re.findall(r"L(\d+)H(\d+)", finding.statement) for finding in report.findings}
    assert ("17", "4") in heads["induction"]  # also among the top induction heads on repeated random tokens
    assert {table.key for table in report.tables} >= {"behaviour", "residual", "heads", "direct", "classes", "claims"}
    assert {"behaviour", "heads", "heads (twin)", "residual stream", "evaluation"} <= set(stages)
    residual = next(table for table in report.tables if table.key == "residual").frame
    assert len(residual) == 30 * 5
