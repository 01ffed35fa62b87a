"""What the massive-activations study measured, before it is judged."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mechlab.analyses.checkpoints import Trace
from mechlab.analyses.checkpoints_fit import Fit
from mechlab.analyses.massive import Survey
from mechlab.lens.tokens import Tokens

Floats = NDArray[np.float64]
ZERO, MEAN, RESAMPLED = "set to zero", "set to mean", "set to another text's"
NEXT, MEDIAN, RANDOM = "next largest set to zero", "median-sized set to zero", "random entries set to zero"
FITTED = "modulated log"


@dataclass(frozen=True, eq=False)
class Interventions:
    """Losses on held-out texts that have massive entries of the kinds seen on discovery text.

    Attributes:
        layer: after which entries are set.
        base: ``[n]`` mean next-token loss in nats, nothing changed.
        changed: what is done to the entries, or to others, -> ``[n]``.
        random: ``[draw, n]``.
        entries: ``[n]`` how many are set in each text.
    """

    layer: int
    base: Floats
    changed: Mapping[str, Floats]
    random: Floats
    entries: Floats


@dataclass(frozen=True, eq=False)
class LayerFit:
    """One layer of one model over training: the fit, and simpler curves on the same points."""

    trace: Trace
    layer: int
    fit: Fit
    rivals: Mapping[str, Fit]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a claim is judged by.

    Attributes:
        discovery, evaluation: texts without a document in common.
        seen, held_out: surveys of them; ``twin``: of the held-out texts on the random-weight twin.
        layer: the first with massive entries in at least half of the discovery texts; None without one.
        interventions: None where there is nothing to set.
        traces: models over training; ``fits``: of their layers.
        predicted: R^2 of the curve's parameters from architecture; None with too few samples.
    """

    settings: dict[str, object]
    discovery: Tokens
    evaluation: Tokens
    n_layers: int
    d_model: int
    seen: Survey
    held_out: Survey
    twin: Survey
    layer: int | None
    interventions: Interventions | None
    traces: tuple[Trace, ...]
    fits: tuple[LayerFit, ...]
    predicted: pd.DataFrame | None
