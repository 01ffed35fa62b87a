"""Executors: units of work in, outcomes out, in any order.

An executor asks for the next unit when a worker is free, so that no more is in flight than there are workers, and what each outcome taught
about speed shapes the next unit. Units and outcomes are plain data (``mechlab.sweeps.cells``). The parent is the only writer of the store.
To run elsewhere, write one class with ``outcomes``: hold one ``Bench`` per device, call ``Bench.run(unit)`` there, give a unit whose worker
died to another one.
"""

from collections import deque
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Protocol

from mechlab.sweeps.cells import Outcome, Unit

if TYPE_CHECKING:
    from mechlab.sweeps.work import Bench


class Executor(Protocol):
    """Runs units."""

    def outcomes(self, units: Iterator[Unit]) -> Generator[Outcome]:
        """One outcome per unit (or one per part of it). Closing the generator ends its workers.

        Raises:
            MechlabError: what no cell is to blame for: a model or task that cannot be had, workers that die one after another.
        """
        ...


LIVES = 2
"""How often a single cell may lose its worker before it is marked failed."""
MOST_DEATHS = 16
"""Of workers in a row, with no unit done in between: halving down to one bad cell takes ten."""


def buried(unit: Unit, again: deque[Unit], lives: dict[int, int], died: str) -> Generator[Outcome]:
    """What becomes of a unit whose worker died: halves of it go back to ``again``; a cell alone does until its lives are spent.

    Args:
        lives: cell -> how many it has left; written to.
        died: how, for the cell's error.
    """
    if len(unit.cells) > 1:
        again.extend(unit.halves())
        return
    [cell] = [number for number, _ in unit.cells]
    lives[cell] = lives.get(cell, LIVES) - 1
    if lives[cell]:
        again.append(unit)
        return
    yield Outcome(unit, failed={cell: f"WorkerDied: {died}"})


class InProcess:
    """One after another, in this process."""

    def __init__(self, bench: "Bench") -> None:
        self._bench = bench

    def outcomes(self, units: Iterator[Unit]) -> Generator[Outcome]:
        for unit in units:
            yield self._bench.run(unit)
