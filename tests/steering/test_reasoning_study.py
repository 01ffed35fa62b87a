"""The reasoning-vectors study: questions with known answers, every number measured where it says, and verdicts that follow the evidence."""

import math
from dataclasses import replace

import numpy as np
import pytest

from mechlab.errors import MechlabError, PromptError, UnknownName
from mechlab.lens.lens import Lens
from mechlab.models import random_twin
from steering.studies import reasoning_vectors_claims as claims
from steering.studies.reasoning_tasks import questions, random_ids
from steering.studies.reasoning_vectors import STUDY, Settings, gather, run
from steering.studies.reasoning_vectors_evidence import Answered, Evidence, Matched, TaskEvidence
from steering.studies.reasoning_vectors_tables import kl_exponent

SMALL = Settings(tasks=("inductive",), n_fit=5, n_evaluation=4, strengths=(-0.5, -0.1, 0.1, 0.5), kl=0.02, draws=2)


@pytest.fixture(scope="module")
def report(lens):
    return run(lens, SMALL, lambda label, done, total: None)  # noqa: ARG005


def test_the_answer_of_an_inductive_question_is_who_was_named_once(lens):
    asked = questions(lens, "inductive", 6, seed=3)
    for text, wrong, answer, foils, row, length in zip(
        asked.texts,
        asked.wrong_texts,
        asked.answers,
        asked.foils,
        asked.prompts.ids,
        asked.prompts.lengths,
        strict=True,
    ):
        ids = row[:length].tolist()
        assert ids.count(int(answer)) == 1 and ids.count(int(foils[0])) == 2
        assert text != wrong and text.split()[:-1] == wrong.split()[:-1]
    assert len(set(asked.texts)) == 6


def test_questions_are_seeded_different_and_kept_apart(lens):
    fit = questions(lens, "inductive", 6, seed=0)
    assert fit.texts == questions(lens, "inductive", 6, seed=0).texts
    other = questions(lens, "inductive", 20, seed=0, apart_from=fit.texts)
    assert not set(fit.texts) & set(other.texts)
    with pytest.raises(UnknownName, match="deductive"):
        questions(lens, "deductiv", 2)
    with pytest.raises(PromptError, match="ask for fewer"):
        questions(lens, "inductive", 10**6)
    with pytest.raises(PromptError, match="one token each"):
        questions(lens, "deductive", 2)  # this tokenizer does not know the animals


def test_random_strings_are_ordinary_tokens(lens):
    found = random_ids(lens, [3, 7], seed=1)
    assert [len(row) for row in found] == [3, 7] and found == random_ids(lens, [3, 7], seed=1)
    assert not {i for row in found for i in row} & set(lens.model.tokenizer.all_special_ids)


def test_a_report_of_a_tiny_model_says_what_it_measured(report):
    assert [one.key for one in report.findings] == ["inductive_gain", "entropy"]
    tables = {table.key: table.frame for table in report.tables}
    assert {figure.table for figure in report.figures} == set(tables)
    equal = tables["equal_kl"]
    assert equal["vector"].value_counts().to_dict() == {
        "its own vector": 1,
        claims.WRONG_LAYER: 1,
        claims.RANDOM: 2,
        claims.SHUFFLED: 2,
        claims.TWIN: 1,
    }
    reached = equal[equal["strength"].notna()]
    assert len(reached) >= 5 and np.allclose(reached["kl"], SMALL.kl, rtol=0.11)
    by_strength = tables["strengths"].set_index("strength")
    assert by_strength.loc[0.0, "kl"] == 0 and list(by_strength.index) == [-0.5, -0.1, 0.0, 0.1, 0.5]
    assert report.config["kl"] == SMALL.kl


