"""What the emotion study measures, before it is judged."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
JUDGES = ("words", "projection", "probe")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one way of asking for one emotion did to neutral prompts, ``[n]`` each.

    Attributes:
        strength: of the edits. reached: whether it costs the KL asked for.
        kl: KL(unsteered || steered) of the next token, nats.
        words: rise of the probability of the emotion's words.
        projection: rise of the projection on the emotion's direction at the readout, in mean lengths of what emotions add there.
        probe: rise of the probe's probability of the emotion.
    """

    strength: float
    reached: bool
    kl: Floats
    words: Floats
    projection: Floats
    probe: Floats

    def gain(self, judge: str) -> Floats:
        return getattr(self, judge)


ByEmotion = dict[str, Outcome]


def gain(found: ByEmotion, judge: str) -> Floats:
    """``[n]``: mean over the emotions."""
    return np.mean([one.gain(judge) for one in found.values()], axis=0)


@dataclass(frozen=True, eq=False)
class Recognition:
    """How specific directions are on held-out scenarios in another wording, ``[group]`` (see ``directions.specificity``).

    Attributes:
        own: at the readout. shuffled, random: the mean of each draw.
        layers: columns ``layer``, ``site``, ``specificity``, ``low``, ``high``. confusion: ``[emotion, emotion]`` shares at the readout.
    """

    own: Floats
    shuffled: Floats
    random: Floats
    layers: pd.DataFrame
    confusion: Floats


@dataclass(frozen=True, eq=False)
class Ablation:
    """Loss of the projection on the emotion's direction when units of one kind are zeroed, in the unit of ``Outcome.projection``.

    Attributes:
        top, other: ``[group]``: the emotion's own units; the next emotion's. random, shuffled: the mean of each draw.
        curve: columns ``kind``, ``k``, ``units``, ``what`` (zeroed / doubled), ``change``, ``low``, ``high``.
    """

    top: Floats
    other: Floats
    random: Floats
    shuffled: Floats
    curve: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything the study measured.

    Attributes:
        readout: name of the site of projections and probe.
        ablations: by kind of unit. methods: name -> its draws (one, unless random). twin_*: the same of the random-weight twin.
        texts: one row per way of asking and emotion: fluency of greedy text.
        allocation: one row per emotion, layer and kind: influence, units by influence and uniform. shapes: what the paper reports.
        prompting_kl: emotion -> KL of prompting as it is, nats.
    """

    settings: dict[str, object]
    readout: str
    n_prompts: int
    recognition: Recognition
    ablations: dict[str, Ablation]
    methods: dict[str, list[ByEmotion]]
    twin_specificity: Floats
    twin_ablations: dict[str, Floats]
    twin_circuit: ByEmotion
    twin_plain: ByEmotion
    twin_uniform: ByEmotion
    twin_prompting: ByEmotion
    texts: pd.DataFrame
    allocation: pd.DataFrame
    shapes: dict[str, float]
    probe_accuracy: float
    prompting_as_is: ByEmotion


def single(draws: Sequence[ByEmotion]) -> ByEmotion:
    """Of a method that is not drawn."""
    (one,) = draws
    return one
