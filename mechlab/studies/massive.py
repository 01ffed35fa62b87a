"""The massive-activations study: where they are, what they are for, how they grow in training.

What is claimed is written in ``massive_claims`` before anything runs. Here the numbers are measured:

1. On discovery text: sizes of entries after every layer, massive ones by the paper's rule, the first layer that has them, their means by
   dimension (the first token apart). On held-out text, and on the random-weight twin: the same count.
2. On held-out text, after that layer: massive entries set to zero, to their mean, to another text's value; as many others set to zero.
3. Over checkpoints: the ratio of the largest entry to the median, layer by layer; the exponentially modulated logarithm fitted to it, and
   simpler curves; its parameters predicted from architecture.

Sun et al., arXiv 2402.17762; Gallego-Feliciano et al., arXiv 2508.03616.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from mechlab.analyses.checkpoints import Trace, over_checkpoints
from mechlab.analyses.checkpoints_fit import Curve, check_count, fit, rivals
from mechlab.analyses.checkpoints_predictor import cross_validated, sample
from mechlab.analyses.checkpoints_training import Recipe, train
from mechlab.analyses.circumstances import study_report
from mechlab.analyses.massive import Chosen, Kind, Place, Survey, choose, loss_nats, set_to, survey, zeroed
from mechlab.analyses.sinks_prompts import characters_for, two_parts
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.models.keeping import training_folder
from mechlab.models.twin import random_twin
from mechlab.results.report import Report
from mechlab.results.study import Progress, Study, named
from mechlab.studies import massive_claims, massive_tables
from mechlab.studies.massive_evidence import (
    MEAN,
    MEDIAN,
    NEXT,
    RESAMPLED,
    ZERO,
    Evidence,
    Floats,
    Interventions,
    LayerFit,
)
from mechlab.studies.massive_settings import Settings
from mechlab.texts import passages

SHAPES = ((2, 32, 2), (4, 48, 4), (6, 64, 4))
"""Layers, width and heads of the small models."""
_PROMPTS = 10
"""Texts behind a checkpoint's ratios, as in the paper."""
_TRAINING_TEXTS = 600


def run(lens: Lens, settings: Settings, progress: Progress) -> Report:
    """Runs the study on one model. See the module's text for the steps.

    Raises:
        PromptError: texts shorter than the window. MechlabError: too few texts or checkpoints.
    """
    started = datetime.now(UTC)
    if settings.checkpoints:
        check_count(len(settings.checkpoints))  # said at once, rather than after minutes
    parts = two_parts(
        lens, settings.source, settings.n_discovery, settings.n_evaluation, settings.length, seed=settings.seed
    )
    evidence = gather(lens, *parts, settings, progress)
    tables, figures = massive_tables.tables_and_figures(evidence)
    return study_report(
        STUDY,
        lens,
        started,
        [evidence.discovery, evidence.evaluation],
        seed=settings.seed,
        config=settings.model_dump(),
        summary=massive_tables.summary(evidence),
        findings=massive_claims.findings(evidence),
        tables=tables,
        figures=figures,
    )


def gather(lens: Lens, discovery: Tokens, evaluation: Tokens, settings: Settings, progress: Progress) -> Evidence:
    """Every number of the study; no judgement yet."""
    twin = Lens(random_twin(lens.model, settings.seed), prepend_bos=lens.prepend_bos)

    def surveyed(whose: Lens, tokens: Tokens, name: str) -> Survey:
        return survey(whose, tokens, settings.floor, settings.ratio, named(progress, f"sizes of entries, {name}"))

    seen = surveyed(lens, discovery, "discovery")
    layer = seen.first_layer()
    traces = _traces(lens, settings, progress)
    fits = _fits(traces, progress)
    return Evidence(
        settings=settings.model_dump(),
        discovery=discovery,
        evaluation=evaluation,
        n_layers=lens.model.n_layers,
        d_model=lens.model.d_model,
        seen=seen,
        held_out=surveyed(lens, evaluation, "held out"),
        twin=surveyed(twin, evaluation, "twin"),
        layer=layer,
        interventions=None if layer is None else _interventions(lens, evaluation, seen, layer, settings, progress),
        traces=tuple(traces),
        fits=tuple(fits),
        predicted=cross_validated(samples(fits), draws=settings.draws, seed=settings.seed),
    )


