"""The induction-formation study: what has to be learned before an induction head works, by handing parts over while it trains.

What is claimed is written in ``induction_formation_claims`` before anything runs. Here the numbers are measured:

1. Stacks of two-layer attention-only models train on the few-shot task, one run per seed: without a clamp, with each right clamp, with
   wrong ones; then with more classes, and with more labels. Runs of one seed start alike and see the same sequences.
2. The unclamped models are put into Hugging Face form, and a Lens keeps or drops each second-layer head.
3. The tensor toy: three vectors that learn a product, with factors clamped.

The model of the lens is not used: what forms is trained on the spot. The settings were chosen so that the unclamped model learns in about
a minute; nothing else was looked at when they were.

Singh et al., arXiv 2404.07129.
"""

from dataclasses import replace
from datetime import UTC, datetime

import pandas as pd

from mechlab.analyses.circumstances import study_report
from mechlab.formation.clamps import all_clamps
from mechlab.formation.exported import exported
from mechlab.formation.fewshot import Sequences, Task, sequences
from mechlab.formation.heads import Heads, judge_heads
from mechlab.formation.stack import Shape, fresh, tokens
from mechlab.formation.tensor_toy import HELD, Toy, learn, wait
from mechlab.formation.training import Recipe, Training, train
from mechlab.lens.lens import Lens
from mechlab.models.keeping import training_folder
from mechlab.results.report import Report
from mechlab.results.study import Progress, Study, in_one, named
from mechlab.studies import induction_formation_claims, induction_formation_tables
from mechlab.studies.induction_formation_evidence import BASE, Evidence, Floats
from mechlab.studies.induction_formation_settings import Settings

_HEADS_JUDGED_BY = 2 * 10**6
_HEADS_JUDGED_ON = 256


def run(lens: Lens, settings: Settings, progress: Progress) -> Report:
    """Runs the study; the lens only says on which machine and with which versions.

    Raises:
        StoreError: a training folder that cannot be read.
    """
    started = datetime.now(UTC)
    found = gather(settings, progress)
    tables, figures = induction_formation_tables.tables_and_figures(found)
    return study_report(
        STUDY,
        lens,
        started,
        [tokens(_judged(settings, at).ids) for at in range(settings.seeds)],
        seed=settings.seed,
        config=settings.model_dump(),
        summary=induction_formation_tables.summary(found, lens.model.name),
        findings=induction_formation_claims.findings(found),
        tables=tables,
        figures=figures,
    )


def gather(settings: Settings, progress: Progress) -> Evidence:
    """Every number of the study; no judgement yet."""
    folder = training_folder(settings.folder)
    every = recipes(settings)
    whole = in_one(progress, len(every) + 3)
    trainings = {name: train(recipe, folder, whole(at)) for at, (name, recipe) in enumerate(every.items())}
    base = trainings[BASE]
    first = fresh(base.recipe.task, base.recipe.shape, base.recipe.seeds)
    heads, first_heads = (named(whole(len(every) + at), "heads kept and dropped") for at in (0, 1))
    judged = _heads(base, settings, heads), _heads(replace(base, weights=first), settings, first_heads)
    toy, losses = _toys(settings, named(whole(len(every) + 2), "tensor toy"))
    return Evidence(
        settings=settings,
        trainings=trainings,
        heads=judged[0],
        untrained=judged[1],
        toy=toy,
        toy_losses=losses,
    )


def recipes(settings: Settings) -> dict[str, Recipe]:
    """By condition: every clamp, then more classes, then more labels."""
    task = Task(settings.classes, settings.labels)
    plain = Recipe(
        seeds=tuple(range(settings.seed, settings.seed + settings.seeds)),
        task=task,
        shape=Shape(settings.d_model, settings.n_heads),
        steps=settings.steps,
        rate=settings.rate,
        every=settings.every,
        judged=settings.judged,
    )
    found = {name: replace(plain, clamp=name) for name in all_clamps(settings.n_heads)}
    found[BASE] = replace(plain, settle=settings.settle)
    found |= {f"{more} classes": replace(plain, task=replace(task, classes=more)) for more in settings.more_classes}
    found |= {f"{more} labels": replace(plain, task=replace(task, labels=more)) for more in settings.more_labels}
    return found


def _judged(settings: Settings, at: int) -> Sequences:
    task = Task(settings.classes, settings.labels)
    return sequences(task, "train", _HEADS_JUDGED_ON, [settings.seed + at, _HEADS_JUDGED_BY])


def _heads(training: Training, settings: Settings, progress: Progress) -> tuple[Heads, ...]:
    recipe, found = training.recipe, list[Heads]()
    for at in range(settings.seeds):
        lens = Lens(exported(training.weights, at, recipe.task, recipe.shape))
        found.append(judge_heads(lens, recipe.task, _judged(settings, at)))
        progress("", at + 1, settings.seeds)
    return tuple(found)


def _toys(settings: Settings, progress: Progress) -> tuple[pd.DataFrame, dict[str, Floats]]:
    rows: list[dict[str, object]] = []
    losses: dict[str, Floats] = {}
    for done, held in enumerate(HELD):
        for seed in range(settings.seed, settings.seed + settings.seeds):
            found = learn(Toy(steps=settings.toy_steps), held, seed)
            losses.setdefault(held, found)
            steps, reached = wait(found)
            rows.append({"held": held, "seed": seed, "wait": steps, "reached": reached})
        progress("", done + 1, len(HELD))
    return pd.DataFrame(rows), losses


STUDY = Study(
    name="induction-formation",
    title="How an induction head forms: parts handed over while it trains",
    paper="Singh et al. 2024, What needs to go right for an induction head?, arXiv 2404.07129",
    line="Two-layer attention-only models trained here with right and wrong clamps on all the while: when does the change come?",
    settings=Settings,
    run=run,
)
