"""Random directions, as long as the difference in means: the control that every other method must beat."""

import torch

from mechlab.results.study import Progress
from steering.examples import Material
from steering.methods.means import mean_difference
from steering.methods.method import Directions, Method, MethodSettings
from steering.vector import SteeringVector


def run(material: Material, settings: MethodSettings, progress: Progress) -> Directions:  # noqa: ARG001
    generator = torch.Generator().manual_seed(settings.seed)
    found: Directions = {}
    for at, x in material.activations.items():
        drawn = torch.randn(x.shape[1], generator=generator)
        found[at] = drawn / drawn.norm() * mean_difference(x, material.examples).norm()
    return found


def as_long_as(vector: SteeringVector, seed: int) -> SteeringVector:
    """A random vector at the same sites, each direction as long as the vector's own."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {at: torch.randn(len(v), generator=generator) for at, v in vector.directions.items()}
    directions = {at: row / row.norm() * vector[at].norm() for at, row in drawn.items()}
    return SteeringVector(
        directions, vector.origin.model_copy(update={"method": "random", "seed": seed, "settings": {}})
    )


METHOD = Method(
    name="random",
    title="Random",
    paper="control",
    line="A random direction, as long as the difference in means.",
    settings=MethodSettings,
    run=run,
)
