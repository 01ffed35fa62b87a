"""What the bricks study measured, before it is judged."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mechlab.analyses.units import Indices, Units
from mechlab.analyses.units_by_label import Found

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a claim is judged by. Losses are ``[prompt]`` of one function, nats per token of the continuation.

    Attributes:
        settings: of the study.
        units: all neurons.
        functions: in order.
        found, shuffled, twin: bricks by the labels, by shuffled labels, and of the random-weight twin by the labels.
        largest: as many neurons of each layer, with the largest mean activation whatever the function.
        held_out: function -> FuncScores of its brick on the evaluation prompts.
        base: unedited.
        without: (brick, function).
        draws: ``[draw, prompt]`` without random neurons of the same layers.
        largest_off, shuffled_off: without the largest; without the function's brick of shuffled labels.
        twin_base, twin_off: the twin, unedited and without its own brick.
    """

    settings: dict[str, object]
    units: Units
    functions: tuple[str, ...]
    found: Found
    shuffled: Found
    twin: Found
    largest: Indices
    held_out: Mapping[str, Floats]
    base: Mapping[str, Floats]
    without: Mapping[tuple[str, str], Floats]
    draws: Mapping[str, Floats]
    largest_off: Mapping[str, Floats]
    shuffled_off: Mapping[str, Floats]
    twin_base: Mapping[str, Floats]
    twin_off: Mapping[str, Floats]

    @property
    def seed(self) -> int:
        return int(str(self.settings["seed"]))

    def own_rise(self, name: str) -> Floats:
        """``[prompt]``: rise of the loss without the function's own brick."""
        return self.without[name, name] - self.base[name]

    def rise_by_others(self, name: str) -> Floats:
        """``[prompt]``: mean rise without the other functions' bricks."""
        return (
            np.mean([self.without[other, name] for other in self.functions if other != name], axis=0) - self.base[name]
        )

    def rise_elsewhere(self, brick: str) -> Floats:
        """``[prompt]`` of all other functions: rise of the loss without one function's brick."""
        others = [name for name in self.functions if name != brick]
        return np.concatenate([self.without[brick, name] - self.base[name] for name in others])

    def joined(self, by_function: Mapping[str, Floats]) -> Floats:
        """``[..., prompt]`` of all functions, in order."""
        return np.concatenate([by_function[name] for name in self.functions], axis=-1)

    def overlap(self, a: str, b: str) -> float:
        """Share of a's brick that lies in b's too."""
        return len(np.intersect1d(self.found.sets[a], self.found.sets[b])) / len(self.found.sets[a])
