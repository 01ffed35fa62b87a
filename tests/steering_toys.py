"""What several tests of steering share."""

import torch

from mechlab.lens.site import Site
from mechlab.models.model import Model
from steering.vector import SteeringVector, VectorOrigin

ANSWER, PAIRS = 7, 40
A, B = Site("resid_post", 1), Site("resid_post", 2)


def made(model: Model, seed: int = 0, sites: tuple[Site, ...] = (A, B)) -> SteeringVector:
    """A vector of random directions."""
    generator = torch.Generator().manual_seed(seed)
    origin = VectorOrigin(model=model.name, fingerprint=model.fingerprint, method="made", task=f"t{seed}", seed=seed)
    return SteeringVector({at: torch.randn(model.d_model, generator=generator) for at in sites}, origin)
