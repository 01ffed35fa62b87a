"""The abrupt-learning study: when a small network learns to use its context, and when it learns by heart instead.

What is claimed is written in ``abrupt_learning_claims`` before anything runs. Here the numbers are measured:

1. Two attention layers and a classifier, one run per seed, on sequences whose classes are always new: N items, L labels; L above N, L = N.
2. The same network with K classes of training, each B times in a context: is a new class answered from the context, a class that the
   context lacks from the weights?
3. The reduced model: three parameters under gradient descent.

The model of the lens is not used: networks are trained on the spot, at sizes and rates at which one learns within a minute.

Reddy, arXiv 2312.03002.
"""

from datetime import UTC, datetime

import numpy as np
import torch

from mechlab.analyses.circumstances import study_report
from mechlab.formation.abrupt_data import World
from mechlab.formation.abrupt_theory import Reduced, descend
from mechlab.formation.abrupt_training import AbruptRecipe, train_abrupt
from mechlab.formation.stack import tokens
from mechlab.lens.lens import Lens
from mechlab.models.keeping import training_folder
from mechlab.results.report import Report
from mechlab.results.study import Progress, Study, in_one, named
from mechlab.studies import abrupt_learning_claims, abrupt_learning_tables
from mechlab.studies.abrupt_learning_evidence import Evidence
from mechlab.studies.abrupt_learning_settings import Settings


def run(lens: Lens, settings: Settings, progress: Progress) -> Report:
    """Runs the study; the lens only says on which machine and with which versions.

    Raises:
        StoreError: a training folder that cannot be read.
    """
    started = datetime.now(UTC)
    found = gather(settings, progress)
    tables, figures = abrupt_learning_tables.tables_and_figures(found)
    return study_report(
        STUDY,
        lens,
        started,
        [
            tokens(torch.tensor([[settings.seed, settings.seeds]]))
        ],  # there are no prompts: sequences are vectors, made from the seeds
        seed=settings.seed,
        config=settings.model_dump(),
        summary=abrupt_learning_tables.summary(found, lens.model.name),
        findings=abrupt_learning_claims.findings(found),
        tables=tables,
        figures=figures,
    )


def gather(settings: Settings, progress: Progress) -> Evidence:
    """Every number of the study; no judgement yet."""
    folder = training_folder(settings.folder)
    sizes = [(n, labels) for n in settings.items for labels in (settings.labels, n)]
    data = [(k, b) for k in settings.classes for b in settings.bursts]
    most = max(settings.items)
    whole = in_one(progress, len(sizes) + len(data) + 1)
    by_labels = {
        (n, labels): train_abrupt(_recipe(settings, _world(n, labels), settings.steps), folder, whole(at))
        for at, (n, labels) in enumerate(sizes)
    }
    by_data = {
        (k, b): train_abrupt(
            _recipe(settings, _world(most, settings.labels, k, b), settings.steps_classes),
            folder,
            named(whole(len(sizes) + at), f"training, K = {k}, B = {b}"),
        )
        for at, (k, b) in enumerate(data)
    }
    reduced: dict[tuple[int, int], np.ndarray] = {}
    for at, (n, labels) in enumerate(sizes):
        reduced[n, labels] = descend(Reduced(n, labels, steps=settings.theory_steps), settings.seeds)
        whole(len(sizes) + len(data))("reduced model", at + 1, len(sizes))
    return Evidence(settings, by_labels, by_data, reduced)


def _world(items: int, labels: int, classes: int = 0, burst: int = 1) -> World:
    return World(items=items, labels=labels, classes=classes, burst=burst, window=2 * items + 9)


def _recipe(settings: Settings, world: World, steps: int) -> AbruptRecipe:
    return AbruptRecipe(
        world=world,
        seeds=tuple(range(settings.seed, settings.seed + settings.seeds)),
        steps=steps,
        rate=settings.rate,
        every=settings.every,
        judged=settings.judged,
    )


STUDY = Study(
    name="abrupt-learning",
    title="Abrupt learning: from the context, or by heart",
    paper="Reddy 2024, The mechanistic basis of data dependence and abrupt learning, arXiv 2312.03002",
    line="Two attention layers and a classifier trained here: more labels than items or as many; in context or in weights; theory.",
    settings=Settings,
    run=run,
)
