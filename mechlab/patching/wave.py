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
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.patching.rows import Group, Row

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows of one start and stop that are in the sweep: attention takes them as one batch.

    Attributes:
        index: ``[rows, stop - start]`` places of their tokens in the packed sequence.
        prompts: ``[rows]`` prompt of each.
        members: ``[rows]`` their numbers in the wave.
    """

    start: int
    stop: int
    index: Tensor
    prompts: Tensor
    members: Tensor

    def part(self, rows: Tensor) -> "Bucket":
        """These of its rows, in this order."""
        return Bucket(self.start, self.stop, self.index[rows], self.prompts[rows], self.members[rows])

    def at_ends(self) -> "Bucket":
        """The same rows in ``Wave.at_ends``."""
        return Bucket(self.stop - 1, self.stop, self.members[:, None], self.prompts, self.members)


class Wave:
    """Rows in order of entry with their places in the packed sequence; a window for taps (see ``apply.Place``)."""

    def __init__(
        self, rows: Sequence[Row], groups: Sequence[Group], tokens: Tokens, sources: Mapping[str, Source]
    ) -> None:
        self.rows, self.groups, self.tokens, self.sources, self.total = rows, groups, tokens, sources, len(tokens)
        lengths = np.array([row.n_tokens for row in rows])
        self.offsets: Ints = np.concatenate([[0], np.cumsum(lengths)])
        self.positions = torch.from_numpy(np.concatenate([np.arange(row.start, row.stop) for row in rows]))
        self.prompts = torch.from_numpy(np.repeat([row.prompt for row in rows], lengths))
        self.entries = np.array([row.entry for row in rows])
        self.ends = torch.from_numpy(self.offsets[1:] - 1)
        self._places = self._edit_places(groups)

    @property
    def n_batch(self) -> int:
        return 1

    def at_ends(self) -> "Wave":
        """The same rows with nothing but their last tokens."""
        ends = [replace(row, start=row.stop - 1) for row in self.rows]
        return Wave(ends, self.groups, self.tokens, self.sources)

    def joined(self, layer: int) -> int:
        """How many rows are in the sweep at ``layer``."""
        return int(np.searchsorted(self.entries, layer, side="right"))

    def joining(self, layer: int) -> slice:
        """Places in the packed sequence of the rows that enter at ``layer``."""
        first, last = np.searchsorted(self.entries, [layer, layer + 1])
        return slice(int(self.offsets[first]), int(self.offsets[last]))

    def buckets(self, layer: int) -> list[Bucket]:
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, row in enumerate(self.rows[: self.joined(layer)]):
            by_shape.setdefault((row.start, row.stop), []).append(i)
        return [
            Bucket(
                start,
                stop,
                torch.from_numpy(self.offsets[members][:, None] + np.arange(stop - start)),
                torch.tensor([self.rows[i].prompt for i in members]),
                torch.tensor(members),
            )
            for (start, stop), members in by_shape.items()
        ]

    def _edit_places(self, groups: Sequence[Group]) -> dict[tuple[Edit, int], Ints]:
        """(edit, its turn among its row's edits at that site) -> packed places of the tokens it touches."""
        places: dict[tuple[Edit, int], list[Ints]] = {}
        for i, row in enumerate(self.rows):
            turns: Counter[tuple[str, int | None]] = Counter()
            for edit in groups[row.group]:
                if edit.site.pos is None:
                    at = np.arange(row.start, row.stop)
                else:
                    position = self.tokens.positions(edit.site.pos)[row.prompt]
                    at = np.array([position] if position >= row.start else [], dtype=np.int64)
                here = (edit.site.kind, edit.site.layer)
                places.setdefault((edit, turns[here]), []).append(self.offsets[i] + at - row.start)
                turns[here] += 1
        return {key: np.concatenate(found) for key, found in places.items()}

    def cells(self, edit: Edit, n_positions: int, turn: int = 0) -> Cells:  # noqa: ARG002 (see Place)
        """Cells of a packed activation ``[1, n_positions, ...]``, or of one read at the rows' last tokens only."""
        at = torch.from_numpy(self._places[edit, turn])
        column = at
        if edit.site.kind in ("final_norm", "logits"):
            last = torch.full((int(self.offsets[-1]),), -1)
            last[self.ends] = torch.arange(len(self.rows))
            at = at[last[at] >= 0]
            column = last[at]
        return Cells(torch.zeros_like(column), column, self.prompts[at], self.positions[at])

    def taps(self, read: Sequence[Site] = ()) -> list[Tap]:
        """One tap per (kind, layer) with its edits by turn: each row's edits in the order in which its intervention states them."""
        by_turn = sorted(self._places, key=lambda place: place[1])
        return make_taps(self, (Placed(edit, turn) for edit, turn in by_turn), read)


class InBucket:
    """A wave seen from one bucket's attention, ``[rows, query, head, key]``."""

    def __init__(self, wave: Wave, bucket: Bucket) -> None:
        self.wave, self.tokens, self.sources, self.total = wave, wave.tokens, wave.sources, wave.total
        self.n_batch, self.width = bucket.index.shape
        self.place = torch.full((int(wave.offsets[-1]),), -1)
        self.place[bucket.index.flatten()] = torch.arange(bucket.index.numel())

    def cells(self, edit: Edit, n_positions: int, turn: int = 0) -> Cells:
        packed_cells = self.wave.cells(edit, n_positions, turn)
        place = self.place[packed_cells.column]
        here = place >= 0
        place = place[here]
        return Cells(place // self.width, place % self.width, packed_cells.prompts[here], packed_cells.at[here])
