"""Estimates, ratios and controls of the sinks study, each with its interval over prompts."""

import numpy as np
from numpy.typing import NDArray

from mechlab.results.rule import Control
from mechlab.results.stating import control
from mechlab.results.statistics import Interval, bootstrap_mean, bootstrap_ratio
from mechlab.studies.sinks_evidence import Evidence

Floats = NDArray[np.float64]


def seed_of(evidence: Evidence) -> int:
    """The seed of the run's intervals."""
    return int(str(evidence.settings["seed"]))


def mean_of(evidence: Evidence, values: Floats) -> Interval:
    """Mean of ``[n]``."""
    return bootstrap_mean(values, seed=seed_of(evidence))


def ratio_of(evidence: Evidence, top: Floats, bottom: Floats) -> Interval:
    """Ratio of the means of two ``[n]``."""
    return bootstrap_ratio(top, bottom, seed=seed_of(evidence))


def control_of(evidence: Evidence, name: str, values: Floats, note: str = "") -> Control:
    """A control measured on the same prompts, ``[n]``."""
    return control(name, mean_of(evidence, values), note)
