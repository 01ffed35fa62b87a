"""The transcoder study: MLPs told in features, and circuits of those features.

What is claimed is written in ``transcoder_claims`` before anything runs. Here the numbers are measured:

1. Which MLPs matter for the task is asked on discovery prompts; transcoders of those layers are trained on the spot, on plain text.
2. On held-out text: the loss with transcoders in the MLPs' place, and with untrained ones, linear maps, and nothing.
3. On discovery prompts, frozen: the contribution of every feature to the logit difference. The features of the largest ones are chosen.
4. On evaluation prompts (other words and templates): sums against targets; the chosen features ablated, with errors kept, against random
   active features, features chosen with permuted decoder rows, an untrained transcoder's, and neurons.
  The other way round: only a few units kept and all others set to their means (``transcoder_kept``).
5. Connections by weights alone, against what features contribute to each other on the evaluation prompts; and over plain text, which
  lower features feed a feature wherever it is active (``transcoder_feeding``).
6. The same transcoders, choice and ablation in the random-weight twin.

Dunefsky, Chlenski and Nanda, arXiv 2406.11944.
"""

from datetime import UTC, datetime
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from circuits.features.explained import explain_run
from circuits.features.graph import attribution_graph, pruned
from circuits.features.paths import greedy_paths, path_table
from circuits.features.target import feature_target
from circuits.features.transcoder import shown
from circuits.features.weights import de_embeddings, unembeddings
from circuits.studies import transcoder_claims, transcoder_tables
from circuits.studies.transcoder_claims import UNTRAINED
from circuits.studies.transcoder_evidence import Ablation, Evidence, Feeding, Unit
from circuits.studies.transcoder_feeding import Listed, feeding
from circuits.studies.transcoder_fits import Budget, ByLayer, fitted, held_out_texts, losses
from circuits.studies.transcoder_kept import curves
from circuits.studies.transcoder_measures import (
    Counts,
    Prompts,
    ablation,
    ablation_alone,
    contributions,
    fed_by_weights,
    frozen,
    gaps,
    important_layers,
    target_of,
)
from circuits.tasks.capitals import capitals
from circuits.tasks.greater_than import greater_than
from mechlab.analyses.circumstances import study_report
from mechlab.lens.lens import Lens
from mechlab.models.twin import random_twin
from mechlab.patching.task import Task
from mechlab.results.report import Report
from mechlab.results.study import Progress, Study

_TASKS = {"greater-than": greater_than, "capitals": capitals}
_SHOWN = 12
"""Chosen features whose tokens are listed."""


