"""What the vocabulary study measured, before it is judged."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mechlab.analyses.units import Units

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
DEPTHS = ("early", "late")


@dataclass(frozen=True, eq=False)
class Clamped:
    """One cluster on held-out text. Shifts are of the log-probability of the cluster's words together, ``[text]``, nats.

    Attributes:
        depth: early or late.
        words: of the cluster, most shared first.
        neurons: their sites.
        counts: ``[neuron]`` of its 30 top words, how many lie in the theme.
        shift, loss: the cluster clamped: shift of its words, and rise of the loss.
        draws, draw_losses: ``[draw, text]`` random clusters clamped.
        at_mean: the same neurons at their own mean.
        shuffled: the same constants on others of these neurons.
        doses: strength -> (shift, rise of the loss).
    """

    depth: str
    words: tuple[str, ...]
    neurons: tuple[str, ...]
    counts: NDArray[np.int64]
    shift: Floats
    loss: Floats
    draws: Floats
    draw_losses: Floats
    at_mean: Floats
    shuffled: Floats
    doses: Mapping[float, tuple[Floats, Floats]]

    @property
    def name(self) -> str:
        """Depth and first words."""
        return f"{self.depth}: {', '.join(self.words[:3])}"


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a claim is judged by.

    Attributes:
        settings: of the study.
        units: all neurons looked at; by_depth: their layers.
        meaningful, twin_meaningful: layer -> ``[neuron]``.
        directions: depth -> ``[direction]`` the same of random directions.
        clamped: every cluster.
        twin_shifts: (depth, shift ``[text]``) of the twin's own clusters.
    """

    settings: dict[str, object]
    units: Units
    by_depth: Mapping[str, list[int]]
    meaningful: Mapping[int, Bools]
    twin_meaningful: Mapping[int, Bools]
    directions: Mapping[str, Bools]
    clamped: tuple[Clamped, ...]
    twin_shifts: tuple[tuple[str, Floats], ...]

    @property
    def seed(self) -> int:
        return int(str(self.settings["seed"]))

    def of(self, depth: str) -> list[Clamped]:
        return [one for one in self.clamped if one.depth == depth]
