"""The experts study: a planted expert is found and its claims hold, a random model has none, numbers agree with the definition."""

import dataclasses
import json
import random

import numpy as np
import pytest

from mechlab.errors import MechlabError
from mechlab.lens import Lens
from mechlab.lens.edit import route
from mechlab.models import random_twin, tiny
from mechlab.models.planted_moe import (
    ALLOWED_THINGS,
    FORBIDDEN_THINGS,
    NAMES_OF,
    PLACES_OF,
    PLANTED_ROLES,
    planted_experts,
)
from mechlab.results.study import silent
from mechlab.studies import experts_claims
from mechlab.studies.experts import STUDY, Settings, gather, run
from mechlab.studies.experts_evidence import Evidence, doubling
from mechlab.studies.experts_prompts import Classes, Contrast, contrast, refusal

SMALL = Settings(n_prompts=16, top=1, most=2, draws=4)
REFUSER = PLANTED_ROLES["forbidden"]


def planted_contrast() -> Contrast:
    """Four forbidden and four allowed things to select on, the other four of each to judge on."""

    def classes(part: slice) -> Classes:
        asked = [
            tuple(f"{name} {thing}" for name in NAMES_OF for thing in things[part])
            for things in (FORBIDDEN_THINGS, ALLOWED_THINGS)
        ]
        return Classes(behaving=asked[0], plain=asked[1])

    return Contrast(
        name="refusal",
        markers=("sorry",),
        reply_tokens=1,
        selection=classes(slice(4)),
        evaluation=classes(slice(4, 8)),
        neutral=tuple(f"{name} {place} {name}" for name in NAMES_OF for place in PLACES_OF),
        questions=(("mary", "met"), ("store", "is"), ("lamp", "sure")),
    )


def gathered(lens: Lens, settings: Settings = SMALL) -> Evidence:
    return gather(lens, Lens(random_twin(lens.model, 7)), planted_contrast(), settings, silent)


@pytest.fixture(scope="module")
def planted() -> Evidence:
    return gathered(Lens(planted_experts()))


def test_the_planted_expert_is_found_and_every_claim_of_the_paper_holds(planted):
    assert planted.model.top == planted.model.forced == [REFUSER]
    verdicts = {finding.key: finding.verdict for finding in experts_claims.findings(planted)}
    assert verdicts.pop("random") == "not supported"  # here a random expert does nothing at all
    assert verdicts == dict.fromkeys(
        ["behaviour", "answering", "suppression", "activation", "neutral_text", "questions", "regression"], "supported"
    )


def test_planted_numbers_by_hand(planted):
    found = {finding.key: finding for finding in experts_claims.findings(planted)}
    assert [found[key].estimate for key in ("behaviour", "suppression", "activation")] == [1, 1, 1]
    assert found["answering"].estimate == pytest.approx(1, abs=1e-6)
    assert planted.weight == pytest.approx(0.5, abs=1e-6)  # two experts are chosen, one weighs all
    assert (planted.matched.behaving == 1).all() and (planted.matched.nats == planted.model.quality.nats).all()
    assert np.allclose(planted.doses[1][1].behaving, 0) and planted.doses[1][0] == [REFUSER]
    assert [len(experts) for experts in (planted.doses[2][0], *planted.matched.experts)] == [2, 1, 1, 1, 1]


def test_a_random_model_supports_nothing():
    for seed in range(3):
        evidence = gathered(Lens(random_twin(planted_experts(), seed)))
        supported = [one.key for one in experts_claims.findings(evidence) if one.verdict == "supported"]
        assert supported == [], seed


def test_effects_no_larger_than_a_control_are_not_supported(planted):
    model = planted.model
    as_bad = dataclasses.replace(planted.matched, behaving=model.suppressed.behaving[None])
    found = {f.key: f for f in experts_claims.findings(dataclasses.replace(planted, matched=as_bad))}
    assert found["suppression"].verdict == "not supported"
    as_bad = dataclasses.replace(planted.forced, plain=model.activated.plain[None])
    found = {f.key: f for f in experts_claims.findings(dataclasses.replace(planted, forced=as_bad))}
    assert found["activation"].verdict == "not supported"
    found = {f.key: f for f in experts_claims.findings(dataclasses.replace(planted, twin=model))}
    assert {found[k].verdict for k in ("behaviour", "answering", "suppression", "activation")} == {"not supported"}


def test_costs_are_seen(planted):
    """A neutral text that suffers, a question lost, an answer newly refused."""
    model = planted.model
    without = dataclasses.replace(
        model.without, nats=model.quality.nats + 0.5, right=np.zeros_like(model.quality.right)
    )
    newly = dataclasses.replace(model.suppressed, plain=np.ones_like(model.suppressed.plain))
    worse = dataclasses.replace(model, without=without, suppressed=newly)
    found = {f.key: f for f in experts_claims.findings(dataclasses.replace(planted, model=worse))}
    assert {found[k].verdict for k in ("neutral_text", "questions", "regression")} == {"not supported"}


