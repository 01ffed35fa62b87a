"""Massive activations over training: the ratio of the largest to the median entry at each checkpoint of a model.

Gallego-Feliciano et al., arXiv 2508.03616: r[layer, step] = mean over prompts of max|h| / median|h|, with h the hidden state after
the layer. Checkpoints are revisions of a hub model or folders; or those of small models trained on the spot (``checkpoints_training``).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Prompts
from mechlab.models.loading import load
from mechlab.models.model import Model
from mechlab.results.study import Progress, silent

__all__ = ["Trace", "over_checkpoints"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trace:
    """One model over training.

    Attributes:
        name: the model's.
        steps: ``[checkpoint]``, growing.
        ratios: ``[checkpoint, layer]``.
        d_model, n_heads: of the architecture.
    """

    name: str
    steps: Floats
    ratios: Floats
    d_model: int
    n_heads: int

    @property
    def n_layers(self) -> int:
        return int(self.ratios.shape[1])


def ratios(lens: Lens, prompts: Prompts) -> Floats:
    """``[layer]``: mean over prompts of the largest entry's size over the median entry's."""
    sites = [Site("resid_post", layer) for layer in range(lens.model.n_layers)]
    tokens = lens.tokens(prompts)
    by_prompt: list[Floats] = []
    for row in range(len(tokens)):
        run = lens.run(tokens.select([row]), read=sites, logits="none")
        sizes = torch.stack([run[at][0].float().abs().flatten() for at in sites])
        by_prompt.append((sizes.max(dim=1).values / sizes.median(dim=1).values).double().cpu().numpy())
    return np.mean(by_prompt, axis=0)


def step_of(checkpoint: str) -> int:
    """The training step that a revision or folder is named after: the last number in its name.

    Raises:
        MechlabError: a name without a number.
    """
    numbers = re.findall(r"\d+", Path(checkpoint).name)
    if not numbers:
        raise MechlabError(f"Checkpoint {checkpoint!r} has no step in its name: expected one such as 'step1000'.")
    return int(numbers[-1])


def over_checkpoints(
    model: Model, checkpoints: Sequence[str], prompts: Sequence[str], progress: Progress = silent
) -> Trace:
    """The ratios at each checkpoint: a folder that exists, or a revision of the model on the hub. One is held at a time.

    Raises:
        MechlabError: two checkpoints of one step, or a name without a step. ModelError: one that cannot be loaded.
    """
    by_step = {step_of(name): name for name in checkpoints}
    if len(by_step) < len(checkpoints):
        raise MechlabError(f"{len(checkpoints)} checkpoints have {len(by_step)} different steps: name each step once.")
    found: list[Floats] = []
    for done, step in enumerate(sorted(by_step)):
        name = by_step[step]
        one = load(name) if Path(name).expanduser().is_dir() else load(model.name, revision=name)
        found.append(ratios(Lens(one), prompts))
        progress("checkpoints", done + 1, len(by_step))
    return Trace(model.name, np.array(sorted(by_step), dtype=np.float64), np.stack(found), model.d_model, model.n_heads)
