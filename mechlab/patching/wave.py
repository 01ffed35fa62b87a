"""A wave: rows with the places of their tokens in one packed sequence, and where their edits touch it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.lens.apply import Cells, Source
from mechlab.lens.edit import Edit
from mechlab.lens.hooks import Placed, Tap, make_taps
from mechlab.lens.site import BY_HEAD, Site
from mechlab.lens.tokens import Tokens
from mechlab.patching.rows import AFTER_LAYERS, Group, Row

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Packing:
    """The packed sequence at one layer: the rows in the sweep there, one after another.

    Attributes:
        of: ``[rows]`` prompt of each row.
        starts, stops: ``[rows]`` positions each carries at this layer.
        partial: ``[rows]`` whether it carries more from the next layer on.
        offsets: ``[rows + 1]`` places of their first tokens, and the number of tokens.
        prompts, positions: ``[tokens]``.
    """

    of: Ints
    starts: Ints
    stops: Ints
    partial: Bools
    offsets: Ints
    prompts: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.of)

    @property
    def n_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def ends(self) -> Tensor:
        """``[rows]`` places of the rows' last tokens."""
        return torch.from_numpy(self.offsets[1:] - 1)

    @staticmethod
    def one_after_another(of: Ints, starts: Ints, stops: Ints, partial: Bools) -> "Packing":
        offsets = np.concatenate([[0], np.cumsum(stops - starts)])
        _, prompts, positions = _spread(np.stack([offsets[:-1] - starts, of, starts, stops]))
        return Packing(of, starts, stops, partial, offsets, prompts, positions)


