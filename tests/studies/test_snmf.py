"""The snmf study end to end on a tiny model, and its measures on planted sentences."""

import numpy as np
import pytest
import torch

from mechlab.dictionaries.concepts import Readings
from mechlab.dictionaries.dictionary import DictionaryOrigin
from mechlab.dictionaries.synthetic import planted_factors
from mechlab.lens.lens import Lens
from mechlab.lens.site import site
from mechlab.models.tiny_models import tiny
from mechlab.studies import snmf
from mechlab.studies.snmf_evidence import (
    DIFFERENCE,
    LABELS,
    RANDOM,
    SAE,
    SHUFFLED,
    SNMF,
    Budget,
    measure_layer,
    per_concept,
)

SMALL = {
    "k": 6,
    "sparsity": 0.1,
    "iterations": 10,
    "n_passages": 4,
    "sae_tokens": 20_000,
    "n_steered": 2,
    "samples": 2,
    "new_tokens": 3,
    "draws": 2,
    "kl": 0.02,
    "layers": (1,),
}


def test_end_to_end_on_a_tiny_model() -> None:
    report = snmf.run(Lens(tiny("llama")), snmf.Settings.model_validate(SMALL), lambda *_: None)
    keys = ["detects_l1", "together_l1", "steers", "steers_more_than_sae", "steers_more_than_difference"]
    assert [finding.key for finding in report.findings] == keys
    steered = next(table.frame for table in report.tables if table.key == "steering")
    assert sorted(set(steered["method"])) == sorted([SNMF, SAE, DIFFERENCE, RANDOM])
    assert len(steered) == 4 * 2
    assert (steered["strength"] > 0).all()


def test_planted_concepts_are_detected_and_planted_groups_fire_together() -> None:
    """Each concept is one planted group of neurons, present in its sentences' tokens only."""
    planted = planted_factors(1200, 120, 4, sparsity=0.04, noise=0.1, seed=3)
    sentence = torch.arange(1200) // 10
    labels = torch.arange(120) % 4
    own = torch.nn.functional.one_hot(labels[sentence], 4).float() * (0.5 + planted.loadings)
    x = own @ planted.factors + 0.02 * torch.randn(1200, 120, generator=torch.Generator().manual_seed(0))
    readings = Readings(x, sentence, labels, torch.arange(120) % 8 >= 4, ("a", "b", "c", "d"))
    budget = Budget(k=4, sparsity=0.04, init="random", iterations=150, draws=3, seed=0)
    origin = DictionaryOrigin(method="snmf", model="toy", site="L0.mlp_post")
    found = measure_layer(site("L0.mlp_post"), readings, x[:50], planted.factors, budget, origin)
    assert per_concept(found.detection, SNMF, "auc").mean() > 0.95
    assert per_concept(found.detection, DIFFERENCE, "auc").mean() > 0.95
    assert per_concept(found.detection, RANDOM, "auc").shape == (3, 4)
    assert per_concept(found.detection, LABELS, "auc").mean() < 0.9
    # where no two concepts share a neuron, single neurons tell them apart too: that is why shuffled activations are a control
    assert per_concept(found.detection, SHUFFLED, "auc").mean() > 0.8
    shared = (found.errors["shuffled 1"] - found.errors["activations"]) / found.power
    assert shared.mean() > 0.05
    assert np.abs((found.errors["shuffled 1"] - found.errors["shuffled 2"]) / found.power).mean() < shared.mean()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="greater than"):
        snmf.Settings.model_validate({"k": 1})
