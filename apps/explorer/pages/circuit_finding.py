"""Finding a circuit and judging it, as one piece of work: scores on some prompts, faithfulness of growing circuits on others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd

from mechlab.results.study import Progress, named

if TYPE_CHECKING:
    from circuits.circuit import Circuit, Scores
    from circuits.curve import Curve
    from circuits.graph import Graph
    from mechlab.lens.lens import Lens
    from mechlab.patching.task import Task

SHARES = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges that the slider goes over."""
CONTROL = "random edges"
Ranking = Literal["absolute", "signed"]


@dataclass(frozen=True)
class Asked:
    """All that decides a circuit but its size.

    Attributes:
        n: prompt pairs to score on, and as many others to judge on.
        ranking: ``absolute``: by size of the score; ``signed``: those that raise the metric first.
    """

    model: str
    task: str
    method: str
    n: int
    ranking: Ranking

    @property
    def name(self) -> str:
        return f"{self.task}, {self.method}"


@dataclass(frozen=True, eq=False)
class Found:
    """What came of it.

    Attributes:
        judged: the prompts that circuits were judged on; none of them was scored on.
        curve: of the method. control: of random scores, on the same prompts and sizes.
    """

    asked: Asked
    scores: "Scores"
    judged: "Task"
    curve: "Curve"
    control: "Curve"

    @property
    def sizes(self) -> tuple[float, ...]:
        return self.curve.sizes

    def circuit(self, size: float) -> "Circuit":
        """The best edges, ``size`` of all, less those on no path from the input to the logits."""
        return self.scores.top(max(1, int(size * self.scores.graph.n_edges)), self.asked.ranking)

    def frame(self) -> pd.DataFrame:
        """``Curve.frame`` of both, with ``method``."""
        parts = [(self.asked.method, self.curve), (CONTROL, self.control)]
        return pd.concat([one.frame().assign(method=name) for name, one in parts])


def sizes(graph: "Graph", shares: Sequence[float] = SHARES) -> tuple[float, ...]:
    """The shares that give circuits of different numbers of edges in this model; the largest share of each number."""
    by_count = {max(1, int(share * graph.n_edges)): share for share in shares}
    return tuple(sorted(by_count.values()))


def find(lens: "Lens", asked: Asked, progress: Progress) -> Found:
    """Scores edges on the discovery prompts, then judges circuits of growing size on the evaluation prompts, beside random ones.

    Raises:
        UnknownName, PromptError, MechlabError: as the task, the method and ``curve``.
    """
    from circuits.curve import curve
    from circuits.methods import catalogue
    from circuits.tasks.catalogue import make_task
    from circuits.wiring import Wiring

    wiring = Wiring.of(lens)
    progress("making prompts", 0, 1)
    scored = make_task(lens, asked.task, asked.n, split="discovery")
    judged = make_task(lens, asked.task, asked.n, split="evaluation")
    found: list[Scores] = []
    for name in (asked.method, "random"):
        method = catalogue.method(name)
        found.append(method.score(wiring, scored, method.settings(), named(progress, f"scoring edges, {name}")))
    curves = [
        curve(
            wiring,
            judged,
            scores,
            ranking=asked.ranking,
            sizes=sizes(scores.graph),
            batch_size=max(1, len(judged) // 2),
            progress=named(progress, f"judging circuits, {name}"),
        )
        for name, scores in zip((asked.method, CONTROL), found, strict=True)
    ]
    return Found(asked, found[0], judged, curves[0], curves[1])
