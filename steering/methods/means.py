"""Directions that are means: difference in means, reading, reading-contrast.

With complete pairs the difference in means and the reading-contrast are one vector; without, the first uses every prompt and the second the
complete groups only.
"""

import torch
from torch import Tensor

from mechlab.results.study import Progress
from steering.examples import Examples, Material
from steering.methods.method import Directions, Method, MethodSettings


def mean_difference(activations: Tensor, examples: Examples) -> Tensor:
    """Mean of the wanted class minus the mean of all other prompts: ``[n, d] -> [d]``."""
    wanted = examples.is_wanted
    return activations[wanted].mean(0) - activations[~wanted].mean(0)


def group_differences(activations: Tensor, examples: Examples) -> Tensor:
    """``[groups, d]``: in each complete group, the wanted prompt minus the mean of the others."""
    rows: list[Tensor] = []
    for group in examples.complete_groups():
        others = [activations[row] for name, row in group.items() if name != examples.wanted]
        rows.append(activations[group[examples.wanted]] - torch.stack(others).mean(0))
    return torch.stack(rows)


def _difference(material: Material, settings: MethodSettings, progress: Progress) -> Directions:  # noqa: ARG001
    return {at: mean_difference(x, material.examples) for at, x in material.activations.items()}


def _reading(material: Material, settings: MethodSettings, progress: Progress) -> Directions:  # noqa: ARG001
    wanted = material.examples.is_wanted
    return {at: x[wanted].mean(0) for at, x in material.activations.items()}


def _reading_contrast(material: Material, settings: MethodSettings, progress: Progress) -> Directions:  # noqa: ARG001
    return {at: group_differences(x, material.examples).mean(0) for at, x in material.activations.items()}


MEAN_DIFFERENCE = Method(
    name="mean-difference",
    title="Difference in means",
    paper="Rimsky et al. 2023 (CAA), arXiv 2312.06681",
    line="Mean activation of the wanted class minus the mean of the others.",
    settings=MethodSettings,
    run=_difference,
)
READING = Method(
    name="reading",
    title="Reading",
    paper="Højer, Jarvis and Heinrich 2025, arXiv 2504.19483",
    line="Mean activation of the wanted class, with nothing taken off.",
    settings=MethodSettings,
    run=_reading,
)
READING_CONTRAST = Method(
    name="reading-contrast",
    title="Reading contrast",
    paper="Højer, Jarvis and Heinrich 2025, arXiv 2504.19483",
    line="Mean over pairs (or groups) of the wanted activation minus the others' in the same pair.",
    settings=MethodSettings,
    run=_reading_contrast,
)
