"""The activation-reasoning study: questions, detectors and numbers on a tiny model that knows the words; claims on made-up evidence."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from mechlab.errors import MechlabError, PromptError
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import tiny
from mechlab.models.model import Model
from mechlab.models.tiny_models import perturb_constants
from mechlab.models.twin import fresh
from mechlab.models.words import WORDS, word_tokenizer
from mechlab.results.report import Report
from mechlab.results.study import Progress
from mechlab.views.page import report_page
from steering.rules.chain import chain
from steering.rules.clause import Atom
from steering.studies import activation_reasoning_claims as claims
from steering.studies import activation_reasoning_tasks as tasks
from steering.studies.activation_reasoning import STUDY, Settings, gather, run
from steering.studies.activation_reasoning_actions import ActionBench
from steering.studies.activation_reasoning_detection import Reader, shuffled_rules, told
from steering.studies.activation_reasoning_evidence import Actions, Evidence, Steered, Suite, Told

SMALL = Settings(
    detectors=("mean-difference", "pca"), hops=(1, 2), chains=3, making=3, calibrating=2, evaluation=2, kl=0.02, draws=2
)
SIZES = (SMALL.making, SMALL.calibrating, SMALL.evaluation)
AT = Site("resid_post", 1)
SILENT: Progress = lambda label, done, total: None  # noqa: E731, ARG005


@pytest.fixture(scope="module")
def knowing() -> Lens:
    """A tiny Llama whose words are the study's."""
    asked = " ".join([tasks.PLACES, *tasks.MAKING, tasks.EVALUATION, *tasks.ASKED.values(), "Old New South North"])
    names = tasks.invented_names()
    spoken = [
        *re.findall(r"[A-Za-z]+", asked),
        "Every",
        "So",
        *names[:30],
        *(name.capitalize() for name in names[-160:]),
    ]
    tokenizer = word_tokenizer(tuple(dict.fromkeys([*WORDS, *spoken])))
    config = tiny("llama").hf.config
    config.vocab_size = len(tokenizer)
    hf = fresh(config, torch.float32, 0)
    hf.config.architectures = [type(hf).__name__]
    perturb_constants(hf, 0)
    return Lens(Model("tiny-knowing", "tiny", hf, tokenizer))


@pytest.fixture(scope="module")
def report(knowing: Lens) -> Report:
    return run(knowing, SMALL, SILENT)


def test_parts_share_no_statement_and_every_question_follows_from_its_concept(knowing: Lens) -> None:
    for domain in tasks.domains(knowing, SMALL.hops, SMALL.chains, SIZES, seed=1):
        parts = [domain.making, domain.calibrating, *domain.evaluation.values()]
        statements = [item.statement for part in parts for item in part]
        assert len(set(statements)) == len(statements)
        for part in parts:
            for item in part:
                closure = chain([Atom(item.concept, (tasks.WHO,))], domain.rules)
                for question in item.questions:
                    right, foil = Atom(question.right, (tasks.WHO,)), Atom(question.foil, (tasks.WHO,))
                    assert right in closure and foil not in closure
                    steps = len(closure.proof(right))  # places: the cue itself is the first hop, and has no rule
                    assert steps == question.hops + (tasks.CHAINS in domain.evaluation)


def test_a_statement_about_kinds_tells_both_chains_and_ends_with_its_own_individual(knowing: Lens) -> None:
    domain = tasks.kinds(knowing.model, (1, 2), 3, SIZES, seed=2)
    for item in domain.evaluation[tasks.CHAINS]:
        sentences = item.statement.rstrip(".").split(". ")
        assert len(sentences) == 2 * 2 + 2 and sentences[-1].endswith(f"is a {item.concept}")
        implied = dict(re.findall(r"Every (\w+) is a (\w+)", item.statement))
        kind = item.concept
        for hops in (1, 2):
            kind = implied[kind]
            assert item.at(hops).right == kind and item.at(hops).foil in implied.values()
            assert item.at(hops).text.startswith(item.statement) and item.at(hops).text.endswith("is also a")


def test_a_tokenizer_that_knows_no_invented_name_is_refused(lens: Lens) -> None:
    with pytest.raises(PromptError, match="fewer chains or hops"):
        tasks.kinds(lens.model, (1, 2), 3, SIZES)


def test_answers_by_rules_by_hand() -> None:
    question = tasks.Question(2, "?", "b", "c", " b", " c")
    item = tasks.Item("text", "a", (question,))
    it = lambda *names: chain([Atom(name, (tasks.WHO,)) for name in names], ())  # noqa: E731
    found = told([item] * 4, [it("a", "b"), it("c"), it(), it("b", "c")])
    assert found.hit.tolist() == [1, 0, 0, 0]
    assert found.right[2].tolist() == [1, 0, 0.5, 0.5]


def test_shuffled_rules_keep_premises_and_conclusions(knowing: Lens) -> None:
    rules = tasks.places(knowing.model).rules
    dealt = shuffled_rules(rules, 3)
    assert [one.premises for one in dealt] == [one.premises for one in rules]
    assert sorted(one.conclusion for one in dealt) == sorted(one.conclusion for one in rules)
    assert [one.conclusion for one in dealt] != [one.conclusion for one in rules]


