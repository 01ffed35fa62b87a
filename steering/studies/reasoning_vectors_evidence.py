"""What the reasoning-vectors study measures, before it is judged."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.lens.edit import Edit
from mechlab.lens.lens import Lens
from mechlab.results.metrics import accuracy, kl_nats
from steering.studies.reasoning_tasks import Questions

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answered:
    """What a model did with questions, ``[n]`` each.

    Attributes:
        right: 1 where the right answer has the largest logit of the candidates.
        share: probability of the right answer among the candidates' own.
        kl: KL(unsteered || steered) of the next token, nats. entropy: of the next token, bits.
    """

    right: Floats
    share: Floats
    kl: Floats
    entropy: Floats


@dataclass(frozen=True, eq=False)
class Matched:
    """A vector at the strength that costs the KL asked for."""

    strength: float
    answered: Answered


@dataclass(frozen=True, eq=False)
class TaskEvidence:
    """One task.

    Attributes:
        base: unsteered. by_strength: the task's own vector.
        own, cross, wrong_layer: at equal KL: the task's vector, another task's, the task's at another layer. cross_name: which task.
        random, shuffled: draws at equal KL: directions of equal length, vectors from shuffled labels.
        twin_base, twin: the random-weight twin, with its own vector. None anywhere: the KL asked for is reached at no strength.
        separation: AUROC with which the vector tells task text from the other on questions it was not made from.
    """

    task: str
    base: Answered
    by_strength: dict[float, Answered]
    own: Matched | None
    cross: Matched | None
    cross_name: str
    wrong_layer: Matched | None
    random: list[Matched]
    shuffled: list[Matched]
    twin_base: Answered
    twin_extremes: list[Answered]
    twin: Matched | None
    separation: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything the study measured; ``layer`` and ``wrong_layer`` are block outputs counted from 0."""

    settings: dict[str, object]
    layer: int
    wrong_layer: int
    tasks: list[TaskEvidence]


def answered(lens: Lens, asked: Questions, edits: Sequence[Edit], base: Tensor) -> Answered:
    """``base``: ``[n, vocab]`` unsteered logits of the same questions."""
    logits = last_logits(lens, asked, edits)
    columns = torch.cat([asked.answers[:, None], asked.foils], dim=1)
    log_p = logits.double().log_softmax(-1)
    return Answered(
        right=accuracy(logits, asked.answers, asked.foils).double().numpy(),
        share=log_p.gather(1, columns).softmax(-1)[:, 0].numpy(),
        kl=kl_nats(base, logits).numpy(),
        entropy=(-(log_p.exp() * log_p).sum(-1) / np.log(2)).numpy(),
    )


def last_logits(lens: Lens, asked: Questions, edits: Sequence[Edit] = ()) -> Tensor:
    """``[n, vocab]`` float32."""
    logits = lens.run(asked.prompts, edits, logits="last").last_logits
    assert logits is not None
    return logits.float()
