"""Group-centred directions: what a class adds once everything that its group shares is taken off.

A group is one event told in every class (a scenario in six emotions). Its mean over the classes is taken off, so whatever the event itself
adds is gone: a constant added to a whole group changes nothing. Then the class's mean over groups, less the mean over classes, at length 1.
Only complete groups count; among them this is the class's mean less the mean of all, and it is their completeness that takes the event off.
Wang et al., arXiv 2510.11328.
"""

import torch
from torch import Tensor

from mechlab.results.study import Progress
from steering.examples import Examples, Material
from steering.methods.method import Directions, Method, MethodSettings


def centroids(activations: Tensor, examples: Examples) -> dict[str, Tensor]:
    """Class -> ``[d]``, not normed, from ``[n, d]``; only complete groups count. They sum to zero over the classes."""
    names = examples.class_names
    rows = torch.tensor([[group[name] for name in names] for group in examples.complete_groups()])
    grouped = activations.double()[rows]  # [groups, classes, d]
    found = (grouped - grouped.mean(1, keepdim=True)).mean(0)
    found = (found - found.mean(0)).float()
    return dict(zip(names, found, strict=True))


def run(material: Material, settings: MethodSettings, progress: Progress) -> Directions:  # noqa: ARG001
    wanted = material.examples.wanted
    found = {at: centroids(x, material.examples)[wanted] for at, x in material.activations.items()}
    return {at: row / row.norm().clamp_min(1e-30) for at, row in found.items()}


METHOD = Method(
    name="group-centred",
    title="Group-centred",
    paper="Wang et al. 2025, Do LLMs 'Feel'?, arXiv 2510.11328",
    line="The class's mean after each group's own mean is taken off, at length 1.",
    settings=MethodSettings,
    run=run,
)
