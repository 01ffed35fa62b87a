"""Optimised vectors: the direction that makes given answers likelier, found by gradient.

One direction per site, added at every token of the prompts, all sites at once. Each step goes a fixed way up the gradient of the answers'
mean log-probability and gives back a share of the vector's length. The step is along the gradient itself, not coordinate by coordinate as
Adam goes: the residual stream has no preferred axes. Subramani et al., arXiv 2205.05124; Cao et al. (BiPO), arXiv 2406.00045.
"""

import torch
from pydantic import Field
from torch import Tensor

from mechlab.errors import PromptError
from mechlab.lens.edit import add
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.steer import Steer
from mechlab.lens.tokens import Tokens
from mechlab.results.metrics import log_probability
from mechlab.results.study import Progress
from steering.examples import Material
from steering.methods.method import Directions, Method, MethodSettings


class Settings(MethodSettings):
    """Settings of optimised."""

    steps: int = Field(default=20, ge=1, description="of gradient ascent, each over all prompts")
    step_size: float = Field(
        default=0.05, gt=0, description="length of a step, in units of the activation's mean length"
    )
    decay: float = Field(default=0.05, ge=0, lt=1, description="share of its length that the vector loses in each step")
    start: int = Field(default=1, ge=0, description="first token the vector is added at while it is learnt")


def run(material: Material, settings: Settings, progress: Progress) -> Directions:
    examples, lens = material.examples, material.lens
    if examples.answers is None:
        raise PromptError(
            f"Examples {examples.name!r} have no answers, which an optimised vector is pushed towards: give answers= (token ids)."
        )
    step = {at: settings.step_size * x.norm(dim=-1).mean() for at, x in material.activations.items()}
    vectors = {at: torch.zeros(x.shape[1]) for at, x in material.activations.items()}
    for i in range(settings.steps):
        progress("optimising", i, settings.steps)
        slopes = _slopes(lens, examples.prompts, examples.answers, vectors, settings)
        for at, slope in slopes.items():
            vectors[at] = (1 - settings.decay) * vectors[at] + step[at] * slope / slope.norm().clamp_min(1e-30)
    progress("optimising", settings.steps, settings.steps)
    return vectors


def _slopes(
    lens: Lens, prompts: Tokens, answers: Tensor, vectors: dict[Site, Tensor], settings: Settings
) -> dict[Site, Tensor]:
    """Gradient ``[d]`` of the mean log-probability of the answers, the vectors added: that of a shift of every token it is added at."""
    edits = [add(at, vector, steer=Steer(start=settings.start)) for at, vector in vectors.items()]
    found = lens.gradients(prompts, lambda logits: log_probability(logits, answers.to(logits.device)), vectors, edits)
    # Padding has no gradient, and the tokens before ``start`` are not moved.
    return {at: found[at][:, settings.start :].sum((0, 1)).float().cpu() / len(prompts) for at in vectors}


METHOD = Method(
    name="optimised",
    title="Optimised",
    paper="Subramani, Suresh and Peters 2022, arXiv 2205.05124",
    line="Gradient ascent on the log-probability of given answers, with decay of its length.",
    settings=Settings,
    run=run,
)
