"""What the snmf study measures of features of features: levels of a factorisation whose loadings are factored again.

Neurons are scaled to variance 1, or a few of them would be all that is factored. Beside it the same of shuffled activations (every neuron
permuted over tokens), in which nothing fires together that could be grouped, and families of features drawn at random.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.dictionaries.baselines import permuted
from mechlab.dictionaries.concepts import Readings
from mechlab.dictionaries.scorecard_concepts import auc, sentence_scores
from mechlab.dictionaries.snmf import SnmfSettings, loadings_of
from mechlab.dictionaries.snmf_hierarchy import Hierarchy, hierarchy
from mechlab.dictionaries.snmf_reading import residual_directions, top_tokens
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site

Floats = NDArray[np.float64]
REAL, SHUFFLED_FIT = "activations", "shuffled"
Families = Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class Levels:
    """Of one layer.

    Attributes:
        table: a row for each fit (``activations``, ``shuffled``) and level (0 the finest): ``features``, ``error`` (share of squared norm,
            sentences kept for judging), ``auc`` (of the feature chosen for a concept, mean over concepts).
        ties: fit -> for each level from 1 on, per family of features: how much more alike its members score the sentences kept for judging
            than features that share no family do (difference of correlations).
        random: for each level from 1 on ``[draws]``: the same of families of the same sizes drawn at random, mean over families.
        coarse: a row for each feature of the coarsest level: its concept, ``auc``, the tokens it raises, its features below.
        made_of: ``[coarsest, finest]``: of which features of the finest level each one is made, as shares of its largest.
        error_before, error: of the whole product, before and after all levels were tuned together (share of norm, fitted tokens).
    """

    table: pd.DataFrame
    ties: dict[str, list[Floats]]
    random: list[Floats]
    coarse: pd.DataFrame
    made_of: pd.DataFrame
    error_before: float
    error: float


def ranks(k: int) -> list[int]:
    """``k``, half of it, a quarter: as the authors halve 400."""
    return sorted({k, max(2, k // 2), max(2, k // 4)}, reverse=True)


def measure_levels(
    lens: Lens, at: Site, readings: Readings, extra: Tensor, settings: SnmfSettings, tuning: int, draws: int
) -> Levels:
    """Fits on the sentences to choose by and ``extra`` tokens ``[n, d_mlp]``; judges on the other sentences."""
    fitted = torch.cat([readings.activations[~readings.judging[readings.sentence]], extra])
    scale = fitted.std(0).clamp_min(1e-6)
    scaled = replace(readings, activations=readings.activations / scale)
    rows: list[dict[str, object]] = []
    ties: dict[str, list[Floats]] = {}
    kept: list[Hierarchy] = []
    for name, x in ((REAL, fitted / scale), (SHUFFLED_FIT, permuted(fitted / scale, settings.seed))):
        found = hierarchy(x, ranks(settings.k), settings, tuning=tuning)
        kept.append(found)
        rows += [{"fit": name, "level": level, **_quality(one, scaled)} for level, one in enumerate(_levels(found))]
        ties[name] = [_ties(found, level, scaled) for level in range(1, len(found.mixing) + 1)]
    real = kept[0]
    coarse, made_of = _coarse(lens, at, real, scaled, scale)
    random = [_random(real, level, scaled, draws, settings.seed) for level in range(1, len(real.mixing) + 1)]
    return Levels(pd.DataFrame(rows), ties, random, coarse, made_of, real.error_before, real.error)


def _levels(found: Hierarchy) -> list[Tensor]:
    return [found.at_level(level) for level in range(len(found.mixing) + 1)]


def _quality(features: Tensor, readings: Readings) -> dict[str, object]:
    x = readings.activations[readings.judging[readings.sentence]]
    left = (x - loadings_of(x, features) @ features).square().sum()
    aucs = _concepts(features, readings)
    judged = [float(aucs[1, feature, label]) for label, feature in enumerate(aucs[0].argmax(0).tolist())]
    return {"features": len(features), "error": float(left / x.square().sum()), "auc": float(np.mean(judged))}


def _concepts(features: Tensor, readings: Readings) -> Tensor:
    """AUCs ``[2, k, concepts]``: on the sentences to choose by, and on those to judge by."""
    scores = sentence_scores(features, readings)
    halves = (~readings.judging, readings.judging)
    labels = range(len(readings.names))
    found = [
        torch.stack([auc(scores[half], (readings.labels == label)[half]) for label in labels], dim=1) for half in halves
    ]
    return torch.stack(found)


def _ties(found: Hierarchy, level: int, readings: Readings) -> Floats:
    """Per family of a level: mean correlation of its members' scores less that of all pairs that share no family."""
    return family_ties(_correlations(found.at_level(level - 1), readings), found.children(level))