def test_a_report_of_a_tiny_model_says_what_it_measured(report: Report) -> None:
    keys = [one.key for one in report.findings]
    assert keys == ["base_decay", "kinds_gain", "named_gain", "indirect_gain", "indirect_detection", "action"]
    tables = {table.key: table.frame for table in report.tables}
    assert {figure.table for figure in report.figures} == set(tables)
    accuracy = tables["accuracy"].set_index(["suite", "way", "hops"])["accuracy"]
    assert (accuracy.xs("rules over true concepts", level="way") == 1).all()
    proofs = tables["proofs"]
    assert len(proofs) == 3 * 2 + 12 * 2 + 12 * 3 and (proofs["flaw"] == "").all()
    assert (proofs["steps"] == [0 if not d else 3 for d in proofs["detected"]]).all()
    reached = tables["action"].dropna()
    assert np.allclose(reached["kl"], SMALL.kl, rtol=0.11)
    assert STUDY.title in report_page(report)


def test_a_model_with_random_weights_has_no_countries_behind_its_cues(report: Report) -> None:
    verdicts = {one.key: one.verdict for one in report.findings}
    assert "supported" not in [verdicts[key] for key in ("named_gain", "indirect_gain", "indirect_detection", "action")]


def test_base_accuracy_is_that_of_plain_runs(knowing: Lens) -> None:
    asked = tasks.domains(knowing, SMALL.hops, SMALL.chains, SIZES, seed=0)
    evidence = gather(knowing, asked[:1], SMALL, SILENT)
    items = asked[0].evaluation[tasks.CHAINS]
    for hops in SMALL.hops:
        for item, found in zip(items, evidence.suites[0].base[hops], strict=True):
            question = item.at(hops)
            run_alone = knowing.run(question.text)
            assert run_alone.last_logits is not None
            logits = run_alone.last_logits[0]
            right, foil = (tasks.first_token(knowing.model, text) for text in (question.right_text, question.foil_text))
            assert found == float(logits[right] > logits[foil])


def test_a_word_at_the_end_of_its_statement_is_detected_and_shuffled_labels_are_not(knowing: Lens) -> None:
    """Cities of the making items again: a detector must find what it was made from."""
    domain = tasks.places(knowing.model)
    same = replace(domain, calibrating=domain.making, evaluation={tasks.NAMED: domain.making})
    reader = Reader(knowing, same, AT, 5)
    own = reader.detectors("logistic")
    hits = lambda detectors: float(reader.told(tasks.NAMED, detectors).hit.mean())  # noqa: E731
    assert hits(own) > 0.85
    assert hits(reader.random(own, 0)) < 0.6 and hits(reader.shuffled("logistic", 0)) < 0.3


def test_actions_follow_the_fact_and_other_facts_have_other_vectors(knowing: Lens) -> None:
    reader = Reader(knowing, tasks.places(knowing.model), AT, 5)
    bench = ActionBench(reader, reader.detectors("mean-difference"), 0.02)
    assert list(bench.vectors) == ["asia", "europe", "north_america", "south_america"]
    for shift in (1, 2, 3):
        other = bench.of_other_facts(shift)
        for name, vector in bench.vectors.items():
            assert torch.allclose(other[name][AT].norm(), vector[AT].norm(), rtol=1e-4)
            assert torch.cosine_similarity(other[name][AT], vector[AT], dim=0) < 0.99


def test_a_layer_the_model_lacks_is_refused(knowing: Lens) -> None:
    with pytest.raises(MechlabError, match="counted from 0"):
        run(knowing, SMALL.model_copy(update={"layer": 3}), SILENT)


def evidence_of(rules: float = 0.9, **controls: float) -> Evidence:
    n = 20
    at = lambda mean: np.clip(mean + np.tile([-0.02, 0.02], n // 2), 0, 1)  # noqa: E731
    told_at = lambda mean: Told(at(mean), {1: at(mean), 3: at(mean)})  # noqa: E731
    get = lambda name: told_at(controls.get(name, 0.5 if name != "twin" else 0.4))  # noqa: E731
    base = {1: at(0.8), 3: at(controls.get("base", 0.5))}
    suites = [
        Suite(
            name=name,
            base=base,
            told=told_at(rules),
            oracle=told_at(1.0),
            direct=base,
            shuffled_labels=[told_at(0.5), get("labels")],
            random=[told_at(0.5), get("random")],
            shuffled_rules=[told_at(0.5), get("dealt")],
            by_detector={"logistic": told_at(rules)},
            twin_base={1: at(0.4), 3: at(0.4)},
            twin=get("twin"),
            proofs=[],
        )
        for name in (tasks.CHAINS, tasks.NAMED, tasks.INDIRECT)
    ]
    acted = lambda gain: Steered(at(0.3), at(0.3 + gain), at(0.1))  # noqa: E731
    actions = Actions(
        acted(0.2), [acted(0.0), acted(controls.get("act", 0.0))], [acted(controls.get("other", 0.0))], acted(0.0)
    )
    return Evidence({"kl": 0.1, "seed": 0}, 1, suites, actions)


def test_verdicts_follow_the_evidence() -> None:
    verdicts = lambda evidence: {one.key: one.verdict for one in claims.findings(evidence)}  # noqa: E731
    assert set(verdicts(evidence_of()).values()) == {"supported"}
    assert verdicts(evidence_of(base=0.8))["base_decay"] == "not supported"
    weak = verdicts(evidence_of(rules=0.55))
    assert weak["kinds_gain"] == "not supported"
    for name in ("labels", "random", "dealt", "twin"):
        assert verdicts(evidence_of(**{name: 0.95}))["kinds_gain"] != "supported", name
    for name in ("act", "other"):
        assert verdicts(evidence_of(**{name: 0.3}))["action"] != "supported", name
    missing = evidence_of()
    unreached = replace(missing, actions=replace(missing.actions, own=None))
    assert verdicts(unreached)["action"] == "inconclusive"


def test_the_study_is_in_the_list() -> None:
    from apps.studies import entry

    listed = entry(STUDY.name)
    assert (listed.paper, listed.line) == (STUDY.paper, STUDY.line)
