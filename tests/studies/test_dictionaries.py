"""The dictionaries study: its controls are what they say, its claims can fail, and it runs whole on a small model."""

import dataclasses

import numpy as np
import pytest
import torch

from mechlab.dictionaries.dictionary import Dictionary
from mechlab.dictionaries.harvest import harvest
from mechlab.dictionaries.scorecard_fit import Fit
from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.lens.site import site
from mechlab.models.tiny_models import tiny
from mechlab.models.twin import random_twin
from mechlab.studies import dictionaries_claims, dictionaries_tables
from mechlab.studies.dictionaries import STUDY, Settings, gather
from mechlab.studies.dictionaries_evidence import L1, MEANS, MP, NEURONS, RIVAL, SHUFFLED, SUBJECT, UNTRAINED, Evidence
from mechlab.studies.dictionaries_families import N_FAMILIES, Shuffled, random_pursuit, untrained
from mechlab.studies.dictionaries_measures import matched, unexplained

SMALL = Settings(
    n_features=24,
    k=4,
    n_texts=12,
    n_held_out=6,
    n_spliced=5,
    characters=160,
    precision="float32",
    training_tokens=1280,
    batch=64,
    learning_rate=3e-3,
    draws=2,
    steered=2,
    kl=0.02,
    samples=2,
    new_tokens=4,
    labelled=5,
    toy_steps=200,
    toy_seeds=1,
)


