"""How much of a behaviour circuits of growing size keep: faithfulness, and the areas CPR and CMD of the MIB benchmark.

    f(k) = (m_C(k) - m_empty) / (m_clean - m_empty)

with C(k) the k best edges and everything else ablated, each m a mean over prompts (Mueller et al., arXiv 2504.13151). CPR is the area
under f, CMD the area under |1 - f|, both by trapezoids over fractions of edges from the first size to the last. f can leave [0, 1]: more
CPR is not more faithful, less CMD is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch

from circuits.circuit import Ablation, Origin, Ranking, Scores
from circuits.evaluate import BATCH_SIZE, Floats, empty_and_full, run_circuits, span
from circuits.graph import check_same
from circuits.wiring import Wiring
from mechlab.errors import MechlabError, UnknownName
from mechlab.patching.task import Task
from mechlab.results.bootstrap_tables import bootstrap_ratio_table
from mechlab.results.metrics import SMALLEST_DENOMINATOR
from mechlab.results.statistics import Interval, bootstrap_bounds, bootstrap_ratio
from mechlab.results.study import Progress

__all__ = ["Curve", "area_difference", "curve"]

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges, as in MIB."""
Area = Literal["cpr", "cmd"]
_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Curve:
    """Circuits of growing size, judged on one task.

    Attributes:
        origin: of the scores, with the ranking.
        task, metric, ablation: what they are judged by, which need not be what they were found by.
        sizes: shares of all edges, rising. n_edges: ``int(size * all edges)`` as in MIB, at least 1.
        kept_edges: how many of them lie on a path from the input to the logits. The others are pruned, as in MIB: under the corrupted
            ablation they carry nothing; under others, a node none of whose inputs are kept is taken as ablated.
        values: ``[sizes, n]`` metric per prompt.
        clean, empty: ``[n]``: the run as it is, and with every edge ablated.
    """

    origin: Origin
    task: str
    metric: str
    ablation: Ablation
    sizes: tuple[float, ...]
    n_edges: tuple[int, ...]
    kept_edges: tuple[int, ...]
    values: Floats
    clean: Floats
    empty: Floats

    @property
    def faithfulness(self) -> Floats:
        """``[sizes]``: ratio of means."""
        return (self.values - self.empty).mean(axis=1) / (self.clean - self.empty).mean()

    @property
    def per_prompt(self) -> Floats:
        """``[sizes, n]``: each prompt's own ratio; NaN where its clean and empty runs differ by less than 1e-6."""
        below = self.clean - self.empty
        known = np.abs(below) >= SMALLEST_DENOMINATOR
        return np.where(known, (self.values - self.empty) / np.where(known, below, 1.0), np.nan)

    def area(self, which: Area, *, seed: int = 0, confidence: float = 0.95, n_resamples: int = _RESAMPLES) -> Interval:
        """CPR or CMD, with its bootstrap interval over prompts. Raises UnknownName for another area."""
        return _area(which, [self], (1.0,), seed, confidence, n_resamples)

    def frame(self, *, seed: int = 0, confidence: float = 0.95, n_resamples: int = _RESAMPLES) -> pd.DataFrame:
        """One row per size: ``fraction`` (of all edges), ``n_edges, kept_edges, faithfulness, low, high, mean_ratio, median_ratio``.

        ``low``, ``high``: bootstrap over prompts. The last two are of per-prompt ratios, which show prompts whose sign turns round; prompts
        with nothing to keep are left out of them.
        """
        below = np.broadcast_to(self.clean - self.empty, self.values.shape)
        table = bootstrap_ratio_table(
            self.values - self.empty, below, seed=seed, confidence=confidence, n_resamples=n_resamples
        )
        ratios = self.per_prompt
        return pd.DataFrame(
            {
                "fraction": self.sizes,
                "n_edges": self.n_edges,
                "kept_edges": self.kept_edges,
                "faithfulness": self.faithfulness,
                "low": table.low,
                "high": table.high,
                "mean_ratio": np.nanmean(ratios, axis=1),
                "median_ratio": np.nanmedian(ratios, axis=1),
            }
        )


