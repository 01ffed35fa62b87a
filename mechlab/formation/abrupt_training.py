"""Training the abrupt-learning network, one run per seed, with checkpoints and curves; a run that was stopped goes on.

Reddy, arXiv 2312.03002, trains by plain gradient descent at a rate of 0.01 with batches of 128 for some 150,000 steps. Here momentum
0.9 and a rate of 0.03 make that a minute; batches are drawn from the seed and the step alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.formation.abrupt_data import KINDS, Examples, Kind, Vectors, World, examples, vectors
from mechlab.formation.abrupt_model import Seen, forward, fresh
from mechlab.models.keeping import Kept, home, keep, kept
from mechlab.results.study import Progress

Floats = NDArray[np.float64]
_CHUNK = 20
_JUDGED_BY = 10**6
_SAVE_EVERY = 10
_MOMENTUM, _DECAY = 0.9, 1e-6


@dataclass(frozen=True)
class AbruptRecipe:
    """A stack of runs of one world.

    Attributes:
        seeds: one run each.
        hidden: width of the classifier's two hidden layers.
        steps, batch, rate: optimizer steps; sequences in a batch; the learning rate.
        every: steps between checkpoints.
        judged: sequences of each kind that a checkpoint is judged on.
    """

    world: World = field(default_factory=World)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    hidden: int = 64
    steps: int = 2000
    batch: int = 64
    rate: float = 0.03
    every: int = 25
    judged: int = 200


@dataclass(frozen=True, eq=False)
class AbruptTraining:
    """A finished stack: ``steps [checkpoint]``, and measure -> ``[checkpoint, run]`` (``abrupt_measures``)."""

    recipe: AbruptRecipe
    steps: Floats
    curves: Mapping[str, Floats]


def train_abrupt(recipe: AbruptRecipe, folder: Path, progress: Progress) -> AbruptTraining:
    """Trains, or goes on, or only reads what is finished. Raises StoreError for a folder whose state cannot be read."""
    at = home(folder, recipe)
    found = kept(at)
    if not (found and found.finished):
        found = _trained_on(recipe, found, at, progress)
    curves = {name: np.array([record[name] for record in found.curves]) for name in found.curves[0] if name != "step"}
    return AbruptTraining(recipe, np.array([record["step"] for record in found.curves], dtype=np.float64), curves)


def _trained_on(recipe: AbruptRecipe, found: Kept | None, at: Path, progress: Progress) -> Kept:
    weights = found.weights if found else fresh(recipe.world, recipe.hidden, recipe.seeds)
    velocity = {
        name: found.moments[name]["velocity"] if found else torch.zeros_like(one) for name, one in weights.items()
    }
    own = [vectors(recipe.world, seed) for seed in recipe.seeds]
    judges = _judges(recipe, own)
    curves = found.curves if found else [_record(weights, judges, 0)]
    chunk: list[Examples] = []
    for step in range(found.step if found else 0, recipe.steps):
        if not chunk or step % _CHUNK == 0:
            many = list(zip(recipe.seeds, own, strict=True))
            chunk = [
                examples(recipe.world, mine, "train", _CHUNK * recipe.batch, [seed, step // _CHUNK])
                for seed, mine in many
            ]
        at_batch = step % _CHUNK * recipe.batch
        rows = slice(at_batch, at_batch + recipe.batch)
        _descend(
            recipe,
            weights,
            velocity,
            torch.stack([one.tokens[rows] for one in chunk]),
            torch.stack([one.answer[rows] for one in chunk]),
        )
        if (step + 1) % recipe.every == 0 or step + 1 == recipe.steps:
            curves.append(_record(weights, judges, step + 1))
            if len(curves) % _SAVE_EVERY == 0 and step + 1 < recipe.steps:
                keep(at, step + 1, weights, _moments(velocity), curves, finished=False)
        progress(f"training, N = {recipe.world.items}, L = {recipe.world.labels}", step + 1, recipe.steps)
    keep(at, recipe.steps, weights, _moments(velocity), curves, finished=True)
    return Kept(recipe.steps, True, weights, _moments(velocity), curves)


def _moments(velocity: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {name: {"velocity": value} for name, value in velocity.items()}


def _descend(
    recipe: AbruptRecipe, weights: dict[str, Tensor], velocity: dict[str, Tensor], tokens: Tensor, answer: Tensor
) -> None:
    """One step of gradient descent with momentum; runs do not see each other's gradients."""
    leaves = {name: value.detach().requires_grad_(True) for name, value in weights.items()}
    logits = forward(leaves, tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), answer.flatten(), reduction="sum") / recipe.batch
    slopes = torch.autograd.grad(loss, list(leaves.values()))
    with torch.no_grad():
        for (name, value), slope in zip(weights.items(), slopes, strict=True):
            velocity[name] = _MOMENTUM * velocity[name] + slope + _DECAY * value
            weights[name] = value - recipe.rate * velocity[name]


def _judges(recipe: AbruptRecipe, own: list[Vectors]) -> dict[Kind, list[Examples]]:
    """Fresh sequences of every kind that the world has."""
    kinds = KINDS if recipe.world.classes else ("train",)
    return {
        kind: [
            examples(recipe.world, mine, kind, recipe.judged, [seed, _JUDGED_BY + at])
            for seed, mine in zip(recipe.seeds, own, strict=True)
        ]
        for at, kind in enumerate(kinds)
    }


def _record(weights: Mapping[str, Tensor], judges: Mapping[Kind, list[Examples]], step: int) -> dict[str, Any]:
    found: dict[str, Any] = {"step": step}
    with torch.no_grad():
        for kind, many in judges.items():
            seen = forward(weights, torch.stack([one.tokens for one in many]))
            found |= {f"{name} {kind}": value.tolist() for name, value in abrupt_measures(seen, many).items()}
    return found


def abrupt_measures(seen: Seen, many: list[Examples]) -> dict[str, Tensor]:
    """By run ``[run]``: ``accuracy``, ``loss`` (nats), and Reddy's progress measures.

    ``ila1``: first-layer attention from labels to their items; ``tila2``: second-layer attention from the target to the right labels;
    ``tla2``: to all labels; ``cla``: probability of the labels shown in the context.
    """
    answer, shown = torch.stack([one.answer for one in many]), torch.stack([one.shown for one in many])
    right = torch.stack([one.right for one in many])
    logs = seen.logits.log_softmax(dim=-1)
    at_labels = seen.second[:, :, 0, 1::2]
    odd = torch.arange(1, seen.first.shape[-1], 2)
    is_shown = torch.zeros_like(logs).scatter(2, shown, 1.0)
    found = {
        "accuracy": (seen.logits.argmax(dim=2) == answer).double(),
        "loss": -logs.gather(2, answer[..., None])[..., 0].double(),
        "ila1": seen.first[:, :, odd, odd - 1].mean(dim=2),
        "tila2": (at_labels * right).sum(dim=2),
        "tla2": at_labels.sum(dim=2),
        "cla": (logs.exp() * is_shown).sum(dim=2),
    }
    return {name: value.mean(dim=1) for name, value in found.items()}
