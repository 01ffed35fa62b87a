"""An emotion's circuit: units of many layers, and the difference that the emotion makes to each; added, they modulate the emotion.

1. Contributions rank the units of each sublayer. 2. Causal influence says how many each sublayer gives. 3. The emotion's within-group
difference on these units is added at the last token (of the prompt, then of what is generated).

Wang et al., arXiv 2510.11328, stages 5 to 8.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mechlab.lens.edit import Edit, add
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.steer import Steer
from steering.emotion.allocation import HEAD_FLOOR, HEAD_SHARE, NEURON_FLOOR, NEURON_SHARE, Budget, allocate, budget
from steering.emotion.contributions import Parts
from steering.emotion.directions import HEADS, NEURONS

Modulation = Callable[[float], list[Edit]]
LAST = Steer(start=-1)
"""The prompt's last token and all that is generated after it."""


def budgets(lens: Lens, layers: Sequence[int]) -> dict[str, Budget]:
    """Kind of unit -> how many a circuit of these layers holds."""
    return {
        NEURONS: budget(len(layers), lens.layout.size(NEURONS) or 0, NEURON_SHARE, NEURON_FLOOR),
        HEADS: budget(len(layers), lens.layout.n_heads, HEAD_SHARE, HEAD_FLOOR),
    }


def counts(budget_of: Mapping[str, Budget], influence: Mapping[Site, float]) -> dict[Site, int]:
    """Units that each sublayer gives, by its influence."""
    found: dict[Site, int] = {}
    for kind, one in budget_of.items():
        sublayers = [at for at in influence if at.kind == kind]
        given = allocate([influence[at] for at in sublayers], one.k, floor=one.floor, cap=one.cap)
        found |= dict(zip(sublayers, given, strict=True))
    return found


def modulation(parts: Parts, values: Mapping[Site, Tensor]) -> Modulation:
    """Strength -> edits that add the strength times ``values`` (neurons ``[d_mlp]``, heads ``[head, d_head]``) on the chosen units."""
    full = [add(at, only(values[at], units), steer=LAST) for at, units in parts.items()]
    return lambda strength: [replace(edit, strength=float(strength)) for edit in full] if strength else []


def only(value: Tensor, units: Sequence[int]) -> Tensor:
    """``value`` at some units, 0 at the others."""
    kept = torch.zeros_like(value)
    kept[list(units)] = value[list(units)]
    return kept


def at_other_layers(parts: Parts, values: Mapping[Site, Tensor], layers: Sequence[int]) -> Modulation:
    """The same values on the same numbers of unit, a third of the layers further on (after the last comes the first)."""
    moved = {layer: layers[(i + max(1, len(layers) // 3)) % len(layers)] for i, layer in enumerate(layers)}
    to = {at: Site(at.kind, moved[at.layer or 0]) for at in parts}
    return modulation({to[at]: units for at, units in parts.items()}, {to[at]: values[at] for at in parts})


def random_values(parts: Parts, values: Mapping[Site, Tensor], seed: int) -> dict[Site, Tensor]:
    """Random numbers on the same units, at each site as long as the values there."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[Site, Tensor] = {}
    for at, units in parts.items():
        wanted = only(values[at], units)
        row = only(torch.randn(wanted.shape, generator=generator), units)
        drawn[at] = row / row.norm().clamp_min(1e-30) * wanted.norm()
    return drawn


def plain_steering(directions: Mapping[Site, Tensor]) -> Modulation:
    """Strength -> edits that add the strength times the direction times the stream's RMS at the last token of each site."""
    full = [add(at, row, steer=Steer(start=-1, times_rms=True)) for at, row in directions.items()]
    return lambda strength: [replace(edit, strength=float(strength)) for edit in full] if strength else []
