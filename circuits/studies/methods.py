"""The methods study: discovery methods side by side on one task.

Every method scores the same discovery prompts; circuits of growing size are judged on the same evaluation prompts. One method, the
``subject``, is claimed to be nearer to the whole model than each of the others, in CMD with edges ranked by size (with signed ranking
circuits overshoot the whole model, and CMD would count that as distance). CPR goes with signed ranking, as in the MIB circuit track.

Control of every claim: the same difference with scores that both methods found from the answers of other prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import spearmanr

from circuits.circuit import Ablation, Ranking, Scores
from circuits.curve import Curve, area_difference, curve
from circuits.methods import catalogue
from circuits.methods.method import Method
from circuits.tasks.catalogue import make_task
from circuits.wiring import Wiring
from mechlab.analyses.circumstances import model_info, provenance
from mechlab.errors import MechlabError, UnknownName
from mechlab.lens.lens import Lens
from mechlab.patching.task import Task
from mechlab.results.finding import Finding
from mechlab.results.report import FigureItem, Report, Table
from mechlab.results.rule import Rule
from mechlab.results.stating import claim, control
from mechlab.results.study import Progress, Study, named, parse_settings
from mechlab.views.circuit import faithfulness_curve
from mechlab.views.figures import bars_with_intervals, heatmap

NEARER = Rule(direction="<", threshold=0.0)
Pair = tuple[Table, FigureItem]


class Settings(BaseModel):
    """Settings of the methods study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field("ioi", description="a task, or a .json, .jsonl or .csv file of your own pairs")
    methods: tuple[str, ...] = Field(
        ("eap-ig", "eap", "clean-corrupted", "exact-nodes", "atp", "path-walk", "random"),
        description="methods to compare",
    )
    subject: str = Field("eap-ig", description="the method that is claimed to be nearest to the model")
    ablation: Ablation = Field("corrupted", description="what edges outside a circuit carry")
    n_discovery: int = Field(16, ge=2, description="prompt pairs on which edges are scored")
    n_evaluation: int = Field(24, ge=2, description="prompt pairs on which circuits are judged")
    seed: int = Field(0, description="of prompts, intervals and everything methods draw")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was measured: per method (by name) its scores and curves; ``mixed_up``: curves of scores from other prompts' answers."""

    settings: Settings
    evaluation: Task
    methods: dict[str, Method]
    scores: dict[str, Scores]
    curves: dict[tuple[str, Ranking], Curve]
    mixed_up: dict[str, Curve]


def run(lens: Lens, settings: Settings, progress: Progress) -> Report:
    """Runs the study on one model. See the module's text.

    Raises:
        UnknownName: a method or task. MechlabError: a subject that is not among the methods, or is alone.
        PromptError: no valid prompt for this tokenizer. SiteError: a family whose edges cannot be told apart.
    """
    started = datetime.now(UTC)
    evidence = gather(Wiring.of(lens), settings, progress)
    pairs = [_curves(evidence), _areas(evidence), _cost(evidence), _agreement(evidence)]
    title = f"Discovery methods on {settings.task}"
    return Report(
        study=STUDY.name,
        title=title,
        summary_text=_summary(evidence),
        paper=STUDY.paper,
        model=model_info(lens),
        config=settings.model_dump(mode="json"),
        findings=tuple(findings(evidence)),
        tables=tuple(table for table, _ in pairs),
        figures=tuple(figure for _, figure in pairs),
        provenance=provenance(settings.seed, started, [evidence.evaluation.clean, evidence.evaluation.corrupted]),
    )


def gather(wiring: Wiring, settings: Settings, progress: Progress) -> Evidence:
    """Every number of the study; no judgement yet."""
    methods = {name: catalogue.method(name) for name in settings.methods}
    if settings.subject not in methods:
        raise UnknownName("subject", settings.subject, methods, "It must be one of the methods that are compared.")
    if len(methods) < 2:
        raise MechlabError(f"Method {settings.subject!r} is alone: name at least one other to compare it with.")
    discovery = make_task(wiring.lens, settings.task, settings.n_discovery, seed=settings.seed, split="discovery")
    evaluation = make_task(wiring.lens, settings.task, settings.n_evaluation, seed=settings.seed, split="evaluation")
    shuffled = discovery.shuffled_answers(settings.seed)

    def judged(scores: Scores, ranking: Ranking) -> Curve:
        label = f"judging {scores.origin.method}, {ranking}"
        return curve(
            wiring, evaluation, scores, ranking=ranking, ablation=settings.ablation, progress=named(progress, label)
        )

    scores, mixed_up = dict[str, Scores](), dict[str, Curve]()
    curves: dict[tuple[str, Ranking], Curve] = {}
    for name, method in methods.items():
        asked = parse_settings(method, [f"seed={settings.seed}", f"ablation={settings.ablation}"], "method")
        scores[name] = method.score(wiring, discovery, asked, named(progress, f"scoring with {name}"))  # pyright: ignore[reportArgumentType]
        for ranking in ("absolute", "signed"):
            curves[name, ranking] = judged(scores[name], ranking)
        muddled = method.score(wiring, shuffled, asked, named(progress, f"scoring with {name}, shuffled answers"))  # pyright: ignore[reportArgumentType]
        mixed_up[name] = judged(muddled, "absolute")
    return Evidence(settings, evaluation, methods, scores, curves, mixed_up)


def findings(evidence: Evidence) -> list[Finding]:
    """The subject against each other method."""
    subject = evidence.settings.subject
    return [_nearer(evidence, subject, other) for other in evidence.methods if other != subject]


