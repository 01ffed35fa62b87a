"""What the IOI study measured, before it is judged."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from circuits.controls import Head
from mechlab.patching.task import Task
from mechlab.results.effects import Effects

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Behaviour:
    """Per prompt ``[n]``: logit difference in logits, and 1.0 where the answer beats the foil."""

    logit_difference: Floats
    accuracy: Floats


@dataclass(frozen=True, eq=False)
class Discovery:
    """What heads were chosen from, on one model's discovery prompts.

    Attributes:
        by_head, by_residual: patching effects of each head, and of the residual stream at each layer and label (None on the twin).
        direct: ``[batch, layer, head]`` direct logit attribution.
        attention: ``[class, batch, layer, head]``.
        qualified: class -> heads that attend as it should.
        effects: class -> head -> mean effect, in logits.
        sets: the heads of each claim: ``"top_heads"`` and each head class; possibly none.
    """

    task: Task
    by_head: Effects
    by_residual: Effects | None
    direct: Floats
    attention: Floats
    qualified: dict[str, list[Head]]
    effects: dict[str, dict[Head, float]]
    sets: dict[str, list[Head]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a claim is judged by.

    Attributes:
        behaviour: of the model, the random-weight twin, and the model with shuffled answers.
        discovery, twin_discovery: the model's and the twin's own choice of heads.
        evaluation: held-out pairs.
        changes: claim -> logit difference restored per evaluation prompt ``[n]``.
        shuffled: the same, measured with the answers of other prompts.
        twin_changes: the same on the twin, with the twin's own heads.
        random_changes: claim -> ``[draw, n]`` for random heads of the same layers.
        direct: "model", "twin", "shuffled" -> ``[n, layer, head]`` direct logit attribution on evaluation prompts.
    """

    settings: dict[str, object]
    behaviour: dict[str, Behaviour]
    discovery: Discovery
    twin_discovery: Discovery
    evaluation: Task
    changes: dict[str, Floats]
    shuffled: dict[str, Floats]
    twin_changes: dict[str, Floats]
    random_changes: dict[str, Floats]
    random_sets: dict[str, list[list[Head]]]
    direct: dict[str, Floats]