def curve(
    wiring: Wiring,
    task: Task,
    scores: Scores,
    *,
    ranking: Ranking = "signed",
    sizes: Sequence[float] = SIZES,
    ablation: Ablation = "corrupted",
    reference: Task | None = None,
    metric: str = "logit_difference",
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> Curve:
    """The circuits of growing size that ``scores`` select, judged on ``task``. Options as in `run_circuits`.

    Raises:
        MechlabError: sizes that do not rise within (0, 1], scores of another model.
        PromptError: a task whose metric is the same when everything is ablated.
    """
    _check(wiring, scores, sizes)
    n_edges = [max(1, int(size * wiring.graph.n_edges)) for size in sizes]
    circuits = [scores.top(n, ranking) for n in n_edges]
    masks = torch.cat([empty_and_full(wiring), torch.stack([circuit.edges for circuit in circuits])])
    found = run_circuits(
        wiring,
        task,
        masks,
        ablation=ablation,
        reference=reference,
        metric=metric,
        batch_size=batch_size,
        progress=progress,
    )
    span(found[1], found[0], task, metric)
    kept = tuple(circuit.n_edges for circuit in circuits)
    origin = circuits[0].origin
    return Curve(origin, task.name, metric, ablation, tuple(sizes), tuple(n_edges), kept, found[2:], found[1], found[0])


def area_difference(
    first: Curve,
    second: Curve,
    which: Area = "cmd",
    *,
    seed: int = 0,
    confidence: float = 0.95,
    n_resamples: int = _RESAMPLES,
) -> Interval:
    """CMD (or CPR) of the first curve minus that of the second, prompts resampled alike for both.

    Raises:
        UnknownName: another area. MechlabError: curves of other sizes, or on other prompts.
    """
    same = first.sizes == second.sizes and first.values.shape == second.values.shape
    for mine, theirs in ((first.clean, second.clean), (first.empty, second.empty)):
        same = same and np.allclose(mine, theirs, rtol=1e-3, atol=1e-3)
    if not same:
        raise MechlabError(
            f"The curves of {first.origin.method} (task {first.task}, {first.values.shape[1]} prompts) and {second.origin.method} (task "
            f"{second.task}, {second.values.shape[1]} prompts) differ in sizes, prompts, metric or ablation: compare like with like."
        )
    return _area(which, [first, second], (1.0, -1.0), seed, confidence, n_resamples)


def _check(wiring: Wiring, scores: Scores, sizes: Sequence[float]) -> None:
    model = wiring.lens.model
    check_same(scores.graph, wiring.graph)
    if scores.origin.fingerprint != model.fingerprint:
        raise MechlabError(
            f"These scores are of {scores.origin.model}, not of {model.name}: judge circuits in the model they were found in."
        )
    if not sizes or not all(a < b for a, b in zip((0, *sizes), sizes, strict=False)) or sizes[-1] > 1:
        raise MechlabError(f"Sizes {list(sizes)} must be shares of all edges that rise, above 0 and at most 1.")


def _area(
    which: Area, curves: Sequence[Curve], signs: Sequence[float], seed: int, confidence: float, n_resamples: int
) -> Interval:
    """Weighted sum of the areas of curves on the same prompts."""
    if which not in get_args(Area):
        raise UnknownName("area", which, get_args(Area))
    sizes, below = curves[0].sizes, curves[0].clean - curves[0].empty
    # the area under f is a ratio of means: of each prompt's area, over what there is to keep
    areas = [np.trapezoid(one.values - one.empty, sizes, axis=0) for one in curves]
    weighted = np.einsum("c,cn->n", np.array(signs), np.stack(areas))
    cpr = bootstrap_ratio(weighted, below, seed=seed, confidence=confidence, n_resamples=n_resamples)
    if which == "cpr":
        return cpr

    def distance(means: Floats) -> Floats:
        """Means ``[curves * sizes + 1, ...]`` over prompts -> weighted CMD."""
        kept = means[:-1].reshape(len(curves), len(sizes), *means.shape[1:]) / means[-1]
        return np.einsum("c,c...->...", np.array(signs), np.trapezoid(np.abs(1 - kept), sizes, axis=1))

    samples = np.concatenate([*(one.values - one.empty for one in curves), below[None]])
    estimate = float(distance(samples.mean(axis=1)))
    if np.isnan(cpr.low):  # one prompt, or a denominator whose sign the data leave open
        return Interval(estimate, np.nan, np.nan, cpr.n)
    bounds = bootstrap_bounds(samples, distance, seed=seed, confidence=confidence, n_resamples=n_resamples)
    return Interval(estimate, *bounds, cpr.n)
