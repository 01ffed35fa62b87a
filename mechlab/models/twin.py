"""The random twin: same architecture, settings and tokenizer, freshly drawn weights; and models beside one another.

The twin is a control for claims about training.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mechlab.models.model import Model
from mechlab.models.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


def random_twin(model: Model, seed: int = 0) -> Model:
    """`model` with the weights its architecture starts training from, on the same device and in the same dtype.

    The same seed gives the same fingerprint; the global random state is untouched. The name gains '@random:SEED'.
    """
    hf = fresh(model.hf.config, model.dtype, seed).to(model.device)  # pyright: ignore[reportArgumentType]
    return Model(f"{model.name}@random:{seed}", model.source, hf, model.tokenizer)


def fresh(config: PreTrainedConfig, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """A newly initialised model of a copy of `config`, on the CPU."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    has_own_code = hasattr(config, "auto_map")  # then its code was trusted when `config` was loaded
    with seeded(seed), quiet():
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=has_own_code)


def over_same_weights(hf: PreTrainedModel) -> PreTrainedModel:
    """Another tree of modules over the very same parameters and buffers: its hooks and settings are its own, nothing is copied."""
    shared = {id(tensor): tensor for tensor in (*hf.parameters(), *hf.buffers())}
    return copy.deepcopy(hf, memo=shared)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, eq=False)
class _Beside(Model):
    """The weights are another model's, so its fingerprint is, too: hashing takes seconds and is done once for all."""

    whole: Model

    @cached_property
    def fingerprint(self) -> str:
        return self.whole.fingerprint


def beside(model: Model) -> Model:
    """The model on a tree of modules of its own over the same weights: hooks on the one are not on the other."""
    return _Beside(model.name, model.source, over_same_weights(model.hf), model.tokenizer, model)


@contextlib.contextmanager
def seeded(seed: int) -> Generator[None]:
    """Draw from a CPU generator that starts at `seed`; put the global state back afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
        yield
