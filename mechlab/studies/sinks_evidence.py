"""What the sinks study measured, before it is judged."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mechlab.analyses.sinks import Observed
from mechlab.analyses.sinks_interventions import Outcome
from mechlab.analyses.sinks_levels import Episode, Profile, Sink, Thresholds
from mechlab.analyses.sinks_mlp import Mapped
from mechlab.analyses.sinks_writers import Parts, Writes
from mechlab.lens.tokens import Tokens

Floats = NDArray[np.float64]
NOTHING = "nothing"
"""The chain's run without any edit."""


@dataclass(frozen=True, eq=False)
class Rates:
    """How much attention the first token draws on one kind of input.

    Attributes:
        first: ``[n]`` Sink_1: share of heads in which it is a sink.
        other: ``[n]`` the same for the later position that comes highest.
        by_head: ``[layer, head]`` attention it receives, mean over prompts.
    """

    first: Floats
    other: Floats
    by_head: Floats


@dataclass(frozen=True, eq=False)
class Units:
    """Neurons of one MLP that write, or remove, an episode's direction; chosen on discovery prompts.

    Attributes:
        units: strongest first.
        discovery: their mean contributions there.
        evaluation: ``[n, unit]`` on held-out prompts.
        whole: ``[n]`` what the whole MLP adds along the direction on held-out prompts.
        random: ``[draw, n]`` what as many random neurons of that MLP add.
        peak: ``[n]`` the component at the episode's peak.
    """

    layer: int
    units: tuple[int, ...]
    discovery: Floats
    evaluation: Floats
    whole: Floats
    random: Floats
    peak: Floats


@dataclass(frozen=True, eq=False)
class EpisodeEvidence:
    """One episode of the primary sink.

    Attributes:
        parts: layers whose MLPs write and remove it, from discovery prompts.
        writes: on held-out prompts.
        units: layer -> its neurons, for the strongest writer and for every remover; empty without single neurons.
        similarity: cosine of its direction at the peak with that of the episode before; NaN for the first.
        dimensions: the largest entries of its direction at the peak: dimension -> value.
    """

    episode: Episode
    parts: Parts
    writes: Writes
    units: Mapping[int, Units]
    similarity: float
    dimensions: Mapping[int, float]


@dataclass(frozen=True, eq=False)
class TargetEvidence:
    """Interventions on one sink: the primary in its strongest episode, or a secondary level.

    Attributes:
        name: which.
        layer: whose MLP makes it.
        base: nothing changed.
        changed: intervention -> its outcome.
        draws: random intervention -> outcomes by draw.
    """

    name: str
    layer: int
    base: Outcome
    changed: Mapping[str, Outcome]
    draws: Mapping[str, tuple[Outcome, ...]]


@dataclass(frozen=True, eq=False)
class ChainEvidence:
    """Neurons of all episodes switched off at the primary sink.

    Attributes:
        outcomes: which set -> outcome; ``NOTHING`` is the run without edits.
        random: by draw, as many random neurons of all those layers at once.
    """

    outcomes: Mapping[str, Outcome]
    random: tuple[Outcome, ...]


@dataclass(frozen=True, eq=False)
class Side:
    """What is measured on the model and on its random-weight twin alike.

    Attributes:
        rates: kind of input -> rates.
        profile: of the first tokens, on discovery prompts.
        level: (episode, creation layer) of the commonest secondary level, on discovery prompts; None without one.
        ratios: ``[n, layer]`` the first token's norm over the others' median on held-out prompts.
        found: one pass over held-out natural text.
        sinks: every sink found there.
    """

    rates: Mapping[str, Rates]
    profile: Profile
    level: tuple[int, int] | None
    ratios: Floats
    found: Observed
    sinks: tuple[Sink, ...]

    def of_kind(self, *kinds: str) -> list[Sink]:
        """Its sinks of those kinds."""
        return [sink for sink in self.sinks if sink.kind in kinds]


@dataclass(frozen=True, eq=False)
class Collapse:
    """Principal components pushed through one MLP.

    Attributes:
        found: cosines of what came out.
        whose: the sinks whose inputs they are components of.
        layer, other_layer: the MLP that makes those sinks, and another for comparison.
    """

    found: Mapped
    whose: str
    layer: int
    other_layer: int


@dataclass(frozen=True, eq=False)
class Causes:
    """What makes the model's sinks, what removes them, what they do.

    Attributes:
        episodes: one for each of the primary's.
        chain: None without neurons that write or remove.
        targets: the sinks that were intervened on.
        at_level: one row per token of held-out text at the secondary level's creation layer: ``prompt``, ``position``, ``piece``, ``norm``
            of the MLP's output, ``cosine`` of it with the sink direction, ``received`` attention, ``lifetime``, ``sink``.
        mapped: None where no sink had enough different inputs.
    """

    episodes: tuple[EpisodeEvidence, ...]
    chain: ChainEvidence | None
    targets: tuple[TargetEvidence, ...]
    at_level: pd.DataFrame
    mapped: Collapse | None


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a claim is judged by.

    Attributes:
        knows_positions: whether the model has absolute positions.
        n_layers: of the model.
        along_random: ``[draw]`` share of held-out prompts with a token along a random direction instead of the sink's.
    """

    settings: dict[str, object]
    limits: Thresholds
    discovery: Tokens
    evaluation: Tokens
    knows_positions: bool
    n_layers: int
    model: Side
    twin: Side
    along_random: Floats
    causes: Causes

    @property
    def strongest(self) -> EpisodeEvidence | None:
        """The episode with the highest peak."""
        index = self.model.profile.strongest
        return None if index is None else self.causes.episodes[index]
