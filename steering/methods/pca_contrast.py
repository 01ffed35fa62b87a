"""PCA contrast: the main axis of the differences inside pairs, its sign fixed by where the wanted side lies.

A principal axis has no sign. It is turned so that the wanted side projects higher on average, so one direction comes out whatever the
solver does. Højer, Jarvis and Heinrich, arXiv 2504.19483; Zou et al., arXiv 2310.01405.
"""

import torch
from pydantic import Field
from torch import Tensor

from mechlab.results.study import Progress
from steering.examples import Material
from steering.methods.means import group_differences
from steering.methods.method import Directions, Method, MethodSettings


class Settings(MethodSettings):
    """Settings of pca-contrast."""

    centre: bool = Field(
        default=False,
        description="take the mean difference off first, as repeng does: a shift common to all pairs is lost then",
    )
    standardise: bool = Field(default=True, description="give the axis the length of the mean difference")


def principal_axis(differences: Tensor, *, centre: bool = False) -> Tensor:
    """``[pairs, d]`` -> unit ``[d]``, along which the mean difference is not negative."""
    mean = differences.mean(0)
    axis = torch.linalg.svd((differences - mean if centre else differences).double(), full_matrices=False).Vh[0].float()
    return axis if float(axis @ mean) >= 0 else -axis


def run(material: Material, settings: Settings, progress: Progress) -> Directions:  # noqa: ARG001
    found: Directions = {}
    for at, x in material.activations.items():
        differences = group_differences(x, material.examples)
        axis = principal_axis(differences, centre=settings.centre)
        found[at] = axis * differences.mean(0).norm() if settings.standardise else axis
    return found


METHOD = Method(
    name="pca-contrast",
    title="PCA contrast",
    paper="Højer, Jarvis and Heinrich 2025, arXiv 2504.19483; Zou et al. 2023, arXiv 2310.01405",
    line="First principal axis of the differences inside pairs, turned towards the wanted side.",
    settings=Settings,
    run=run,
)