def _interventions(
    lens: Lens, evaluation: Tokens, seen: Survey, layer: int, settings: Settings, progress: Progress
) -> Interventions | None:
    kinds, rows, counts = seen.means(layer), [], []
    for row in range(len(evaluation)):
        tokens = evaluation.select([row])
        hidden = lens.run(tokens, read=[Site("resid_post", layer)], logits="none")[Site("resid_post", layer)][0]
        chosen = choose(hidden, settings.floor, settings.ratio, kinds, settings.draws, settings.seed + row)
        if chosen.massive:
            rows.append(_losses(lens, tokens, layer, chosen, kinds, settings.seed + row))
            counts.append(len(chosen.massive))
        progress("entries set, held-out text", row + 1, len(evaluation))
    if len(rows) < 2:
        return None
    names = (ZERO, MEAN, RESAMPLED, NEXT, MEDIAN)
    table = np.array(rows)  # [n, 1 + names + draws]
    changed = {name: table[:, 1 + at] for at, name in enumerate(names)}
    return Interventions(layer, table[:, 0], changed, table[:, 1 + len(names) :].T, np.array(counts, dtype=np.float64))


def _losses(
    lens: Lens, tokens: Tokens, layer: int, chosen: Chosen, kinds: dict[Kind, Floats], seed: int
) -> list[float]:
    """Nothing changed; zero, mean, another text's; next largest, median-sized; random draws."""
    generator = np.random.default_rng(seed)

    def values(at: Place) -> Floats:
        return kinds[at.dimension, at.position == 0]

    cases = [
        [],
        zeroed(layer, chosen.massive),
        set_to(layer, {at: float(values(at).mean()) for at in chosen.massive}),
        set_to(layer, {at: float(generator.choice(values(at))) for at in chosen.massive}),
        zeroed(layer, chosen.next_largest),
        zeroed(layer, chosen.median_sized),
        *(zeroed(layer, places) for places in chosen.random),
    ]
    return [loss_nats(lens, tokens, edits) for edits in cases]


def _traces(lens: Lens, settings: Settings, progress: Progress) -> list[Trace]:
    if settings.checkpoints:
        given = passages(
            settings.source,
            count=_PROMPTS,
            part="held-out",
            seed=settings.seed,
            characters=characters_for(settings.length),
        )
        return [over_checkpoints(lens.model, settings.checkpoints, given, progress)]
    text = "\n\n".join(passages(count=_TRAINING_TEXTS, seed=settings.seed))
    folder = training_folder(settings.folder)
    return [
        train(
            Recipe(*shape, steps=settings.train_steps, n_checkpoints=settings.n_checkpoints, seed=settings.seed),
            text,
            folder,
            progress,
        )
        for shape in SHAPES
    ]


def _fits(traces: Sequence[Trace], progress: Progress) -> list[LayerFit]:
    places = [(trace, layer) for trace in traces for layer in range(trace.n_layers)]
    found: list[LayerFit] = []
    for trace, layer in places:
        series = trace.ratios[:, layer]
        others = {one.name: one for one in rivals(trace.steps, series)}
        found.append(LayerFit(trace, layer, fit(trace.steps, series), others))
        progress("curves over training", len(found), len(places))
    return found


def samples(fits: Sequence[LayerFit]) -> pd.DataFrame:
    """One row per layer with a curve: its architecture and its parameters."""
    kept = [(one, one.fit.curve) for one in fits if one.fit.curve is not None]
    rows = [
        sample([one.layer / max(1, one.trace.n_layers - 1)], one.trace.n_layers, one.trace.d_model, one.trace.n_heads)
        for one, _ in kept
    ]
    if not rows:
        return pd.DataFrame()
    curves = pd.DataFrame([found for _, found in kept], columns=list(Curve._fields))
    return pd.concat([pd.concat(rows, ignore_index=True), curves], axis=1)


STUDY = Study(
    name="massive-activations",
    title="Massive activations: where, what for, and how they grow",
    paper="Sun et al. 2024, arXiv 2402.17762; Gallego-Feliciano et al. 2025, arXiv 2508.03616",
    line="Massive entries by layer, token and dimension; set to zero, to their mean, against others; their growth over checkpoints.",
    settings=Settings,
    run=run,
)