def family_ties(correlations: Floats, families: Families) -> Floats:
    """``[families of two or more]``: mean correlation of each family's pairs, less the mean over pairs that share no family.

    Args:
        correlations: ``[k, k]``.
    """
    pairs = [list(combinations(sorted(family), 2)) for family in families]
    related = {pair for some in pairs for pair in some}
    others = [correlations[pair] for pair in combinations(range(len(correlations)), 2) if pair not in related]
    apart = float(np.mean(others)) if others else 0.0
    return np.array([float(np.mean([correlations[pair] for pair in some])) - apart for some in pairs if some])


def _correlations(features: Tensor, readings: Readings) -> Floats:
    """``[k, k]`` of the features' scores over the sentences to judge by."""
    scores = sentence_scores(features, readings)[readings.judging].double()
    centred = torch.nn.functional.normalize(scores - scores.mean(0), dim=0)
    return np.asarray((centred.T @ centred).numpy(), dtype=np.float64)


def _random(found: Hierarchy, level: int, readings: Readings, draws: int, seed: int) -> Floats:
    correlations, families = _correlations(found.at_level(level - 1), readings), found.children(level)
    generator = np.random.default_rng(seed)
    means: list[float] = []
    for _ in range(draws):
        order = generator.permutation(len(correlations))
        means.append(float(family_ties(correlations, [[int(order[i]) for i in family] for family in families]).mean()))
    return np.array(means)


def _coarse(
    lens: Lens, at: Site, found: Hierarchy, readings: Readings, scale: Tensor
) -> tuple[pd.DataFrame, pd.DataFrame]:
    names = [_names(level, features, readings) for level, features in enumerate(_levels(found))]
    top = len(found.mixing)
    features = found.at_level(top)
    raised = [up for up, _ in top_tokens(lens, residual_directions(lens, at, features * scale), 8)]
    rows = [
        {
            "feature": name,
            "concept": concept,
            "auc": judged,
            "made of": ", ".join(names[top - 1][i][0] for i in children),
            "raises": " ".join(tokens),
        }
        for (name, concept, judged), children, tokens in zip(names[top], found.children(top), raised, strict=True)
    ]
    weights = found.mixing[0]
    for mixing in found.mixing[1:]:
        weights = mixing @ weights
    shares = weights / weights.amax(1, keepdim=True).clamp_min(1e-12)
    order = (
        shares.argmax(0) * 2 - shares.amax(0)
    ).argsort()  # by the coarse feature each belongs to most, strongest first
    made_of = pd.DataFrame(
        shares[:, order].numpy(),
        index=pd.Index([f"{name} ({concept})" for name, concept, _ in names[top]], name="coarsest"),
        columns=pd.Index([f"{names[0][i][0]} ({names[0][i][1]})" for i in order.tolist()], name="finest"),
    )
    return pd.DataFrame(rows), made_of


def _names(level: int, features: Tensor, readings: Readings) -> list[tuple[str, str, float]]:
    """For each feature its name, the concept it tells best on the sentences to choose by, and the AUC of that on the others."""
    aucs = _concepts(features, readings)
    best = aucs[0].argmax(1).tolist()
    return [(f"F{level}.{i}", readings.names[label], float(aucs[1, i, label])) for i, label in enumerate(best)]
