"""Targets of neurofeedback: directions in a model's own activations, and what a sentence's score on each is.

A sentence's activation is the mean over its tokens, read alone. Its score is the projection on the direction; its label says whether that
lies above the median. Directions are made on other sentences than those that are scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from steering.emotion.scenarios import Part, items
from steering.examples import Material, contrast, read
from steering.methods.catalogue import method

Floats = NDArray[np.float64]
PROBE, RANDOM, SHUFFLED, FLIPPED = "probe", "random directions", "shuffled labels", "flipped labels"


@dataclass(frozen=True, eq=False)
class Target:
    """What is fed back, for each of ``p`` contexts (a control may have another direction in each) and ``s`` sentences.

    Attributes:
        directions: ``[p, d]``. labels: ``[p, s]`` 0 or 1. spread: ``[p]`` standard deviation of the sentences' projections.
        variance: share of the sentences' variance along the direction, mean over contexts.
    """

    name: str
    directions: Floats
    labels: NDArray[np.int64]
    spread: Floats
    variance: float


def sentences(part: Part) -> tuple[list[str], list[str]]:
    """Pleasant and unpleasant events of the bundled scenarios, in pairs."""
    found = items(part)
    return [one.event for one in found if one.valence == "positive"], [
        one.event for one in found if one.valence == "negative"
    ]


def targets(lens: Lens, at: Site, components: Sequence[int], n: int, seed: int) -> dict[str, Target]:
    """The probe, principal components, and the controls: random directions, the probe with shuffled and with flipped labels.

    Raises:
        MechlabError: a component beyond the number of sentences or dimensions.
    """
    pleasant, unpleasant = sentences("fit")
    material = Material(lens, contrast(lens, "valence", pleasant, unpleasant), [at], position=None)
    fit = material.activations[at].double().numpy()
    held_out = activations(lens, at)
    rng = np.random.default_rng(seed)
    probe = method("logistic").extract(material)[at].double().numpy()
    wanted = material.examples.is_wanted.numpy()
    found = {PROBE: target(PROBE, np.tile(probe, (n, 1)), held_out)}
    for k in components:
        found[component_name(k)] = target(component_name(k), np.tile(component(fit, wanted, k), (n, 1)), held_out)
    drawn = rng.normal(size=(n, fit.shape[1]))
    found[RANDOM] = target(RANDOM, drawn / np.linalg.norm(drawn, axis=1, keepdims=True), held_out)
    own = found[PROBE]
    found[SHUFFLED] = Target(SHUFFLED, own.directions, rng.permuted(own.labels, axis=1), own.spread, own.variance)
    found[FLIPPED] = Target(FLIPPED, own.directions, 1 - own.labels, own.spread, own.variance)
    return found


def activations(lens: Lens, at: Site) -> Floats:
    """``[sentences, d]`` of the held-out sentences, pleasant ones first."""
    pleasant, unpleasant = sentences("held-out")
    return read(lens, [*pleasant, *unpleasant], [at], None)[at].double().numpy()


def target(name: str, directions: Floats, x: Floats) -> Target:
    """Labels of sentences with activations ``x [s, d]`` on directions ``[p, d]``."""
    projections = directions @ x.T
    labels = (projections > np.median(projections, axis=1, keepdims=True)).astype(np.int64)
    spread, length = projections.std(1), (directions**2).sum(1)
    return Target(name, directions, labels, spread, float((spread**2 / length).mean() / x.var(0).sum()))


def component_name(k: int) -> str:
    return f"component {k}"


def component(x: Floats, wanted: NDArray[np.bool_], k: int) -> Floats:
    """The ``k``-th principal axis (from 1) of ``x [n, d]``, turned towards the wanted rows. Raises MechlabError beyond the last."""
    most = min(x.shape[0] - 1, x.shape[1])
    if not 1 <= k <= most:
        raise MechlabError(f"There is no principal component {k}: ask for 1 to {most}.")
    axis = torch.linalg.svd(torch.from_numpy(x - x.mean(0)), full_matrices=False).Vh[k - 1].numpy()
    return axis if x[wanted].mean(0) @ axis >= x[~wanted].mean(0) @ axis else -axis