def _nearer(evidence: Evidence, subject: str, other: str) -> Finding:
    seed = evidence.settings.seed
    found = area_difference(evidence.curves[subject, "absolute"], evidence.curves[other, "absolute"], "cmd", seed=seed)
    mixed_up = area_difference(evidence.mixed_up[subject], evidence.mixed_up[other], "cmd", seed=seed)
    titles = [evidence.methods[name].title for name in (subject, other)]
    return claim(
        f"nearer_than_{other.replace('-', '_')}",
        f"Circuits of {titles[0]} are nearer to the whole model than those of {titles[1]}.",
        f"CMD of {titles[0]} minus CMD of {titles[1]}, edges ranked by size",
        found,
        [control("shuffled answers", mixed_up, "both methods scored with the answers of other prompts")],
        NEARER,
    )


def _summary(evidence: Evidence) -> str:
    settings, graph = evidence.settings, next(iter(evidence.scores.values())).graph
    return (
        f"{len(evidence.methods)} methods scored {graph.n_edges:,} edges on {settings.n_discovery} prompt pairs of "
        f"{evidence.evaluation.name}. Circuits of ten sizes were run alone on {len(evidence.evaluation)} other pairs, edges outside "
        f"carrying what the {settings.ablation} ablation gives. Methods that score nodes are compared at equal numbers of edges: "
        "an edge comes in with the later of its two ends. Every claim was written down, with its rule, before the run."
    )


def _pair(key: str, title: str, frame: pd.DataFrame, figure: object, note: str) -> Pair:
    return Table(key, title, frame, note), FigureItem(key, title, figure, key, note)  # pyright: ignore[reportArgumentType]


def _curves(evidence: Evidence) -> Pair:
    frames = [
        one.frame(seed=evidence.settings.seed).assign(method=evidence.methods[name].title, ranking=ranking)
        for (name, ranking), one in evidence.curves.items()
    ]
    frame = pd.concat(frames, ignore_index=True)
    frame = frame[["method", "ranking", *(c for c in frame.columns if c not in ("method", "ranking"))]]
    figure = faithfulness_curve(frame[frame["ranking"] == "absolute"], "")
    note = (
        "Share of the clean minus ablated logit difference that circuits of growing size keep when run alone, on held-out prompts, with "
        "95 % intervals over prompts. The figure ranks edges by size; the table has signed ranking too."
    )
    return _pair("faithfulness", "Faithfulness by size", frame, figure, note)


def _areas(evidence: Evidence) -> Pair:
    rows = [
        (evidence.methods[name].title, which.upper(), ranking, found.estimate, found.low, found.high, found.n)
        for which in ("cmd", "cpr")
        for (name, ranking), one in evidence.curves.items()
        for found in [one.area(which, seed=evidence.settings.seed)]
    ]
    columns = ["method", "area", "ranking", "estimate", "low", "high", "prompts"]
    frame = pd.DataFrame(rows, columns=columns)
    shown = frame[(frame["area"] == "CMD") & (frame["ranking"] == "absolute")].sort_values("estimate")
    figure = bars_with_intervals(shown, "method", "estimate", "low", "high", title="", y_title="CMD, ranked by size")
    note = (
        "CMD: area of |1 - faithfulness| over shares of edges, lower is nearer to the whole model. CPR: area under faithfulness, higher "
        "keeps more. MIB reports CPR with signed ranking; the figure shows CMD with edges ranked by size."
    )
    return _pair("areas", "CMD and CPR", frame, figure, note)


def _cost(evidence: Evidence) -> Pair:
    rows = [
        (evidence.methods[name].title, one.level, evidence.methods[name].exact, one.seconds, one.forwards)
        for name, one in evidence.scores.items()
    ]
    frame = pd.DataFrame(rows, columns=["method", "level", "exact", "seconds", "forwards"])
    shown = frame.assign(low=np.nan, high=np.nan)
    figure = bars_with_intervals(shown, "method", "seconds", "low", "high", title="", y_title="seconds, wall")
    note = "Time to score, on this machine as it was, and prompts run through the model (a backward pass counts as two forward passes)."
    return _pair("cost", "What each method costs", frame, figure, note)


def _agreement(evidence: Evidence) -> Pair:
    titles = [method.title for method in evidence.methods.values()]
    values = [one.values[one.graph.real].abs().numpy() for one in evidence.scores.values()]
    grid = pd.DataFrame(_spearman(values), index=pd.Index(titles, name="one"), columns=pd.Index(titles, name="other"))
    rows = [(titles[i], titles[j], float(value)) for (i, j), value in np.ndenumerate(grid.to_numpy())]
    frame = pd.DataFrame(rows, columns=["method", "other", "spearman"])
    figure = heatmap(grid, "", "Spearman", x_title="", y_title="")
    note = "Rank correlation of the sizes of all edge scores. Nodes' edges have their nodes' scores."
    return _pair("agreement", "How far the methods agree", frame, figure, note)


def _spearman(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([[float(spearmanr(one, other).statistic) for other in values] for one in values])


STUDY = Study(
    name="methods",
    title="Discovery methods side by side",
    paper="Mueller et al. 2025 (MIB), arXiv 2504.13151; Hanna, Pezzelle and Belinkov 2024, arXiv 2403.17806",
    line="All discovery methods on one task: faithfulness, CPR, CMD, cost, and how far they agree.",
    settings=Settings,
    run=run,
)
