"""Do single directions of a dictionary say what a sentence is about? Concept detection and k-sparse probing.

Concept detection (Shafran et al., arXiv 2506.10920): a sentence scores the largest cosine of its tokens' activations with a direction;
S_CD = log(mean score of the concept's sentences / mean score of the others). For every concept the best of K directions is chosen on half
of the sentences and judged on the other half. Beware: the best of K random directions does well too (it reaches S_CD > 0 for most
concepts), so a score means something only beside random directions of the same number; and S_CD and AUC rank methods differently.

k-sparse probing (Gurnee et al., arXiv 2305.01610): a logistic regression on the k features that differ most between the classes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mechlab.dictionaries.concepts import Readings
from mechlab.dictionaries.dictionary import Dictionary
from mechlab.errors import MechlabError

_DIRECTIONS_AT_ONCE = 4096


@dataclass(frozen=True)
class Detection:
    """One concept.

    Attributes:
        feature: the direction whose scores separated best (by AUC) on the sentences to choose by. sign: -1 where it is its opposite.
        auc: of that direction on the sentences to judge by. fit_auc: where it was chosen.
        s_cd: of the direction with the best S_CD where it was chosen, on the sentences to judge by; NaN where a mean is not positive.
    """

    concept: str
    feature: int
    sign: int
    auc: float
    fit_auc: float
    s_cd: float


def detect(directions: Tensor, readings: Readings, *, two_sided: bool = False) -> list[Detection]:
    """Scores the best of ``directions [k, d]`` for each concept. ``two_sided``: their opposites count too (where codes have both signs).

    Raises:
        MechlabError: directions of another width than the activations.
    """
    if directions.shape[1] != readings.activations.shape[1]:
        raise MechlabError(
            f"Directions of size {directions.shape[1]} do not fit activations of size {readings.activations.shape[1]}: read the "
            "sentences at the dictionary's own target."
        )
    scores = sentence_scores(directions, readings, two_sided=two_sided)
    fit, judge = ~readings.judging, readings.judging
    found: list[Detection] = []
    for label, concept in enumerate(readings.names):
        here = readings.labels == label
        aucs = auc(scores[fit], here[fit])
        ratios = log_ratio(scores[fit], here[fit])
        best, by_ratio = int(aucs.argmax()), int(torch.nan_to_num(ratios, nan=-math.inf).argmax())
        found.append(
            Detection(
                concept=concept,
                feature=best % len(directions),
                sign=-1 if best >= len(directions) else 1,
                auc=float(auc(scores[judge][:, [best]], here[judge])),
                fit_auc=float(aucs[best]),
                s_cd=float(log_ratio(scores[judge][:, [by_ratio]], here[judge])),
            )
        )
    return found


@torch.no_grad()
def sentence_scores(directions: Tensor, readings: Readings, *, two_sided: bool = False) -> Tensor:
    """``[sentences, k]`` (``2 k`` with opposites after): the largest cosine of each sentence's tokens with each direction."""
    unit_rows = torch.nn.functional.normalize(readings.activations, dim=1)
    unit = torch.nn.functional.normalize(directions.detach().float(), dim=1).to(unit_rows.device)
    sides = [unit, -unit] if two_sided else [unit]
    parts = [part for side in sides for part in side.split(_DIRECTIONS_AT_ONCE)]
    return torch.cat([readings.per_sentence(unit_rows @ part.T) for part in parts], dim=1)


def log_ratio(scores: Tensor, positive: Tensor) -> Tensor:
    """``[k]`` S_CD of ``scores [sentences, k]``; NaN where either mean is not above 0."""
    ours, others = scores[positive].mean(0), scores[~positive].mean(0)
    both = (ours > 0) & (others > 0)
    return torch.where(both, (ours / others).clamp_min(1e-30).log(), torch.nan)


def auc(scores: Tensor, positive: Tensor) -> Tensor:
    """``[k]`` share of (positive, other) pairs that ``scores [sentences, k]`` order rightly; ties count half (Mann-Whitney)."""
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(scores.double().cpu().numpy(), axis=0))
    n, m = int(positive.sum()), int((~positive).sum())
    return (ranks[positive.cpu()].sum(0) - n * (n + 1) / 2) / (n * m)


@torch.no_grad()
def features_of(dictionary: Dictionary, readings: Readings) -> Tensor:
    """``[sentences, n_features]`` largest code of each sentence's tokens; ``readings`` are at the dictionary's own site."""
    codes = torch.cat([dictionary.encode(rows) for rows in readings.activations.split(1024)])
    return readings.per_sentence(codes.float())


def sparse_probe(features: Tensor, readings: Readings, k: int) -> list[float]:
    """AUROC of a logistic regression on ``k`` features for each concept, one against all others, on the sentences to judge by.

    The ``k`` features with the largest difference of class means, in units of their spread, are chosen on the sentences to choose by; the
    regression is fitted there too.

    Args:
        features: ``[sentences, n_features]``, see ``features_of``.

    Raises:
        MechlabError: no feature, or more than there are.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    if not 1 <= k <= features.shape[1]:
        raise MechlabError(
            f"A probe on {k} features of {features.shape[1]} cannot be fitted: use 1 to {features.shape[1]}."
        )
    fit, judge = ~readings.judging, readings.judging
    mean, spread = features[fit].mean(0), features[fit].std(0)
    scaled = (features - mean) / torch.where(spread > 0, spread, 1)
    found: list[float] = []
    for label in range(len(readings.names)):
        here = (readings.labels == label).numpy()
        positive = torch.from_numpy(here) & fit
        difference = (scaled[positive].mean(0) - scaled[fit & ~positive].mean(0)).abs()
        chosen = scaled[:, difference.topk(k).indices].numpy()
        probe = LogisticRegression(class_weight="balanced").fit(chosen[fit.numpy()], here[fit.numpy()])
        found.append(float(roc_auc_score(here[judge.numpy()], probe.decision_function(chosen[judge.numpy()]))))
    return found