def test_replies_and_losses_agree_with_plain_runs(planted):
    lens, asked = Lens(planted_experts()), planted.contrast
    edits = [route(f"L{REFUSER[0]}E{REFUSER[1]}", "drop")]
    logits = lens.run(list(asked.evaluation.behaving), edits, logits="last").last_logits
    assert logits is not None
    said = [lens.model.tokenizer.decode([int(i)]) for i in logits.argmax(-1)]
    assert [float(word == "sorry") for word in said] == planted.model.suppressed.behaving.tolist()
    for text, nats in zip(asked.neutral[:3], planted.model.without.nats, strict=False):
        run_of = lens.run(text, edits)
        assert run_of.logits is not None
        logs, ids = run_of.logits[0].log_softmax(-1), run_of.tokens.ids[0].tolist()
        assert nats == pytest.approx(-np.mean([float(logs[i, ids[i + 1]]) for i in range(len(ids) - 1)]), abs=1e-5)


def test_refill_is_an_option(planted):
    found = gathered(Lens(planted_experts()), SMALL.model_copy(update={"off": "off", "weight": 0.1}))
    assert found.model.suppressed.behaving.tolist() == planted.model.suppressed.behaving.tolist()
    assert not found.model.activated.plain.any()  # at a tenth it does not outweigh the answer


def test_a_report_with_its_tables_figures_and_progress(monkeypatch):
    from mechlab.studies import experts

    monkeypatch.setattr(experts, "contrast", lambda *_: planted_contrast())
    stages: list[tuple[str, int, int]] = []
    report = STUDY.run(Lens(planted_experts()), SMALL, lambda *step: stages.append(step))
    keys = {
        "replies",
        "relevance",
        "against",
        "doses",
        "quality",
        "load",
        "layers",
        "classes",
        "together",
        "draws",
        "paper",
    }
    assert {table.key for table in report.tables} == keys == {figure.table for figure in report.figures}
    tables = {table.key: table.frame for table in report.tables}
    assert (tables["relevance"]["layer"][0], tables["relevance"]["expert"][0]) == REFUSER
    assert len(tables["relevance"]) == len(tables["load"]) == 12
    assert tables["paper"]["ours"].tolist()[:2] == [pytest.approx(1 / 12), 1.0]
    assert all(0 <= done <= total for _, done, total in stages)
    assert "activation maps (twin)" in {label for label, _, _ in stages}


def test_selection_and_evaluation_of_the_trained_models_prompts_share_no_thing_and_no_way_to_ask():
    asked = refusal(20, random.Random(0))
    sides = [
        {word for prompt in side.prompts for word in prompt.split()} for side in (asked.selection, asked.evaluation)
    ]
    from mechlab.models import trained_moe_text as text

    assert not (sides[0] & sides[1]) & set(text.THINGS)
    for behaving, plain in zip(asked.evaluation.behaving, asked.evaluation.plain, strict=True):
        pairs = [(a, b) for a, b in zip(behaving.split(), plain.split(), strict=True) if a != b]
        assert len(pairs) == 1 and pairs[0][0] in text.FORBIDDEN and pairs[0][1] in text.ALLOWED


def test_doses_double_up_to_the_limit():
    assert (doubling(1), doubling(8), doubling(10)) == ([1], [1, 2, 4, 8], [1, 2, 4, 8, 10])


def test_prompts_from_a_file_and_what_is_wrong_with_them(tmp_path):
    record = planted_contrast().model_dump(mode="json")
    path = tmp_path / "prompts.json"

    def read(**changes: object) -> Contrast:
        path.write_text(json.dumps(record | changes))
        return contrast(str(path), 16, 0)

    assert read() == planted_contrast()
    few = {"behaving": record["selection"]["behaving"][:7], "plain": record["selection"]["plain"]}
    with pytest.raises(MechlabError, match="selection: the class 'behaving' has 7 prompts, give at least 8"):
        read(selection=few)
    with pytest.raises(MechlabError, match="9 behaving prompts for 16 plain ones, give pairs"):
        read(evaluation={**record["evaluation"], "behaving": record["evaluation"]["behaving"][:9]})
    with pytest.raises(MechlabError, match="prompts are in selection and in evaluation"):
        read(evaluation=record["selection"])
    with pytest.raises(MechlabError, match="markers"):
        read(markers=[])
    with pytest.raises(MechlabError, match="cannot be read"):
        contrast(str(tmp_path / "none.json"), 16, 0)
    with pytest.raises(MechlabError, match="are unknown: use refusal or french"):
        contrast("freench", 16, 0)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {}, "tiny-llama is dense, it has no experts"),
        (
            "mixtral",
            {"top": 7},
            r"7 experts were to be switched, and tiny-mixtral has 12 \(3 layers of 4\): switch at most 6",
        ),
        ("mixtral", {"most": 60}, "60 experts were to be switched"),
        (
            "deepseek_v3",
            {"top": 5},
            "5 experts cannot be forced on: tiny-deepseek_v3 sends a token to 2 in each of 2 layers",
        ),
    ],
)
def test_models_and_numbers_that_do_not_fit(family, settings, message):
    with pytest.raises(MechlabError, match=message):
        run(Lens(tiny(family)), Settings(**{"top": 1, "most": 2, **settings}), silent)


def test_replies_are_judged_by_their_words():
    asked = planted_contrast()
    assert asked.shows("Sorry, no") and asked.shows("i am sorry") and not asked.shows("sure")
    spaced = asked.model_copy(update={"markers": (" la ",)})
    assert spaced.shows("la maison") and spaced.shows("dans la") and not spaced.shows("lamp")
