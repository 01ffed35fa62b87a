"""Massive activations: where they are, and what happens when they are set to zero, to their mean, or when others are.

Sun et al., "Massive Activations in Large Language Models", COLM 2024, arXiv 2402.17762. An entry of the hidden state ``[pos, d_model]``
after a layer is massive if its size is above 100 and about 1,000 times the median size of that hidden state. Interventions change the
output of one layer, the first that has them; everything after it runs on. A zero is far from anything the model ever sees there, so it is
always paired with the entry's mean (a constant that says nothing of the input), with its value on another text, and with zeros elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.lens.edit import Edit, clamp, zero
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.results.study import Progress, silent

__all__ = ["Place", "Survey", "is_massive", "loss_nats", "set_to", "survey", "zeroed"]

Floats = NDArray[np.float64]
ENTRY_COLUMNS = ["prompt", "layer", "position", "piece", "dimension", "value"]
_BATCH = 4


class Place(NamedTuple):
    """One entry of the hidden state of one prompt."""

    position: int
    dimension: int


Kind = tuple[int, bool]
"""A dimension, and whether the token is the first one: what an entry's mean is taken over."""


@dataclass(frozen=True, eq=False)
class Survey:
    """Sizes of entries after every layer.

    Attributes:
        top: ``[n, layer, 3]`` the three largest sizes.
        median: ``[n, layer]`` the median size.
        entries: one row per massive entry: ``prompt``, ``layer``, ``position``, ``piece``, ``dimension``, ``value``.
    """

    top: Floats
    median: Floats
    entries: pd.DataFrame

    @property
    def with_massive(self) -> Floats:
        """``[n, layer]``: 1 where the hidden state has a massive entry."""
        found = np.zeros(self.median.shape)
        found[self.entries["prompt"].to_numpy(dtype=int), self.entries["layer"].to_numpy(dtype=int)] = 1
        return found

    def first_layer(self) -> int | None:
        """The first layer after which at least half of the prompts have a massive entry; None if there is none."""
        shares = self.with_massive.mean(axis=0)
        return next((layer for layer, share in enumerate(shares) if share >= 0.5), None)

    def means(self, layer: int) -> dict[Kind, Floats]:
        """Dimension and first or not -> the values of such massive entries after that layer."""
        rows = self.entries[self.entries["layer"] == layer]
        found: dict[Kind, list[float]] = {}
        for dimension, position, value in rows[["dimension", "position", "value"]].itertuples(index=False):
            found.setdefault((int(dimension), int(position) == 0), []).append(float(value))
        return {kind: np.array(values) for kind, values in found.items()}


def is_massive(hidden: Tensor, floor: float, ratio: float) -> Tensor:
    """``[..., pos, d_model]`` -> bool of that shape: size above ``floor`` and at least ``ratio`` times the median size of the matrix."""
    sizes = hidden.abs()
    median = sizes.flatten(-2).median(dim=-1).values[..., None, None]
    return (sizes > floor) & (sizes >= ratio * median)


def survey(lens: Lens, tokens: Tokens, floor: float, ratio: float, progress: Progress = silent) -> Survey:
    """Reads the residual stream after every layer, a few prompts of one length at a time."""
    sites = [Site("resid_post", layer) for layer in range(lens.model.n_layers)]
    tops: list[Floats] = []
    medians: list[Floats] = []
    rows: list[tuple[int, int, int, str, int, float]] = []
    for start in range(0, len(tokens), _BATCH):
        batch = tokens.select(range(start, min(start + _BATCH, len(tokens))))
        run = lens.run(batch, read=sites, logits="none", batch_size=len(batch))
        sizes = [run[at].float().abs().flatten(1) for at in sites]
        tops.append(torch.stack([size.topk(3).values for size in sizes], dim=1).double().cpu().numpy())
        medians.append(torch.stack([size.median(dim=1).values for size in sizes], dim=1).double().cpu().numpy())
        for layer, at in enumerate(sites):
            hidden = run[at].float()
            for row, position, dimension in is_massive(hidden, floor, ratio).nonzero().tolist():
                piece, value = batch.pieces[row][position], float(hidden[row, position, dimension])
                rows.append((start + row, layer, position, piece, dimension, value))
        progress("sizes of entries", start + len(batch), len(tokens))
    entries = pd.DataFrame(rows, columns=ENTRY_COLUMNS)
    return Survey(np.concatenate(tops), np.concatenate(medians), entries)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Places of one prompt at one layer, for each way of choosing them; as many in each as there are massive ones.

    Attributes:
        massive: of the kinds seen on discovery text, the largest first.
        next_largest: the largest other entries, at other tokens and in other dimensions than the massive ones.
        median_sized: those whose size is nearest the median.
        random: by draw.
    """

    massive: tuple[Place, ...]
    next_largest: tuple[Place, ...]
    median_sized: tuple[Place, ...]
    random: tuple[tuple[Place, ...], ...]


def choose(hidden: Tensor, floor: float, ratio: float, kinds: Mapping[Kind, Floats], draws: int, seed: int) -> Chosen:
    """Places in one prompt's hidden state ``[pos, d_model]``."""
    hidden = hidden.float().cpu()
    found = [Place(*at) for at in is_massive(hidden, floor, ratio).nonzero().tolist()]
    found = [at for at in found if (at.dimension, at.position == 0) in kinds]
    massive = tuple(sorted(found, key=lambda at: -abs(float(hidden[at]))))
    sizes = hidden.abs()
    others = torch.ones_like(sizes, dtype=torch.bool)
    for at in massive:
        others[at.position], others[:, at.dimension] = False, False
    masked = sizes.masked_fill(~others, -1)
    apart = (sizes - sizes.median()).abs().masked_fill(~others, float("inf"))
    pool = others.flatten().nonzero()[:, 0].numpy()
    generator, count = np.random.default_rng(seed), len(massive)

    def places(flat: Sequence[int]) -> tuple[Place, ...]:
        return tuple(Place(*divmod(int(at), hidden.shape[1])) for at in flat)

    return Chosen(
        massive=massive,
        next_largest=places(masked.flatten().topk(count).indices.tolist()),
        median_sized=places(apart.flatten().topk(count, largest=False).indices.tolist()),
        random=tuple(places(generator.choice(pool, count, replace=False).tolist()) for _ in range(draws)),
    )


def zeroed(layer: int, places: Sequence[Place]) -> list[Edit]:
    """Each place set to zero after that layer."""
    return [zero(Site("resid_post", layer, at.dimension, at.position)) for at in places]


def set_to(layer: int, values: Mapping[Place, float]) -> list[Edit]:
    """Each place set to its value after that layer."""
    return [clamp(Site("resid_post", layer, at.dimension, at.position), v, v) for at, v in values.items()]


def loss_nats(lens: Lens, tokens: Tokens, edits: Sequence[Edit]) -> float:
    """Mean next-token loss over all tokens of one prompt."""
    assert len(tokens) == 1, f"one prompt at a time, got {len(tokens)}"
    run = lens.run(tokens, edits)
    assert run.logits is not None
    ids = tokens.ids[0, 1:].to(run.logits.device)
    return float(torch.nn.functional.cross_entropy(run.logits[0, :-1].float(), ids))
