"""What the transcoder study measures, as plain values. Nothing is judged here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from circuits.features.graph import FeatureGraph

Floats = NDArray[np.float64]
Unit = tuple[int, int]  # (layer, feature or neuron)
FEATURES, WITH_ERRORS, KEPT_NEURONS = "features", "features, errors kept", "neurons"
RANDOM_FEATURES = "random features"


@dataclass(frozen=True, eq=False)
class Ablation:
    """Fall of the logit difference on evaluation prompts when units are ablated, ``[n]``, or of draws of them ``[draws, n]``.

    Attributes:
        base: the logit difference as it is.
        chosen: units of the largest contributions on discovery prompts. falls: fall by name (of units, or of what they were chosen by).
        draws: falls of random sets, by name.
        predicted: ``[n]`` sum of the chosen features' contributions on the evaluation prompts.
    """

    base: Floats
    chosen: list[Unit]
    falls: Mapping[str, Floats]
    draws: Mapping[str, Floats] = field(default_factory=dict)
    predicted: Floats | None = None


@dataclass(frozen=True, eq=False)
class Connections:
    """Which lower features feed the targets: the share of all their contributions that those picked by weights alone hold, ``[n]``.

    ``permuted`` and ``random`` are ``[draws, n]``: picked by permuted decoder rows, and at random among the same features.
    """

    lower: int
    upper: int
    targets: list[int]
    share: Floats
    permuted: Floats
    random: Floats


@dataclass(frozen=True, eq=False)
class Kept:
    """Logit differences on evaluation prompts with only some units kept and all others at their means.

    Attributes:
        found: name of the units -> how many are kept -> ``[n]``. With all features kept the transcoders stand in the MLPs' places.
        draws: the same of random units, ``[draws, n]``.
        features: how many there are.
    """

    found: Mapping[str, Mapping[int, Floats]]
    draws: Mapping[str, Mapping[int, Floats]]
    features: int


@dataclass(frozen=True, eq=False)
class Feeding:
    """Lower features that feed some features of the highest layer over plain text.

    Attributes:
        table: a row per target and lower feature. agreement: per target and lower layer, the rank correlation of connections by weights
            with mean use, and the same with permuted decoder rows (a list, one per draw).
    """

    table: pd.DataFrame
    agreement: list[dict[str, object]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Every number of the study.

    Attributes:
        settings: of the run.
        layers: whose MLPs have transcoders, chosen on discovery prompts. importance: per layer, what they were chosen by.
        fits: per layer and stand-in: share of variance not explained, active features, dead features.
        losses: next-token loss per held-out passage, by what stands in the MLPs' place.
        gaps, gaps_without_errors: per evaluation prompt, the largest difference between a target and the sum of its terms.
        model, twin: ablations in the model and in its random-weight twin (with its own transcoders and choice).
        features: the chosen features, with their contributions and tokens. paths: from the strongest of them down.
        kept: what is left when only some units are kept. feeding: what feeds features over plain text.
        graph: of one evaluation prompt.
    """

    settings: dict[str, object]
    layers: list[int]
    importance: pd.DataFrame
    fits: pd.DataFrame
    losses: Mapping[str, Floats]
    gaps: Floats
    gaps_without_errors: Floats
    model: Ablation
    twin: Ablation
    connections: Connections
    features: pd.DataFrame
    paths: pd.DataFrame
    kept: Kept
    feeding: Feeding
    graph: FeatureGraph
