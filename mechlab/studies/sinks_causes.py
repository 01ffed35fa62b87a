"""Measurements of the sinks study on what makes a sink, what removes it and what it does. Everything is chosen on discovery text."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from mechlab.analyses.sinks_interventions import SINK, Watch, outcome
from mechlab.analyses.sinks_levels import PRIMARY, Episode
from mechlab.analyses.sinks_mlp import mapped_components
from mechlab.analyses.sinks_writers import Writes, parts, random_units, top_units, unit_writes, writes
from mechlab.lens.edit import Edit, zero
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.results.study import Progress
from mechlab.studies.sinks_evidence import (
    NOTHING,
    Causes,
    ChainEvidence,
    Collapse,
    EpisodeEvidence,
    Side,
    Units,
)
from mechlab.studies.sinks_settings import Settings
from mechlab.studies.sinks_targets import targets

UNIT_SHARE = 0.9
"""Neurons are taken until they make up this share of their MLP's write."""
_LAST_QUERIES = 8
"""Tokens with fewer queries after them are left out where attention received is compared between tokens."""


def causes(
    lens: Lens, side: Side, discovery: Tokens, evaluation: Tokens, settings: Settings, progress: Progress
) -> Causes:
    """Every number on causes; no judgement yet."""
    episodes = _episodes(lens, side, discovery, evaluation, settings, progress)
    causal = evaluation.select(range(min(settings.n_causal, len(evaluation))))
    return Causes(
        episodes=tuple(episodes),
        chain=_chain(lens, side, episodes, causal, settings, progress),
        targets=tuple(targets(lens, side, episodes, evaluation, settings, progress)),
        at_level=tokens_at_level(side),
        mapped=_collapse(lens, side, episodes, evaluation, settings, progress),
    )


def _episodes(
    lens: Lens, side: Side, discovery: Tokens, evaluation: Tokens, settings: Settings, progress: Progress
) -> list[EpisodeEvidence]:
    of = side.profile
    peaks = [of.directions[episode.peak] for episode in of.episodes]
    progress("who writes the sink", 0, 2)
    seen = writes(lens, discovery, of.position, peaks)
    progress("who writes the sink", 1, 2)
    held_out = writes(lens, evaluation, of.position, peaks)
    progress("who writes the sink", 2, 2)
    found: list[EpisodeEvidence] = []
    for index, episode in enumerate(of.episodes):
        chosen = parts(seen[index], of.episodes, index, settings.write_share)
        layers = [*chosen.writers[:1], *chosen.removers]
        units = _units(
            lens, (discovery, evaluation), of.position, peaks[index], layers, held_out[index], episode, settings
        )
        similarity = float(peaks[index] @ peaks[index - 1]) if index else float("nan")
        largest = peaks[index].abs().topk(3).indices.tolist()
        dimensions = {int(at): float(peaks[index][at]) for at in largest}
        found.append(EpisodeEvidence(episode, chosen, held_out[index], units, similarity, dimensions))
    return found


def _units(
    lens: Lens,
    tokens: tuple[Tokens, Tokens],
    position: int,
    direction: torch.Tensor,
    layers: Sequence[int],
    held_out: Writes,
    episode: Episode,
    settings: Settings,
) -> dict[int, Units]:
    """Neurons of some layers, chosen on the first prompts and measured on the second."""
    if not layers:
        return {}
    seen, measured = (unit_writes(lens, given, position, dict.fromkeys(layers, direction)) for given in tokens)
    found: dict[int, Units] = {}
    for layer in layers:
        mean, all_units = seen[layer].mean(axis=0), measured[layer]
        units = top_units(mean, UNIT_SHARE)
        drawn = random_units({layer: units}, all_units.shape[1], settings.draws, settings.seed)
        found[layer] = Units(
            layer=layer,
            units=tuple(units),
            discovery=mean[units],
            evaluation=all_units[:, units],
            whole=held_out.mlp[:, layer],
            random=np.stack([all_units[:, one[layer]].sum(axis=1) for one in drawn]),
            peak=held_out.stream[:, episode.peak],
        )
    return found


def _chain(
    lens: Lens, side: Side, episodes: Sequence[EpisodeEvidence], tokens: Tokens, settings: Settings, progress: Progress
) -> ChainEvidence | None:
    """The primary sink with the neurons that write or remove each episode switched off at its own position."""
    sets = _unit_sets(episodes)
    if not sets:
        return None
    labelled = tokens.labelled(**{SINK: [side.profile.position] * len(tokens)})
    watch = _watch_all(side, lens.model.n_layers, settings.cosine)
    together: dict[int, list[int]] = {}
    for units in sets.values():
        for layer, chosen in units.items():
            together[layer] = sorted({*together.get(layer, []), *chosen})
    drawn = random_units(together, lens.layout.size("mlp_post") or 0, settings.draws, settings.seed)
    runs = {NOTHING: {}, **sets} | {f"random {i}": units for i, units in enumerate(drawn)}
    found = {}
    for done, (name, units) in enumerate(runs.items()):
        found[name] = outcome(lens, labelled, silenced(units), watch)
        progress("neurons switched off", done + 1, len(runs))
    return ChainEvidence(
        {name: found[name] for name in (NOTHING, *sets)}, tuple(found[f"random {i}"] for i in range(len(drawn)))
    )


