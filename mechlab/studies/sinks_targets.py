"""Interventions of the sinks study: the MLP's output rescaled, the direction removed, the sink moved; each with its controls."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mechlab.analyses.sinks_interventions import SINK, TARGET, Outcome, Watch, outcome
from mechlab.analyses.sinks_levels import PRIMARY
from mechlab.lens.edit import Edit, add, project, scale
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.results.study import Progress, named
from mechlab.studies.sinks_evidence import EpisodeEvidence, Side, TargetEvidence
from mechlab.studies.sinks_settings import Settings

FACTORS = (0.0, 0.25, 0.5, 2.0)
REMOVED, MOVED, ELSEWHERE = "direction removed", "moved", "MLP × 0 at another token"
OTHER_LAYERS, RANDOM_REMOVED, RANDOM_MOVED = (
    "MLP × 0 in another layer",
    "random direction removed",
    "random vector added",
)
_ROOM = 10
"""Tokens that must follow a secondary sink."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """A sink to intervene on.

    Attributes:
        tokens: prompts with SINK and TARGET labelled.
        layer: whose MLP makes it; ``writers``: all that do.
        direction: the sink's, a unit vector; ``component``: its size along it after that layer.
        moves: whether it is also moved to TARGET.
    """

    name: str
    tokens: Tokens
    layer: int
    direction: Tensor
    component: float
    writers: tuple[int, ...]
    watch: Watch
    moves: bool


def rescaled(factor: float) -> str:
    """Name of an intervention."""
    return f"MLP × {factor:g}"


def targets(
    lens: Lens,
    side: Side,
    episodes: Sequence[EpisodeEvidence],
    evaluation: Tokens,
    settings: Settings,
    progress: Progress,
) -> list[TargetEvidence]:
    """The primary sink in its strongest episode, and the commonest secondary level, where there are such."""
    plans = [_primary(side, episodes, evaluation, settings), _secondary(side, episodes, evaluation, settings)]
    return [
        _carried_out(lens, plan, settings, named(progress, f"interventions on {plan.name}"))
        for plan in plans
        if plan is not None
    ]


def _primary(side: Side, episodes: Sequence[EpisodeEvidence], evaluation: Tokens, settings: Settings) -> _Plan | None:
    index = side.profile.strongest
    if index is None or not episodes[index].parts.writers:
        return None
    layer = episodes[index].parts.writers[0]
    rows = range(min(settings.n_causal, len(evaluation)))
    places = [(row, side.profile.position, _ordinary(side, row, settings.length // 4)) for row in rows]
    return _plan("the primary sink", side, episodes, index, layer, evaluation, places, settings, moves=True)


def _secondary(side: Side, episodes: Sequence[EpisodeEvidence], evaluation: Tokens, settings: Settings) -> _Plan | None:
    """The first secondary sink of that level in each prompt that has one."""
    if side.level is None:
        return None
    index, layer = side.level
    first: dict[int, int] = {}
    for sink in sorted(side.sinks, key=lambda sink: sink.position):
        right_level = sink.kind != PRIMARY and (sink.episode, sink.start) == side.level
        if right_level and sink.position < settings.length - _ROOM:
            first.setdefault(sink.prompt, sink.position)
    chosen = sorted(first.items())[: settings.n_causal]
    if len(chosen) < 2:
        return None
    places = [(row, at, _ordinary(side, row, at + 2)) for row, at in chosen]
    return _plan("secondary sinks", side, episodes, index, layer, evaluation, places, settings, moves=False)


def _plan(
    name: str,
    side: Side,
    episodes: Sequence[EpisodeEvidence],
    index: int,
    layer: int,
    evaluation: Tokens,
    places: Sequence[tuple[int, int, int]],
    settings: Settings,
    *,
    moves: bool,
) -> _Plan:
    rows, sinks, others = zip(*places, strict=True)
    episode, of = episodes[index].episode, side.profile
    watch = Watch(
        directions={at: of.directions[at] for at in episode.layers},
        created=max(layer, episode.start),
        reading=range(max(layer, episode.start) + 1, episode.reading(side.found.norms.shape[1]).stop),
        cosine=settings.cosine,
    )
    return _Plan(
        name=name,
        tokens=evaluation.select(rows).labelled(**{SINK: sinks, TARGET: others}),
        layer=layer,
        direction=of.directions[episode.peak],
        component=float(episodes[index].writes.stream[:, layer].mean()),
        writers=(layer, *episodes[index].parts.writers),
        watch=watch,
        moves=moves,
    )


def _ordinary(side: Side, prompt: int, near: int) -> int:
    """The first position from ``near`` on that is no sink in that prompt."""
    taken = {sink.position for sink in side.sinks if sink.prompt == prompt}
    return next(at for at in range(near, len(side.found.tokens.pieces[prompt])) if at not in taken)


def _carried_out(lens: Lens, plan: _Plan, settings: Settings, progress: Progress) -> TargetEvidence:
    changes, draws = _edits(lens, plan, settings)
    total, done = 1 + len(changes) + sum(map(len, draws.values())), 0

    def measured(edits: Sequence[Edit]) -> Outcome:
        nonlocal done
        found = outcome(lens, plan.tokens, edits, plan.watch)
        done += 1
        progress("", done, total)
        return found

    return TargetEvidence(
        name=plan.name,
        layer=plan.layer,
        base=measured([]),
        changed={name: measured(edits) for name, edits in changes.items()},
        draws={name: tuple(measured(edits) for edits in many) for name, many in draws.items()},
    )


def _edits(lens: Lens, plan: _Plan, settings: Settings) -> tuple[dict[str, list[Edit]], dict[str, list[list[Edit]]]]:
    """Interventions, and random ones by draw."""
    layer, direction = plan.layer, plan.direction
    made, stream = (lambda at, pos=SINK: Site("mlp_out", at, pos=pos)), (lambda pos: Site("resid_post", layer, pos=pos))
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = torch.nn.functional.normalize(torch.randn(settings.draws, len(direction), generator=generator), dim=-1)
    others = [at for at in range(lens.model.n_layers) if at not in plan.writers]
    picked = np.random.default_rng(settings.seed).choice(others, settings.draws, replace=len(others) < settings.draws)
    changes = {rescaled(factor): [scale(made(layer), factor)] for factor in FACTORS}
    changes[ELSEWHERE] = [scale(made(layer, TARGET), 0.0)]
    changes[REMOVED] = [project(stream(SINK), direction)]
    draws = {
        OTHER_LAYERS: [[scale(made(int(at)), 0.0)] for at in picked],
        RANDOM_REMOVED: [[project(stream(SINK), unit)] for unit in drawn],
    }
    if plan.moves:
        changes[MOVED] = [*changes[REMOVED], add(stream(TARGET), plan.component * direction)]
        draws[RANDOM_MOVED] = [[*changes[REMOVED], add(stream(TARGET), plan.component * unit)] for unit in drawn]
    return changes, draws
