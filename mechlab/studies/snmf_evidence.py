"""What the snmf study measures: features of an MLP's neurons, what they say of sentences, and what they do when the model writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.dictionaries.baselines import difference_in_means, kmeans, pca, permuted, random_units, top_neurons
from mechlab.dictionaries.concepts import Concepts, Readings
from mechlab.dictionaries.dictionary import DictionaryOrigin
from mechlab.dictionaries.scorecard_causal import Writing, steer, word_ids
from mechlab.dictionaries.scorecard_concepts import detect
from mechlab.dictionaries.snmf import Init, SnmfSettings, factorise, loadings_of
from mechlab.dictionaries.snmf_reading import residual_directions, top_tokens
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.studies.snmf_family import Family
from mechlab.studies.snmf_levels import Levels

Floats = NDArray[np.float64]
SNMF, SAE, DIFFERENCE, RANDOM, SHUFFLED, PCA, KMEANS, NEURONS, LABELS, TWIN = (
    "SNMF",
    "TopK-SAE",
    "difference in means",
    "random sparse directions",
    "SNMF of shuffled activations",
    "PCA",
    "k-means",
    "top-variance neurons",
    "SNMF, labels shuffled",
    "SNMF of the random-weight twin",
)


@dataclass(frozen=True)
class Budget:
    """Sizes: see the study's settings."""

    k: int
    sparsity: float
    init: Init
    iterations: int
    draws: int
    seed: int

    @property
    def snmf(self) -> SnmfSettings:
        return SnmfSettings(
            k=self.k, sparsity=self.sparsity, init=self.init, iterations=self.iterations, seed=self.seed, batch=None
        )


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer.

    Attributes:
        detection: a row for each method (and draw of random directions) and concept: ``auc``, ``s_cd``, ``feature``, ``sign``.
        errors: fit -> ``[sentences]`` squared error on the sentences kept for judging, each neuron scaled to variance 1.
        power: ``[sentences]`` squared norm of the same.
        features: method -> ``[k, d_mlp]``, for the methods that steer.
    """

    at: Site
    detection: pd.DataFrame
    errors: dict[str, Floats]
    power: Floats
    features: dict[str, Tensor]


def measure_layer(
    at: Site, readings: Readings, extra: Tensor, sae: Tensor | None, budget: Budget, origin: DictionaryOrigin
) -> Layer:
    """Fits every method on the sentences to choose by and ``extra`` tokens ``[n, d_mlp]``, and judges it on the other sentences.

    ``sae``: directions of an autoencoder trained on the same tokens; None for the twin, of which SNMF alone is asked.
    """
    own = readings.activations[~readings.judging[readings.sentence]]
    fitted = torch.cat([own, extra])
    found = factorise(fitted, budget.snmf)
    rows = _detections(SNMF, found.features, readings)
    features = {SNMF: found.features}
    errors: dict[str, Floats] = {}
    power = np.zeros(0)
    if sae is not None:
        # The stages differ in what they may use: only the difference in means sees labels before the choice.
        features |= {SAE: sae, DIFFERENCE: _differences(readings, origin), RANDOM: _random(budget, fitted, 0)}
        others = {
            SAE: sae,
            DIFFERENCE: features[DIFFERENCE],
            SHUFFLED: factorise(permuted(fitted, budget.seed), budget.snmf).features,
            PCA: pca(fitted, budget.k, origin).directions,
            KMEANS: kmeans(fitted, budget.k, origin, seed=budget.seed).directions,
            NEURONS: top_neurons(fitted, budget.k, origin).directions,
        }
        for name, directions in others.items():
            rows += _detections(name, directions, readings)
        rows += _detections(LABELS, found.features, readings.relabelled(budget.seed))
        for draw in range(budget.draws):
            rows += _detections(RANDOM, _random(budget, fitted, draw), readings, draw)
        errors, power = _held_out_errors(readings, fitted, budget)
    return Layer(at, pd.DataFrame(rows), errors, power, features)


def _detections(method: str, directions: Tensor, readings: Readings, draw: int = 0) -> list[dict[str, object]]:
    return [
        {
            "method": method,
            "draw": draw,
            "concept": one.concept,
            "auc": one.auc,
            "s_cd": one.s_cd,
            "feature": one.feature,
            "sign": one.sign,
        }
        for one in detect(directions, readings, two_sided=method in (PCA, NEURONS))
    ]


def _differences(readings: Readings, origin: DictionaryOrigin) -> Tensor:
    """Over tokens of the sentences to choose by; neutral sentences are among the others."""
    kept = ~readings.judging[readings.sentence]
    labels = readings.labels[readings.sentence[kept]]
    return difference_in_means(readings.activations[kept], labels, readings.names, origin).directions


def _random(budget: Budget, fitted: Tensor, draw: int) -> Tensor:
    return random_units(budget.k, fitted.shape[1], sparsity=budget.sparsity, seed=1000 * budget.seed + draw)


def _held_out_errors(readings: Readings, fitted: Tensor, budget: Budget) -> tuple[dict[str, Floats], Floats]:
    """SNMF of the activations, and twice of shuffled ones, on neurons scaled to variance 1: else a few neurons are all of the error."""
    scale = fitted.std(0).clamp_min(1e-6)
    judging = readings.judging[readings.sentence]
    x, sentence = readings.activations[judging] / scale, readings.sentence[judging]
    fits = {"activations": fitted / scale}
    fits |= {f"shuffled {i}": permuted(fitted / scale, budget.seed + i) for i in (1, 2)}
    errors: dict[str, Floats] = {}
    for name, rows in fits.items():
        features = factorise(rows, budget.snmf).features
        left = (x - loadings_of(x, features) @ features).square().sum(1)
        errors[name] = _by_sentence(left, sentence)
    return errors, _by_sentence(x.square().sum(1), sentence)


def _by_sentence(values: Tensor, sentence: Tensor) -> Floats:
    _, place = sentence.unique(return_inverse=True)
    return torch.zeros(int(place.max()) + 1, dtype=torch.float64).index_add(0, place, values.double()).numpy()


def steering(
    lens: Lens, layer: Layer, concepts: Concepts, names: Sequence[str], kl: float, writing: Writing
) -> pd.DataFrame:
    """For each method and concept, texts written with its chosen feature's worth of ``kl`` nats added to what the MLP writes.

    Columns: ``gain`` = how much more probable the concept's words are than unsteered, less the mean gain of the other concepts' words;
    ``fluency`` = change of the texts' mean log-probability under the unsteered model; ``strength``, ``distinct``.
    """
    words = [word_ids(lens, concepts.words[name]) for name in names]
    target = Site("mlp_out", layer.at.layer)
    base = steer(lens, target, None, words, kl, writing)
    rows: list[dict[str, object]] = []
    for method, features in layer.features.items():
        chosen = layer.detection[(layer.detection["method"] == method) & (layer.detection["draw"] == 0)]
        by_concept = chosen.set_index("concept")
        for i, name in enumerate(names):
            place = (
                list(concepts.names).index(name) if method == DIFFERENCE else int(str(by_concept.loc[name, "feature"]))
            )
            direction = residual_directions(lens, layer.at, features[[place]])[0]
            found = steer(lens, target, direction, words, kl, writing)
            gains = (found.mass - base.mass).mean(0)
            others = torch.cat([gains[:i], gains[i + 1 :]]).mean()
            rows.append(
                {
                    "method": method,
                    "concept": name,
                    "gain": float(gains[i] - others),
                    "fluency": float((found.log_probability - base.log_probability).mean()),
                    "strength": found.strength,
                    "distinct": found.distinct,
                }
            )
    return pd.DataFrame(rows)


def readable(lens: Lens, layer: Layer, names: Sequence[str], count: int = 8) -> pd.DataFrame:
    """The SNMF feature chosen for each concept: how many neurons it has, and the tokens it raises, for both signs."""
    chosen = layer.detection[layer.detection["method"] == SNMF].set_index("concept")
    places = [int(str(chosen.loc[name, "feature"])) for name in names]
    features = layer.features[SNMF][places]
    tokens = top_tokens(lens, residual_directions(lens, layer.at, features), count)
    return pd.DataFrame(
        {
            "concept": list(names),
            "feature": places,
            "neurons": [int((feature != 0).sum()) for feature in features],
            "auc": [float(str(chosen.loc[name, "auc"])) for name in names],
            "raises": [" ".join(up) for up, _ in tokens],
            "lowers": [" ".join(down) for _, down in tokens],
        }
    )


def per_concept(detection: pd.DataFrame, method: str, score: str) -> Floats:
    """``[concepts]`` of a method, or ``[draws, concepts]`` means over draws where there are several."""
    rows = detection[detection["method"] == method]
    return rows.pivot_table(index="draw", columns="concept", values=score, dropna=False).to_numpy(dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything measured; ``layers`` and ``twin`` by layer number.

    ``levels``: of the layer ``steered_layer``. ``family``: of the layer ``family_layer``; of the model, of its shuffled activations and of
    the twin.
    """

    layers: Mapping[int, Layer]
    twin: Mapping[int, Layer]
    steered: pd.DataFrame
    readable: pd.DataFrame
    levels: Levels
    family: Family
    family_shuffled: Family
    family_twin: Family
    steered_layer: int
    family_layer: int
    kl: float
    tokens: int
    seed: int