def writers_of(index: int) -> str:
    """Name of a chain run."""
    return f"writers of episode {index + 1}"


def removers_of(index: int) -> str:
    """Name of a chain run."""
    return f"removers of episode {index + 1}"


def _unit_sets(episodes: Sequence[EpisodeEvidence]) -> dict[str, dict[int, list[int]]]:
    sets: dict[str, dict[int, list[int]]] = {}
    for index, one in enumerate(episodes):
        for name, layers in ((writers_of(index), one.parts.writers[:1]), (removers_of(index), one.parts.removers)):
            chosen = {layer: list(one.units[layer].units) for layer in layers if one.units[layer].units}
            if chosen:
                sets[name] = chosen
    return sets


def silenced(units: Mapping[int, Sequence[int]]) -> list[Edit]:
    """Neurons set to zero at SINK."""
    return [zero(Site("mlp_post", layer, unit, SINK)) for layer, chosen in units.items() for unit in chosen]


def _watch_all(side: Side, n_layers: int, cosine: float) -> Watch:
    """All episodes at once; between two, the direction is that of the last layer of the first."""
    of = side.profile
    first = of.episodes[0].start
    inside = {layer for episode in of.episodes for layer in episode.layers}
    directions = {layer: of.directions[max(at for at in inside if at <= layer)] for layer in range(first, n_layers)}
    return Watch(directions, first, range(first + 1, n_layers), cosine)


def tokens_at_level(side: Side) -> pd.DataFrame:
    """Later tokens of held-out text, at the creation layer of the commonest secondary level; sinks made in other layers are left out."""
    columns = ["prompt", "position", "piece", "norm", "cosine", "received", "lifetime", "sink"]
    if side.level is None:
        return pd.DataFrame(columns=columns)
    index, layer = side.level
    found, episode = side.found, side.profile.episodes[index]
    reading = [at for at in episode.reading(found.norms.shape[1]) if at > layer]
    received = found.received[:, reading].mean(axis=(1, 2))
    in_episode = [sink for sink in side.sinks if sink.kind != PRIMARY and sink.episode == index]
    lifetimes = {(sink.prompt, sink.position): sink.lifetime for sink in in_episode if sink.start == layer}
    elsewhere = {(sink.prompt, sink.position) for sink in in_episode} - set(lifetimes)
    n, length = received.shape
    rows = [
        (
            prompt,
            at,
            found.tokens.pieces[prompt][at],
            float(found.mlp_norms[layer][prompt, at]),
            float(found.mlp_cosines[layer][prompt, at]),
            float(received[prompt, at]),
            lifetimes.get((prompt, at), 0),
            (prompt, at) in lifetimes,
        )
        for prompt in range(n)
        for at in range(side.profile.position + 1, length - _LAST_QUERIES)
        if (prompt, at) not in elsewhere
    ]
    return pd.DataFrame(rows, columns=columns)


def _collapse(
    lens: Lens,
    side: Side,
    episodes: Sequence[EpisodeEvidence],
    evaluation: Tokens,
    settings: Settings,
    progress: Progress,
) -> Collapse | None:
    """Secondary sinks' inputs to the MLP that makes them; without enough of those, the primary's."""
    places = [(s.prompt, s.position) for s in side.sinks if side.level == (s.episode, s.start) and s.kind != PRIMARY]
    whose = "secondary sinks"
    layer = side.level[1] if side.level else -1
    if len(places) <= settings.components:
        strongest = side.profile.strongest
        writers = () if strongest is None else episodes[strongest].parts.writers
        if not writers:
            return None
        layer, whose = writers[0], "the primary sink"
        places = [(prompt, side.profile.position) for prompt in range(len(evaluation))]
    progress("principal components", 0, 1)
    run = lens.run(evaluation, read=[Site("mlp_in", layer), Site("mlp_out", layer)], logits="none", batch_size=8)
    rows, columns = (list(part) for part in zip(*places, strict=True))
    inputs, outputs = (run[Site(kind, layer)][rows, columns] for kind in ("mlp_in", "mlp_out"))
    other = layer + 1 if layer + 1 < lens.model.n_layers else layer - 1
    found = mapped_components(lens, layer, other, inputs, outputs, settings.components, settings.draws, settings.seed)
    progress("principal components", 1, 1)
    return None if found is None else Collapse(found, whose, layer, other)