class Wave:
    """Rows in order of entry with their places in the packed sequence; a window for taps (see ``apply.Place``).

    Rows that enter at a layer stand last there, some with fewer positions than from the next layer on: those before them keep their places.

    Args:
        made_below: edits below this layer are made already.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        groups: Sequence[Group],
        tokens: Tokens,
        sources: Mapping[str, Source],
        made_below: int = 0,
    ) -> None:
        self.rows, self.groups, self.tokens, self.sources, self.total = rows, groups, tokens, sources, len(tokens)
        self.entries = np.array([row.entry for row in rows])
        self._of, self._starts, self._stops, self._entry_stops = (
            np.array([getattr(row, name) for row in rows]) for name in ("prompt", "start", "stop", "entry_stop")
        )
        self.whole = Packing.one_after_another(self._of, self._starts, self._stops, np.zeros(len(rows), bool))
        self._packings: dict[int, Packing] = {}
        self._places = self._edit_places(groups, made_below)

    @property
    def n_batch(self) -> int:
        return 1

    def at(self, layer: int) -> Packing:
        """The packed sequence at ``layer``."""
        if layer > self.entries[-1]:
            return self.whole
        if layer not in self._packings:
            rows = slice(int(np.searchsorted(self.entries, layer, side="right")))
            stops = np.where(self.entries[rows] < layer, self._stops[rows], self._entry_stops[rows])
            partial = stops < self._stops[rows]
            self._packings[layer] = Packing.one_after_another(self._of[rows], self._starts[rows], stops, partial)
        return self._packings[layer]

    def moved(self, layer: int) -> tuple[int, Tensor]:
        """Of the tokens at the layer below: how many stand at ``layer`` where they stood, and the places of the others."""
        below, here = self.at(layer - 1), self.at(layer)
        if below.n_tokens == here.offsets[len(below)]:
            return below.n_tokens, torch.empty(0, dtype=torch.long)
        first = int(np.searchsorted(self.entries, layer - 1))
        stay = int(below.offsets[first])
        shifts = (here.offsets[: len(below)] - below.offsets[:-1])[first:]
        lengths = (below.stops - below.starts)[first:]
        return stay, torch.from_numpy(np.arange(stay, below.n_tokens) + np.repeat(shifts, lengths))

    def at_ends(self, layer: int) -> "Wave":
        """The same rows with nothing but their last tokens, from ``layer`` on."""
        ends = [replace(row, start=row.stop - 1, entry_stop=row.stop) for row in self.rows]
        return Wave(ends, self.groups, self.tokens, self.sources, layer)

    def _edit_places(
        self, groups: Sequence[Group], made_below: int
    ) -> dict[tuple[Edit, int], tuple[Tensor, Tensor, Tensor]]:
        """(edit, its turn among its row's edits at that site) -> packed places of the tokens it touches, their prompts and positions."""
        found: dict[tuple[Edit, int], list[tuple[int, int, int, int]]] = {}
        for i, row in enumerate(self.rows):
            turns: Counter[tuple[str, int | None]] = Counter()
            for edit in groups[row.group]:
                if (edit.site.layer or 0) < made_below and edit.site.kind not in AFTER_LAYERS:
                    continue
                in_entry = edit.site.layer == row.entry or edit.site.kind == "embed"
                packing = self.at(row.entry) if in_entry else self.whole
                start, stop = row.start, int(packing.stops[i])
                if edit.site.pos is not None:
                    position = self.tokens.positions(edit.site.pos)[row.prompt]
                    start, stop = max(start, position), min(stop, position + 1)
                here = (edit.site.kind, edit.site.layer)
                cells = (int(packing.offsets[i]) - row.start, row.prompt, start, max(start, stop))
                found.setdefault((edit, turns[here]), []).append(cells)
                turns[here] += 1
        return {key: _spread(np.array(cells).T) for key, cells in found.items()}

    def cells(self, edit: Edit, n_positions: int, turn: int = 0) -> Cells:  # noqa: ARG002 (see Place)
        """Cells of a packed activation ``[1, n_positions, ...]``, or of one read at the rows' last tokens only."""
        column, prompts, at = self._places[edit, turn]
        if edit.site.kind in AFTER_LAYERS:
            last = torch.full((self.whole.n_tokens,), -1)
            last[self.whole.ends] = torch.arange(len(self.rows))
            read = last[column] >= 0
            column, prompts, at = last[column][read], prompts[read], at[read]
        return Cells(torch.zeros_like(column), column, prompts, at)

    def taps(self, read: Sequence[Site] = ()) -> list[Tap]:
        """One tap per (kind, layer) with its edits by turn: each row's edits in the order in which its intervention states them."""
        by_turn = sorted(self._places, key=lambda place: place[1])
        found = make_taps(self, (Placed(edit, turn) for edit, turn in by_turn), read)
        return [CopyingTap(tap.kind, tap.layer, self, tap.edits, tap.read) for tap in found]


_READ_ANEW = (*BY_HEAD, *AFTER_LAYERS)  # their cells are not the packed tokens


@dataclass(eq=False)
class CopyingTap(Tap):
    """A tap that makes all its plain patches at once: there may be hundreds, one of each row."""

    def edited(self, by_pos: Tensor) -> Tensor:
        copies: dict[tuple[str, bool], list[Placed]] = {}
        others: list[Placed] = []
        for placed in self.edits:
            edit = placed.edit
            if placed.turn == 0 and edit.verb == "patch" and edit.source_pos is None and self.kind not in _READ_ANEW:
                copies.setdefault((edit.source or "", edit.site.index is not None), []).append(placed)
            else:
                others.append(placed)
        if copies:
            by_pos = by_pos.clone()
            for (source, of_units), those in copies.items():
                self._copy(by_pos, self.place.sources[source], those, of_units=of_units)
        return self.in_turn(by_pos, others, owned=bool(copies))

    def _copy(self, into: Tensor, source: Source, placed: Sequence[Placed], *, of_units: bool) -> None:
        """Writes the source's values of the same tokens (and units)."""
        cells = [self.place.cells(one.edit, into.shape[1], one.turn) for one in placed]
        column, prompts, at = (torch.cat([getattr(one, part) for one in cells]) for part in ("column", "prompts", "at"))
        prompts = prompts if len(source.tokens) > 1 else torch.zeros_like(prompts)
        values = source.activations[self.kind, self.layer]
        if not of_units:
            into[0, column] = values[prompts, at].to(into)
            return
        units = torch.tensor([one.edit.site.index for one in placed]).repeat_interleave(
            torch.tensor([len(one) for one in cells])
        )
        into[0, column, units] = values[prompts, at, units].to(into)


def _spread(cells: Ints) -> tuple[Tensor, Tensor, Tensor]:
    """Packed places, prompts and positions ``[n]`` of (place of position 0, prompt, start, stop) ``[4, rows]``."""
    zeros, prompts, starts, stops = cells
    lengths = stops - starts
    before = np.cumsum(lengths) - lengths
    at = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
    found = (at + np.repeat(zeros, lengths), np.repeat(prompts, lengths), at)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1]), torch.from_numpy(found[2])


class InBatch:
    """A wave seen from one batch of its attention, ``[rows, query, head, key]``.

    Args:
        tokens, slots: packed places of its tokens, and their places among the batch's queries, ``width`` a row.
    """

    def __init__(self, wave: Wave, tokens: Ints, slots: Ints, n_batch: int, width: int) -> None:
        self.wave, self.tokens, self.sources, self.total = wave, wave.tokens, wave.sources, wave.total
        self.n_batch, self.width = n_batch, width
        self.slot = torch.full((wave.whole.n_tokens,), -1)
        self.slot[torch.from_numpy(tokens)] = torch.from_numpy(slots)

    def cells(self, edit: Edit, n_positions: int, turn: int = 0) -> Cells:
        packed_cells = self.wave.cells(edit, n_positions, turn)
        slot = self.slot[packed_cells.column]
        here = slot >= 0
        slot = slot[here]
        return Cells(slot // self.width, slot % self.width, packed_cells.prompts[here], packed_cells.at[here])
