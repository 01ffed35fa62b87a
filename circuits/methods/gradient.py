"""What the gradient methods share: batches of pairs, gradients in some runs of each, scores summed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from circuits.ablation import ablated
from circuits.attribution import attribute
from circuits.methods.method import Found, MethodSettings, batches, scalar
from circuits.prepared import Parts
from circuits.slopes import Override, Slopes, slopes
from circuits.wiring import Wiring
from mechlab.errors import PromptError
from mechlab.lens.tokens import Tokens
from mechlab.patching.task import Task
from mechlab.results.metrics import metric as find_metric
from mechlab.results.study import Progress

TOKENS_AT_ONCE = 128
"""Runs of one batch go through the model together up to so many tokens: enough to fill a matrix product, and no more to keep."""

TOKENS_KEPT = 200
"""Gradients are kept of runs of so many tokens, and then multiplied at once: only their mean counts."""

Runs = Callable[[Parts, Parts], Iterator[Override]]


def integrated(
    wiring: Wiring, task: Task, settings: MethodSettings, progress: Progress, runs: Runs | None, n_runs: int
) -> Found:
    """Edge attribution with gradients averaged over runs.

    Args:
        runs: (clean, ablated) -> the runs; None: the clean run alone.
        n_runs: how many there are.

    Raises:
        PromptError: a metric without a useful gradient.
    """
    check_metric(settings, clean_only=runs is None)
    graph, done = wiring.graph, 0
    scores = torch.zeros(graph.shape, device=wiring.lens.model.device)
    for rows in batches(task, settings.batch_size):
        pairs = task.select(rows)
        reference = wiring.lens.run(pairs.clean, logits="last").last_logits if settings.metric == "kl" else None
        start = pairs.first_difference() if settings.ablation == "corrupted" else (0,) * len(pairs)
        gradient = partial(_gradient, wiring, settings, pairs, reference)
        if runs is None:
            few = settings.ablation == "corrupted" and 2 * pairs.clean.ids.numel() <= TOKENS_AT_ONCE
            # In large batches sharing a pass gains little, and would keep more.
            found = gradient(None, pairs.corrupted.ids, min(start)) if few else gradient(None)
            away = found.beside or ablated(wiring, pairs, settings.ablation, task)
            scores += attribute(wiring, found.written.minus(away), found, pairs.clean, start)
        else:
            clean, away = _both(wiring, settings, pairs, task)
            difference = clean.minus(away)
            for some in _kept(map(gradient, _grouped(runs(clean, away), pairs.clean)), clean, pairs.clean):
                n = sum(len(one.metric) for one in some)
                scores += attribute(wiring, difference, some, pairs.clean, start) * n
        done += len(rows)
        progress("pairs", done, len(task))
    return Found(scores / (len(task) * n_runs), len(task) * ((1 if runs is None else 2) + 3 * n_runs))


def check_metric(settings: MethodSettings, *, clean_only: bool) -> None:
    """Raises PromptError for a metric that has no gradient, or none at the clean run."""
    if settings.metric == "accuracy":
        raise PromptError("Metric accuracy has no gradient: score with logit_difference, or use an exact method.")
    if settings.metric == "kl" and clean_only:
        raise PromptError(
            "KL from the clean run is flat at the clean run, so its gradient there is zero: use eap-ig, or logit_difference."
        )


def _both(wiring: Wiring, settings: MethodSettings, pairs: Task, task: Task) -> tuple[Parts, Parts]:
    """What every sender writes in the clean run, and ablated; in one pass if these are two runs on pairs."""
    if settings.ablation != "corrupted":
        return wiring.record(pairs.clean), ablated(wiring, pairs, settings.ablation, task)
    a, b = pairs.clean, pairs.corrupted
    both = wiring.record(Tokens(torch.cat([a.ids, b.ids]), a.lengths + b.lengths, a.pieces + b.pieces))
    return both.map(lambda part: part[: len(a)]), both.map(lambda part: part[len(a) :])


def _gradient(
    wiring: Wiring,
    settings: MethodSettings,
    pairs: Task,
    reference: Tensor | None,
    override: Override | None,
    beside: Tensor | None = None,
    start: int = 0,
) -> Slopes:
    """Slopes of the metric in the runs of ``override``; unembedded are the tokens that the metric reads and no others."""
    runs, token_ids = 1 if override is None else len(override.values), None
    if find_metric(settings.metric).answers_only:
        token_ids, answers, foils = pairs.targets()
        pairs = replace(pairs, answers=answers, foils=foils)
        token_ids = token_ids.to(wiring.lens.model.device)
    metric = scalar(settings, pairs, reference, runs)
    return slopes(wiring, pairs.clean, metric, override, token_ids=token_ids, beside=beside, start=start)


def _kept(found: Iterator[Slopes], clean: Parts, tokens: Tokens) -> Iterator[list[Slopes]]:
    """Slopes in a row, as many as may be kept. What their own runs wrote is let go (``clean`` stands there)."""
    kept, n = list[Slopes](), 0
    for one in found:
        kept.append(replace(one, written=clean))
        n += one.metric.numel() * tokens.width
        if n >= TOKENS_KEPT:
            yield kept
            kept, n = [], 0
    if kept:
        yield kept


def _grouped(runs: Iterator[Override], tokens: Tokens) -> Iterator[Override]:
    """Runs of the same sublayer together, as many as fit."""
    together = max(1, TOKENS_AT_ONCE // (len(tokens) * tokens.width))
    waiting: list[Override] = []
    for run in runs:
        if waiting and ((run.kind, run.layer) != (waiting[0].kind, waiting[0].layer) or len(waiting) == together):
            yield _joined(waiting)
            waiting = []
        waiting.append(run)
    if waiting:
        yield _joined(waiting)


def _joined(runs: list[Override]) -> Override:
    return Override(runs[0].kind, runs[0].layer, torch.cat([run.values for run in runs]))
