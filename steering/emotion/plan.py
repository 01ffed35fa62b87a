"""Which layers play which part, scaled from the paper's 28 layers to a model's own number."""

from dataclasses import dataclass

from mechlab.errors import ModelError
from mechlab.lens.site import Site
from steering.emotion.directions import AFTER_MLP


@dataclass(frozen=True)
class Plan:
    """Layers counted from 0.

    Attributes:
        circuit: layers whose units a circuit may hold. reference: those of the reference direction of causal influence.
        plain: those that plain steering adds to. readout: stream that is never edited, where projections and the probe are read.
    """

    circuit: tuple[int, ...]
    reference: tuple[int, ...]
    plain: tuple[int, ...]
    readout: Site


def plan(n_layers: int) -> Plan:
    """The readout lies nine tenths up; the paper's layers 21-25 and 11-20 of 28 are the shares 0.75 to 0.9 and 0.39 to 0.72.

    Raises:
        ModelError: fewer than two layers.
    """
    if n_layers < 2:
        raise ModelError(f"A model of {n_layers} layer has none left to read at: use one with two layers or more.")
    readout = min(n_layers - 1, max(1, int(0.9 * n_layers)))
    return Plan(
        circuit=tuple(range(readout)),
        reference=tuple(range(min(int(0.75 * n_layers), readout - 1), readout)),
        plain=tuple(range(min(int(0.39 * n_layers), readout - 1), max(1, min(readout, int(0.72 * n_layers))))),
        readout=Site(AFTER_MLP, readout),
    )
