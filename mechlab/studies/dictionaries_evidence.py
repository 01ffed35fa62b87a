"""What the dictionaries study measured, before it is judged."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mechlab.dictionaries.labels import Label, LabelScore
from mechlab.dictionaries.scorecard import Score
from mechlab.dictionaries.scorecard_truth import Recovery

Floats = NDArray[np.float64]
Kind = Literal["trained", "baseline", "control"]
SUBJECT, L1, MP, RIVAL = "TopK SAE", "ReLU SAE (L1)", "MP-SAE", "random atoms + pursuit"
UNTRAINED, SHUFFLED = "untrained SAE", "TopK on shuffled activations"
TWIN, SECOND = "random-weight twin", "TopK SAE, second seed"
MEANS, NEURONS, UNSTEERED = "difference in means", "single dimensions", "unsteered"


@dataclass(frozen=True, eq=False)
class Family:
    """One dictionary of the site.

    Attributes:
        kind: trained by gradients, fitted otherwise, or made so that it should do badly.
        score: its scorecard. seconds: to make it.
        unexplained: ``[texts]`` squared error over each held-out text, as a share of the mean spread of all.
    """

    name: str
    kind: Kind
    score: Score
    seconds: float
    unexplained: Floats


@dataclass(frozen=True, eq=False)
class Steering:
    """Texts written under the direction that a family has for each concept; all directions cost the same KL.

    Attributes:
        gains: ``[concepts]`` probability of the concept's words, less that of the unsteered texts.
        log_probability: ``[concepts]`` of a new token under the unsteered model, nats, mean over texts.
        distinct: ``[concepts]`` share of distinct pairs of neighbouring tokens.
        strengths: ``[concepts]`` of the unit direction. kl: ``[concepts]`` reached, nats.
        texts: one for each concept.
    """

    gains: Floats
    log_probability: Floats
    distinct: Floats
    strengths: Floats
    kl: Floats
    texts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labels of some of a dictionary's features, scored on held-out text."""

    labels: tuple[Label, ...]
    scores: tuple[LabelScore, ...]


@dataclass(frozen=True, eq=False)
class Shown:
    """One feature for the report: the dictionary's name, its number, and what its figures need."""

    feature: int
    label: str
    examples: tuple[tuple[tuple[str, ...], tuple[float | None, ...], int], ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    histogram: tuple[float, ...]
    edges: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a claim is judged by.

    Attributes:
        families: by name, of the model; ``twin``: a TopK SAE of the random-weight twin, on the twin's own activations.
        random_auc: ``[draws, concepts]`` detection by the best of as many random directions.
        shuffled_auc, shuffled_probe: ``[draws, concepts]`` detection and probing by the subject with shuffled labels.
        steering: by family. random_gains: ``[draws, steered concepts]`` of directions that nobody chose.
        unsteered_mass: ``[steered concepts]``, and unsteered_log_probability in nats.
        seeds, untrained_seeds: ``[features]`` cosine with the matched feature of another seed.
        labelled: by family, features that are active, drawn at random.
        truth: method -> recovery of the synthetic hierarchy, one for each seed.
        shown: one feature of the subject.
    """

    settings: dict[str, object]
    site: str
    rows: int
    families: dict[str, Family]
    twin: Family
    concepts: tuple[str, ...]
    random_auc: Floats
    random_s_cd: Floats
    shuffled_auc: Floats
    shuffled_probe: Floats
    steered: tuple[str, ...]
    steering: dict[str, Steering]
    random_gains: Floats
    random_log_probability: Floats
    unsteered_mass: Floats
    unsteered_log_probability: float
    seeds: Floats
    untrained_seeds: Floats
    labelled: dict[str, Labelled]
    truth: dict[str, tuple[Recovery, ...]]
    shown: Shown


def aucs(score: Score) -> Floats:
    """``[concepts]`` detection."""
    return np.array([one.auc for one in score.detections])


def probes(score: Score, k: int = 1) -> Floats:
    """``[concepts]`` probing with ``k`` features."""
    return np.array(score.probes[k])


def correlations(labelled: Labelled) -> Floats:
    """``[features]`` of predicted with true codes."""
    return np.array([one.correlation for one in labelled.scores])


def completed(evidence: Evidence, family: Family) -> Score:
    """A family's score with what was measured apart from it: steering, seeds, the synthetic truth."""
    steering, found = evidence.steering.get(family.name), evidence.truth.get(family.name, ())
    return replace(
        family.score,
        steering_gain=float(steering.gains.mean()) if steering else np.nan,
        steering_fluency=float(steering.log_probability.mean()) if steering else np.nan,
        agreement=float(
            {SUBJECT: evidence.seeds, UNTRAINED: evidence.untrained_seeds}.get(family.name, np.array(np.nan)).mean()
        ),
        recovery=Recovery(
            *(float(np.nanmedian([getattr(one, what) for one in found])) for what in ("cosine", "mcc", "absorption"))
        )
        if found
        else None,
    )