class Settings(BaseModel):
    """Settings of the transcoder study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Literal["greater-than", "capitals"] = Field("greater-than", description="behaviour to explain")
    n_discovery: int = Field(16, ge=2, description="prompts on which layers and features are chosen")
    n_evaluation: int = Field(16, ge=2, description="prompts on which claims are tested")
    n_layers: int = Field(3, ge=2, description="MLPs to train transcoders of")
    tokens: int = Field(20_000, ge=500, description="tokens of text to train on; the twin's get a quarter")
    epochs: int = Field(4, ge=1, description="times the text is seen in training")
    features: int = Field(1536, ge=16, description="width of each transcoder")
    k: int = Field(32, ge=1, description="features active per token")
    top_features: int = Field(30, ge=1, description="features of the largest contributions, ablated together")
    n_targets: int = Field(8, ge=1, description="features of the highest layer whose inputs are picked by weights")
    n_passages: int = Field(12, ge=2, description="held-out passages on which the loss is measured")
    draws: int = Field(10, ge=2, description="random draws per control")
    seed: int = Field(0, description="of prompts, text, training, draws, intervals and the twin")


def run(lens: Lens, settings: Settings, progress: Progress) -> Report:
    """Runs the study on one model. See the module's text for the steps.

    Raises:
        MechlabError: more layers than the model has, or too few active features for the controls. PromptError: a tokenizer without prompts
            for the task. SiteError: a family that freezing does not make affine.
    """
    started = datetime.now(UTC)
    twin = Lens(random_twin(lens.model, settings.seed), prepend_bos=lens.prepend_bos)
    discovery, evaluation = (_task(lens, settings, split) for split in ("discovery", "evaluation"))
    evidence = gather(lens, twin, discovery, evaluation, settings, progress)
    tables, figures = transcoder_tables.tables_and_figures(evidence)
    return study_report(
        STUDY,
        lens,
        started,
        [discovery.clean, evaluation.clean],
        seed=settings.seed,
        config=settings.model_dump(),
        summary=transcoder_tables.summary(evidence),
        findings=transcoder_claims.findings(evidence),
        tables=tables,
        figures=figures,
    )


def gather(
    lens: Lens, twin: Lens, discovery: Task, evaluation: Task, settings: Settings, progress: Progress
) -> Evidence:
    """Every number of the study; no judgement yet."""
    layers, importance = important_layers(lens, discovery, settings.n_layers, progress)
    sets, fits = fitted(lens, layers, _budget(settings), progress)
    transcoders = sets["transcoders"]
    by_text = losses(lens, sets, settings.n_passages, settings.seed, progress)
    seen = frozen(lens, discovery, progress, "freezing discovery prompts")
    asked = frozen(lens, evaluation, progress, "freezing evaluation prompts")
    counts = Counts(settings.top_features, settings.draws, settings.seed)
    rivals = {name: sets[name] for name in ("transcoders", UNTRAINED)}
    in_model = ablation(lens, seen, evaluation, rivals, counts, progress)
    exact, without_errors = gaps(lens, asked, transcoders)
    features = _features(lens, seen, asked, transcoders, in_model.chosen)
    alone = curves(lens, seen, evaluation, transcoders, settings.draws, settings.seed, progress)
    return Evidence(
        settings=settings.model_dump(),
        layers=layers,
        importance=importance,
        fits=fits,
        losses=by_text,
        gaps=exact,
        gaps_without_errors=without_errors,
        model=in_model,
        twin=_in_twin(twin, layers, discovery, evaluation, settings, progress),
        connections=fed_by_weights(
            seen, asked, transcoders, Counts(10, settings.draws, settings.seed), settings.n_targets
        ),
        features=features,
        paths=_paths(asked, transcoders, in_model.chosen),
        kept=alone,
        feeding=_feeding(lens, seen, transcoders, settings),
        graph=pruned(
            attribution_graph(explain_run(asked.runs[0], transcoders.values()), [target_of(lens, evaluation, 0)])
        ),
    )


def _task(lens: Lens, settings: Settings, split: str) -> Task:
    n = settings.n_discovery if split == "discovery" else settings.n_evaluation
    return _TASKS[settings.task](lens, n, seed=settings.seed, split=split)  # pyright: ignore[reportArgumentType]


def _budget(settings: Settings, share: float = 1.0) -> Budget:
    return Budget(int(settings.tokens * share), settings.epochs, settings.features, settings.k, settings.seed)


def _in_twin(
    twin: Lens, layers: list[int], discovery: Task, evaluation: Task, settings: Settings, progress: Progress
) -> Ablation:
    sets, _ = fitted(
        twin, layers, _budget(settings, 0.25), lambda label, done, total: progress(f"{label} (twin)", done, total)
    )
    seen = frozen(twin, discovery, progress, "freezing discovery prompts (twin)")
    return ablation_alone(twin, seen, evaluation, sets["transcoders"], settings.top_features)


def _features(lens: Lens, seen: Prompts, asked: Prompts, transcoders: ByLayer, chosen: list[Unit]) -> pd.DataFrame:
    """The chosen features: contributions on both sets of prompts, share of evaluation prompts where active, tokens by weights."""
    before, after = (contributions(prompts, transcoders)[0] for prompts in (seen, asked))
    rows: list[tuple[object, ...]] = []
    for rank, (layer, feature) in enumerate(chosen):
        here, there = (table[layer][:, feature] for table in (before, after))
        words = _tokens(lens, transcoders, layer, feature) if rank < _SHOWN else ("", "")
        rows.append(
            (f"L{layer}F{feature}", float(here.mean()), float(there.mean()), float((there != 0).float().mean()), *words)
        )
    return pd.DataFrame(
        rows, columns=["feature", "discovery", "evaluation", "active", "read by weights", "written by weights"]
    )


def _tokens(lens: Lens, transcoders: ByLayer, layer: int, feature: int) -> tuple[str, str]:
    """The tokens whose embeddings excite a feature most, and those whose logits it raises most."""
    one = shown(transcoders[layer])
    found: list[str] = []
    for scores in (de_embeddings(lens, one, [feature]), unembeddings(lens, one, [feature])):
        best = scores[0].topk(6).indices.tolist()
        found.append(" ".join(repr(str(lens.model.tokenizer.decode([token]))) for token in best))
    return found[0], found[1]


def _feeding(lens: Lens, seen: Prompts, transcoders: ByLayer, settings: Settings) -> Feeding:
    """Over the held-out passages, of the strongest features of the highest layer."""
    highest = max(transcoders)
    scores = contributions(seen, {highest: transcoders[highest]})[0][highest].mean(0)
    wanted = scores.argsort(descending=True).tolist()
    texts = held_out_texts(settings.n_passages, settings.seed)
    return feeding(lens, texts, transcoders, wanted, Listed(targets=3, inputs=6), settings.draws, settings.seed)


def _paths(asked: Prompts, transcoders: ByLayer, chosen: list[Unit]) -> pd.DataFrame:
    """Greedy paths from the strongest feature of the highest layer, at the last token of the first evaluation prompt where it is active."""
    highest = max(transcoders)
    wanted = next((feature for layer, feature in chosen if layer == highest), 0)
    for run in asked.runs:
        told = explain_run(run, transcoders.values())
        if (highest, run.width - 1, wanted) in told.active.index:
            break
    else:
        told = explain_run(asked.runs[0], transcoders.values())
    target = feature_target(shown(transcoders[highest]), wanted, told.run.width - 1)
    return path_table(greedy_paths(told, target, depth=3, branches=8))


STUDY = Study(
    name="transcoder",
    title="Do transcoder features make a circuit?",
    paper="Dunefsky, Chlenski and Nanda 2024, Transcoders Find Interpretable LLM Feature Circuits, arXiv 2406.11944",
    line="Transcoders trained on the spot for MLPs: exact contributions of features, ablation, connections by weights, a circuit.",
    settings=Settings,
    run=run,
)