def quiet(_label: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(tiny("llama", seed=3))


@pytest.fixture(scope="module")
def evidence(lens, tmp_path_factory) -> Evidence:
    return gather(lens, Lens(random_twin(lens.model, 9)), SMALL, tmp_path_factory.mktemp("study"), quiet)[0]


def test_every_family_is_measured_and_a_model_that_knows_nothing_supports_no_claim_about_language(evidence):
    assert len(evidence.families) == N_FAMILIES
    assert {SUBJECT, L1, MP, RIVAL, SHUFFLED, UNTRAINED, MEANS, NEURONS, "SNMF", "PCA", "ICA", "k-means"} <= set(
        evidence.families
    )
    for family in evidence.families.values():
        assert family.score.loss is not None
        assert np.isfinite(family.unexplained).all()
        assert len(family.unexplained) == SMALL.n_held_out
    assert evidence.families[SUBJECT].score.fit.l0 == pytest.approx(SMALL.k, abs=0.01)
    verdicts = {finding.key: finding.verdict for finding in dictionaries_claims.findings(evidence)}
    assert set(verdicts) == {"reconstruction", "splice", "detection", "probing", "steering", "seeds", "labels"}
    for key in ("detection", "probing", "steering", "labels"):
        assert verdicts[key] != "supported"


def supported(evidence: Evidence) -> dict[str, str]:
    return {finding.key: finding.verdict for finding in dictionaries_claims.findings(evidence)}


def test_claims_hold_where_the_numbers_do_and_fall_with_their_control(evidence):
    """Evidence made by hand: the subject is far better than everything, then one control is made as good."""

    def detected(family, value):
        found = tuple(dataclasses.replace(one, auc=value) for one in family.score.detections)
        score = dataclasses.replace(family.score, detections=found, probes={1: [value] * len(found)})
        return dataclasses.replace(family, score=score)

    def losing(family, value, share):
        loss = dataclasses.replace(family.score.loss, spliced=torch.full((SMALL.n_spliced,), value, dtype=torch.double))
        return dataclasses.replace(
            family, score=dataclasses.replace(family.score, loss=loss), unexplained=np.full(SMALL.n_held_out, share)
        )

    worse = {name: detected(losing(one, 5.0, 0.8), 0.5) for name, one in evidence.families.items()}
    families = {**worse, SUBJECT: detected(losing(evidence.families[SUBJECT], 3.0, 0.3), 0.95)}
    half = np.full_like(evidence.random_auc, 0.5)
    steering = {
        name: dataclasses.replace(one, gains=np.full(2, 0.1 if name == SUBJECT else 0.0))
        for name, one in evidence.steering.items()
    }
    labelled = {
        name: dataclasses.replace(
            one,
            scores=tuple(
                dataclasses.replace(s, correlation=0.6 if name == SUBJECT else 0.05, control=0.0) for s in one.scores
            ),
        )
        for name, one in evidence.labelled.items()
    }
    good = dataclasses.replace(
        evidence,
        families=families,
        twin=detected(evidence.twin, 0.5),
        random_auc=half,
        shuffled_auc=half,
        shuffled_probe=half,
        steering=steering,
        random_gains=np.zeros_like(evidence.random_gains),
        seeds=np.full(24, 0.9),
        untrained_seeds=np.full(24, 0.2),
        labelled=labelled,
    )
    assert set(supported(good).values()) == {"supported"}
    as_good = {
        "reconstruction": dataclasses.replace(
            good, families={**families, SHUFFLED: losing(families[SHUFFLED], 5.0, 0.3)}
        ),
        "splice": dataclasses.replace(good, families={**families, UNTRAINED: losing(families[UNTRAINED], 3.0, 0.8)}),
        "detection": dataclasses.replace(good, random_auc=np.full_like(half, 0.96)),
        "probing": dataclasses.replace(good, families={**families, NEURONS: detected(families[NEURONS], 0.96)}),
        "steering": dataclasses.replace(good, steering={**steering, RIVAL: steering[SUBJECT]}),
        "seeds": dataclasses.replace(good, untrained_seeds=np.full(24, 0.9)),
        "labels": dataclasses.replace(good, labelled={**labelled, RIVAL: labelled[SUBJECT]}),
    }
    for key, changed in as_good.items():
        verdicts = supported(changed)
        assert verdicts.pop(key) != "supported", key
        if key != "detection":
            assert set(verdicts.values()) == {"supported"}, key


def test_steering_is_judged_by_both_ranks(evidence):
    names = list(evidence.steering)
    n = len(names)
    steering = {
        name: dataclasses.replace(
            one, gains=np.array([float(i)] * 2), log_probability=np.array([-2.0 + 0.01 * i, -2.0 - 0.01 * i])
        )
        for i, (name, one) in enumerate(evidence.steering.items())
    }
    steering[names[-1]] = dataclasses.replace(steering[names[-1]], log_probability=np.array([-1.0, -9.0]))
    judged = dictionaries_tables.judged(
        dataclasses.replace(evidence, steering=steering, unsteered_log_probability=-2.0)
    )
    assert judged[names[-1]].tolist() == [1.0, 0.0]  # best by both; then broken
    assert judged[names[0]].tolist() == pytest.approx([1 / n, 2 / (n + 1)])  # worst by both; least words, likeliest


def test_tables_have_figures_and_a_report_holds_together(evidence):
    tables, figures = dictionaries_tables.tables_and_figures(evidence)
    assert {table.key for table in tables} == {figure.table for figure in figures}
    by_key = {table.key: table.frame for table in tables}
    card = by_key["scorecard"].set_index("dictionary")
    assert len(card) == N_FAMILIES + 1
    assert card.loc[SUBJECT, "seed_agreement"] == pytest.approx(evidence.seeds.mean())
    assert card.loc[MP, "absorption"] == pytest.approx(evidence.truth[MP][0].absorption)
    assert card.loc[MEANS, "steering_gain"] == pytest.approx(evidence.steering[MEANS].gains.mean())
    assert np.isnan(card.loc["PCA", "steering_gain"])
    assert by_key["papers"]["ours"].notna().all()
    for figure in figures:
        assert "<unk>" not in str(figure.figure.to_json()).replace("&lt;unk&gt;", "")


def test_shuffling_keeps_every_dimension_and_what_goes_with_what_not(lens, tmp_path):
    source = harvest(
        lens, [[3 + (i * j) % 50 for j in range(1, 20)] for i in range(1, 40)], ["L1.resid_post"], tmp_path / "a"
    )
    at = site("L1.resid_post")
    shuffled = Shuffled(source, at, 0)
    (x,), (y,) = source.read([at], source.rows), shuffled.read([at], source.rows)
    assert torch.equal(x.sort(0).values, y.sort(0).values)
    assert not torch.equal(x, y)
    assert float(off_diagonal(y).abs().mean()) < 0.5 * float(off_diagonal(x).abs().mean())
    (batch,) = next(shuffled.batches(at, size=len(y), epochs=1))
    assert torch.equal(batch.sort(0).values, y.sort(0).values)


def off_diagonal(x: torch.Tensor) -> torch.Tensor:
    correlations = torch.corrcoef(x.T)
    return correlations[~torch.eye(len(correlations), dtype=torch.bool)].nan_to_num()


def test_controls_have_the_width_and_the_sparsity_of_the_subject(lens, tmp_path):
    source = harvest(
        lens, [[3 + (i * j) % 50 for j in range(1, 20)] for i in range(1, 40)], ["L1.resid_post"], tmp_path / "a"
    )
    at = site("L1.resid_post")
    (x,) = source.read([at], source.rows)
    controls: list[Dictionary] = [random_pursuit(source, at, SMALL), untrained(source, at, SMALL, 0)]
    for one in controls:
        assert one.n_features == SMALL.n_features
        assert int((one.encode(x) != 0).sum(1).max()) <= SMALL.k
        assert torch.allclose(one.decode(torch.zeros(1, SMALL.n_features))[0], x.mean(0), atol=1e-4)
    same, other = untrained(source, at, SMALL, 0), untrained(source, at, SMALL, 1)
    assert matched(same, controls[1]) == pytest.approx(np.ones(24))
    assert matched(other, controls[1]).mean() < 0.5


def test_unexplained_by_hand():
    errors, spreads = torch.tensor([1.0, 3, 2, 8]).double(), torch.tensor([4.0, 4, 4, 4]).double()
    found = Fit(0, 0, 0, 0, torch.zeros(1), errors, spreads)
    assert unexplained(found, torch.tensor([0, 0, 1, 1])).tolist() == [0.5, 1.25]


def test_bad_settings(lens, tmp_path):
    with pytest.raises(MechlabError, match="cannot use 40 of 24 features"):
        gather(lens, lens, SMALL.model_copy(update={"k": 40}), tmp_path, quiet)
    with pytest.raises(MechlabError):
        gather(lens, lens, SMALL.model_copy(update={"site": "L99.resid_post"}), tmp_path, quiet)


def test_the_study_is_listed():
    from apps.studies import entry, study

    assert study("dictionaries") is STUDY
    assert (entry("dictionaries").paper, entry("dictionaries").line) == (STUDY.paper, STUDY.line)
