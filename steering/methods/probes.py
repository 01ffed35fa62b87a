"""Directions of linear probes: logistic regression and linear discriminant analysis, wanted class against the rest (scikit-learn)."""

import warnings
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mechlab.results.study import Progress
from steering.examples import Material
from steering.methods.method import Directions, Method, MethodSettings


class LogisticSettings(MethodSettings):
    """Settings of logistic."""

    c: float = Field(default=0.1, gt=0, description="inverse strength of the L2 penalty, on standardised activations")
    max_iter: int = Field(default=1000, ge=1, description="of the solver")


def _logistic(material: Material, settings: LogisticSettings, progress: Progress) -> Directions:  # noqa: ARG001
    from sklearn.linear_model import LogisticRegression

    def fitted(x: Any, y: Any) -> Any:
        # Standardised, so that the penalty treats all dimensions alike; the weights are then told in the activation's own units.
        spread = x.std(0)
        spread[spread == 0] = 1.0
        probe = LogisticRegression(C=settings.c, max_iter=settings.max_iter).fit((x - x.mean(0)) / spread, y)
        return probe.coef_[0] / spread

    return _weights(material, fitted)


def _lda(material: Material, settings: MethodSettings, progress: Progress) -> Directions:  # noqa: ARG001
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    def fitted(x: Any, y: Any) -> Any:
        # Ledoit-Wolf shrinkage: there are fewer prompts than dimensions.
        return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, y).coef_[0]

    return _weights(material, fitted)


def _weights(material: Material, fitted: Any) -> Directions:
    """Unit normals of the decision planes."""
    labels = material.examples.is_wanted.numpy()
    return {at: _unit(fitted(x.double().numpy(), labels)) for at, x in material.activations.items()}


def _unit(weights: Any) -> Tensor:
    row = torch.from_numpy(np.asarray(weights, dtype=np.float64))
    return (row / row.norm().clamp_min(1e-30)).float()


def probe_accuracy(direction: Tensor, activations: Tensor, wanted: Tensor) -> float:
    """AUROC of the projection ``[n, d] @ [d]`` as a detector of the wanted class: how well a direction reads, not what it does."""
    from sklearn.metrics import roc_auc_score

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return float(roc_auc_score(wanted.numpy(), (activations @ direction).numpy()))


LOGISTIC = Method(
    name="logistic",
    title="Logistic probe",
    paper="Alain and Bengio 2016, arXiv 1610.01644",
    line="Weights of a logistic regression that tells the wanted class from the rest.",
    settings=LogisticSettings,
    run=_logistic,
)
LDA = Method(
    name="lda",
    title="LDA probe",
    paper="Fisher 1936; shrinkage: Ledoit and Wolf 2004",
    line="Weights of a linear discriminant with a shrunken covariance.",
    settings=MethodSettings,
    run=_lda,
)
