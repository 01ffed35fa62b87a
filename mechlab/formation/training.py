"""Training a stack of few-shot models under a clamp, with checkpoints and curves; a run that was stopped goes on.

Sequences are drawn from the seed and the step alone, and a seed's first weights depend on nothing else. So runs of one seed under different
clamps are paired: they start alike and see the same data, and a stopped run gives the same numbers as one that was not.

Singh et al., arXiv 2404.07129, train with Adam at a rate of 1e-5 on 1e6 sequences in batches of 32. Here the rate is 50 times as high, so
that the change comes within a minute; everything is judged against the unclamped model under the same settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.errors import UnknownName
from mechlab.formation.clamps import Clamp, Values, all_clamps, clamp_sources
from mechlab.formation.fewshot import SPLITS, Sequences, Split, Task, sequences, stacked
from mechlab.formation.measures import measures
from mechlab.formation.stack import Pass, Shape, forward, fresh, tokens, trained
from mechlab.lens.apply import Source
from mechlab.lens.edit import Edit
from mechlab.lens.site import Site
from mechlab.models.keeping import Kept, home, keep, kept, moments_of, put_back
from mechlab.results.study import Progress

__all__ = ["Recipe", "Training", "train"]

Floats = NDArray[np.float64]
_CHUNK = 50
"""Steps whose sequences are drawn at once."""
_SAVE_EVERY = 8
"""Checkpoints between two writes to disk."""
_JUDGED_BY = 10**6


@dataclass(frozen=True)
class Recipe:
    """A stack of runs under one clamp.

    Attributes:
        clamp: a name in ``all_clamps``.
        seeds: one run each.
        task, shape: what is learned, by what.
        steps, batch, rate: at most so many optimizer steps; sequences in a batch; Adam's learning rate.
        every: steps between checkpoints.
        judged: sequences of each split that a checkpoint is judged on.
        level, settle: training ends ``settle`` steps after every run has had an accuracy of ``level``.
    """

    clamp: str = "none"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    task: Task = field(default_factory=Task)
    shape: Shape = field(default_factory=Shape)
    steps: int = 1500
    batch: int = 32
    rate: float = 5e-4
    every: int = 25
    judged: int = 128
    level: float = 0.9
    settle: int = 0


@dataclass(frozen=True, eq=False)
class Training:
    """A finished stack.

    Attributes:
        steps: ``[checkpoint]`` optimizer steps done, from 0.
        curves: measure -> ``[checkpoint, run]``, or ``[checkpoint, run, head]`` for what heads do (``measures``).
        weights: at the end, ``[run, ...]``.
    """

    recipe: Recipe
    steps: Floats
    curves: Mapping[str, Floats]
    weights: Mapping[str, Tensor]


def train(recipe: Recipe, folder: Path, progress: Progress) -> Training:
    """Trains, or goes on, or only reads what is finished.

    Raises:
        UnknownName: no such clamp. StoreError: a folder whose state cannot be read.
    """
    at, clamp = home(folder, recipe), named_clamp(recipe)
    found = kept(at)
    weights = found.weights if found else fresh(recipe.task, recipe.shape, recipe.seeds)
    for value in trained(weights).values():
        value.requires_grad_(True)
    if not (found and found.finished):
        found = _trained_on(recipe, clamp, weights, found, at, progress)
    curves = {name: np.array([record[name] for record in found.curves]) for name in found.curves[0] if name != "step"}
    steps = np.array([record["step"] for record in found.curves], dtype=np.float64)
    return Training(recipe, steps, curves, {name: value.detach() for name, value in weights.items()})


def named_clamp(recipe: Recipe) -> Clamp:
    """The clamp a recipe names. Raises UnknownName."""
    found = all_clamps(recipe.shape.n_heads)
    if recipe.clamp not in found:
        raise UnknownName("clamp", recipe.clamp, found)
    return found[recipe.clamp]


def _trained_on(
    recipe: Recipe, clamp: Clamp, weights: dict[str, Tensor], found: Kept | None, at: Path, progress: Progress
) -> Kept:
    parameters = trained(weights)
    optimizer = torch.optim.Adam(list(parameters.values()), lr=recipe.rate)
    if found:
        put_back(found, optimizer, list(parameters))
    step, curves = (found.step, found.curves) if found else (0, [])
    judges = judged(recipe)
    if not curves:
        curves.append(_record(recipe, clamp, weights, judges, 0))
    step, last = curves[-1]["step"] if found is None else step, _last(recipe, curves)
    while step < last:
        _step(recipe, clamp, weights, optimizer, step)
        step += 1
        if step % recipe.every == 0 or step == recipe.steps:
            curves.append(_record(recipe, clamp, weights, judges, step))
            last = _last(recipe, curves)
            if len(curves) % _SAVE_EVERY == 0 and step < last:
                keep(at, step, weights, moments_of(optimizer, list(parameters)), curves, finished=False)
        progress(f"training, {recipe.clamp}", step, last)
    keep(at, step, weights, moments_of(optimizer, list(parameters)), curves, finished=True)
    return Kept(step, True, weights, {}, curves)


def _last(recipe: Recipe, curves: list[dict[str, Any]]) -> int:
    """The step at which training ends: known once every run has reached the level."""
    best = np.array([record["accuracy train"] for record in curves])
    passed = (best >= recipe.level).any(axis=0)
    if not passed.all():
        return recipe.steps
    first = int((best >= recipe.level).argmax(axis=0).max())
    return min(recipe.steps, int(curves[first]["step"]) + recipe.settle)


def judged(recipe: Recipe) -> dict[Split, Sequences]:
    """``[run, n]`` sequences of each split for judging, other ones for each seed and none of those trained on."""
    return {
        split: stacked([sequences(recipe.task, split, recipe.judged, [seed, _JUDGED_BY + at]) for seed in recipe.seeds])
        for at, split in enumerate(SPLITS)
    }


def _step(
    recipe: Recipe, clamp: Clamp, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer, step: int
) -> None:
    batch = _batch(recipe, step)
    logits = clamped(recipe, clamp, weights, batch).logits
    # The sum over runs of each run's mean: runs do not see each other's gradients.
    loss = torch.nn.functional.cross_entropy(logits, batch.flat().answer, reduction="sum") / recipe.batch
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _batch(recipe: Recipe, step: int) -> Sequences:
    """``[run, batch]`` sequences of one step."""
    chunk, at = divmod(step, _CHUNK)
    rows = slice(at * recipe.batch, (at + 1) * recipe.batch)
    return stacked(
        [sequences(recipe.task, "train", _CHUNK * recipe.batch, [seed, chunk])[rows] for seed in recipe.seeds]
    )


def _record(
    recipe: Recipe, clamp: Clamp, weights: Mapping[str, Tensor], judges: Mapping[Split, Sequences], step: int
) -> dict[str, Any]:
    with torch.no_grad():
        found: dict[str, Any] = {"step": step}
        for split, batch in judges.items():
            one = clamped(recipe, clamp, weights, batch, (Site("pattern", 0), Site("pattern", 1)))
            found |= measures(one, batch, split)
        if clamp.name == "none":  # what the model could do if the rest were perfect
            for name in ("layer-1", "match"):
                part = all_clamps(recipe.shape.n_heads)[name]
                one = clamped(recipe, part, weights, judges["train"], (Site("pattern", 0), Site("pattern", 1)))
                found |= measures(one, judges["train"], f"with {name}")
    return found


def clamped(
    recipe: Recipe, clamp: Clamp, weights: Mapping[str, Tensor], batch: Sequences, read: tuple[Site, ...] = ()
) -> Pass:
    """One pass over ``batch`` (``[run, n]`` sequences) with the clamp on."""
    runs, n = batch.answer.shape
    seeds = torch.tensor(recipe.seeds).repeat_interleave(n)

    def reader(ids: Tensor, edits: tuple[Edit, ...], values: Values, at: Site) -> Tensor:
        given = ids.unflatten(0, (runs, n))
        return forward(weights, recipe.shape, recipe.task, given, edits, [at], _sources(values, ids)).read[at]

    values = clamp_sources(clamp, recipe.task, batch.flat(), recipe.shape.n_heads, seeds, reader)
    flat = batch.ids.flatten(0, 1)
    return forward(weights, recipe.shape, recipe.task, batch.ids, clamp.edits, read, _sources(values, flat))


def _sources(values: Values, ids: Tensor) -> dict[str, Source]:
    return {
        name: Source(tokens(ids), {(at.kind, at.layer): one for at, one in by_site.items()})
        for name, by_site in values.items()
    }