def test_numbers_are_those_of_plain_runs(lens):
    fit = questions(lens, "inductive", 5, seed=0)
    asked = questions(lens, "inductive", 4, seed=1, apart_from=fit.texts)
    evidence = gather(lens, {"inductive": (fit, asked)}, SMALL, lambda label, done, total: None)  # noqa: ARG005
    one = evidence.tasks[0]
    for i in range(4):
        logits = lens.run(asked.prompts.select([i])).last_logits[0].double()
        right, wrong = logits[asked.answers[i]], logits[asked.foils[i]]
        assert len(wrong) == 2
        share_of_right = right.exp() / (right.exp() + wrong.exp().sum())
        assert one.base.share[i] == pytest.approx(share_of_right.item(), rel=1e-4)
        assert one.base.right[i] == float(right > wrong.max())
        p = logits.softmax(-1)
        assert one.base.entropy[i] == pytest.approx(-(p * p.log2()).sum().item(), rel=1e-4)
    assert (evidence.layer, evidence.wrong_layer) == (1, 2)
    assert one.by_strength[0.5].kl.mean() > one.by_strength[0.1].kl.mean() > 0


def test_nothing_is_supported_on_a_random_twin(lens):
    twin = Lens(random_twin(lens.model, seed=4))
    report = run(twin, SMALL, lambda label, done, total: None)  # noqa: ARG005
    assert "supported" not in [one.verdict for one in report.findings]


def test_a_layer_without_a_later_one_is_refused(lens):
    with pytest.raises(MechlabError, match="at most 1"):
        run(lens, SMALL.model_copy(update={"layer": 2}), lambda label, done, total: None)  # noqa: ARG005


def share(mean: float, n: int = 12) -> Answered:
    wiggle = np.linspace(-0.01, 0.01, n)
    return Answered(np.ones(n), mean + wiggle, np.full(n, 0.1), 3 + wiggle)


def evidence_of(gain: float = 0.1, random: float = 0.0, **others: float) -> Evidence:
    at = lambda mean: Matched(1.0, share(mean))  # noqa: E731
    strong = replace(share(0.5), entropy=share(0.5).entropy + 1, kl=np.full(12, 0.4))
    gentle = replace(share(0.5), entropy=share(0.5).entropy + 0.01)
    one = TaskEvidence(
        task="inductive",
        base=share(0.5),
        by_strength={-0.2: strong, -0.1: gentle, 0.1: gentle, 0.2: strong},
        own=at(0.5 + gain),
        cross=at(0.5 + others.get("cross", 0.0)),
        cross_name="deductive",
        wrong_layer=at(0.5 + others.get("wrong_layer", 0.0)),
        random=[at(0.5), at(0.5 + random)],
        shuffled=[at(0.5), at(0.5 + others.get("shuffled", 0.0))],
        twin_base=share(0.5),
        twin_extremes=[share(0.5), share(0.5)],
        twin=at(0.5 + others.get("twin", 0.0)),
        separation=1.0,
    )
    return Evidence({"kl": 0.1, "seed": 0}, 15, 25, [one])


def test_verdicts_follow_the_evidence():
    verdicts = lambda evidence: [one.verdict for one in claims.findings(evidence)]  # noqa: E731
    assert verdicts(evidence_of()) == ["supported", "supported"]
    assert verdicts(evidence_of(gain=0.01))[0] == "not supported"
    assert verdicts(evidence_of(gain=-0.1))[0] == "not supported"
    for name in ("random", "cross", "wrong_layer", "shuffled", "twin"):
        assert verdicts(evidence_of(**{name: 0.2}))[0] != "supported", name
    missing = evidence_of()
    unreached = replace(missing, tasks=[replace(missing.tasks[0], own=None)])
    assert verdicts(unreached)[0] == "inconclusive"


def test_kl_exponent_by_hand():
    assert kl_exponent(evidence_of().tasks[0]) == pytest.approx(2)
    only_one = replace(evidence_of().tasks[0], by_strength={0.1: share(0.5)})
    assert math.isnan(kl_exponent(only_one))


def test_the_study_is_in_the_list():
    from apps.studies import entry

    listed = entry(STUDY.name)
    assert (listed.paper, listed.line) == (STUDY.paper, STUDY.line)
