"""The packed sweep: all rows of a wave go through the model's own layers once, as one sequence.

1. The tokens of all rows stand one after another in a single sequence of a batch of one; layers, norms, MLPs and experts work token by
   token and need not know. Rotary embeddings are looked up by each token's own position.
2. At each layer the rows that enter there join, starting from the base run's residual stream.
3. Only attention looks across tokens. There each row's queries meet its own keys and values, and before its first position the base run's.
   Rows of equal start and length go together. Masks are those transformers makes (causal, sliding window), cut to the row's positions.
4. At the top only each row's last token is normed and unembedded, and only into the tokens the metric reads.

Nothing is approximated: each row gets the numbers of its own full forward pass, up to float rounding.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.lens.apply import Cells, Source
from mechlab.lens.attention import Attend
from mechlab.lens.edit import Edit
from mechlab.lens.hooks import Placed, Tap, installed, make_taps, packed
from mechlab.lens.reading import Run
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.patching.rows import Group, Row

if TYPE_CHECKING:
    from mechlab.lens.lens import Lens

Ints = NDArray[np.int64]
_BY_HEAD = ("scores", "pattern")


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows of one start and stop that are in the sweep: attention takes them as one batch.

    Attributes:
        index: ``[rows, stop - start]`` places of their tokens in the packed sequence.
        prompts: ``[rows]`` prompt of each.
    """

    start: int
    stop: int
    index: Tensor
    prompts: Tensor


class Wave:
    """Rows in order of entry with their places in the packed sequence; a window for taps (see ``apply.Place``)."""

    def __init__(
        self, rows: Sequence[Row], groups: Sequence[Group], tokens: Tokens, sources: Mapping[str, Source]
    ) -> None:
        self.rows, self.tokens, self.sources, self.total = rows, tokens, sources, len(tokens)
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


@dataclass(frozen=True, eq=False)
class Base:
    """What the sweep takes from the base run: residual streams where rows enter, keys and values (by KV head) everywhere above."""

    tokens: Tokens
    resid_pre: Mapping[int, Tensor]
    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]

    @staticmethod
    def sites(entries: Sequence[int], n_layers: int) -> list[Site]:
        """What the base run must read."""
        above = range(min(entries), n_layers)
        return [Site("resid_pre", layer) for layer in sorted(set(entries))] + [
            Site(kind, layer) for layer in above for kind in ("k", "v")
        ]

    @staticmethod
    def of(run: Run) -> "Base":
        by_kind: dict[str, dict[int, Tensor]] = {"resid_pre": {}, "k": {}, "v": {}}
        for at in run.activations:
            if at.layer is not None and at.kind in by_kind:
                by_kind[at.kind][at.layer] = run[at]
        return Base(run.tokens, by_kind["resid_pre"], by_kind["k"], by_kind["v"])


@dataclass(frozen=True, eq=False)
class Swept:
    """Rows computed.

    Attributes:
        logits: ``[rows, tokens]`` at each row's last token.
        activations: site that was read -> ``[n, ...]`` in packed order, of the rows that were in the sweep at its layer.
    """

    logits: Tensor
    wave: Wave
    activations: Mapping[Site, Tensor]

    def scatter(self, at: Site, packed_values: Tensor, sources: Mapping[int, Source]) -> None:
        """Writes each row's activations at a site into its group's source, at its prompt and positions."""
        assert at.layer is not None
        for i, row in enumerate(self.wave.rows[: self.wave.joined(at.layer)]):
            into = sources[row.group].activations[at.kind, at.layer]
            into[row.prompt, row.start : row.stop] = packed_values[
                int(self.wave.offsets[i]) : int(self.wave.offsets[i + 1])
            ]


@torch.no_grad()
def sweep(
    lens: "Lens",
    rows: Sequence[Row],
    groups: Sequence[Group],
    base: Base,
    sources: Mapping[str, Source],
    token_ids: Tensor | None,
    read: Sequence[Site] = (),
    last: int | None = None,
) -> Swept:
    """Computes the rows; their logits are of ``token_ids``, or of the whole vocabulary without them.

    Args:
        read: whole sites (no scores or patterns) whose activations are kept too.
        last: the last layer to compute, where only what is read matters; None for all.
    """
    wave = Wave(rows, groups, base.tokens, sources)
    device = lens.model.device
    taps = wave.taps(read)
    attention_taps = [tap for tap in taps if tap.kind in _BY_HEAD]
    positions = wave.positions.to(device)

    def join(layer: int, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        new = wave.joining(layer)
        entering = base.resid_pre[layer][wave.prompts[new], wave.positions[new]][None] if new.stop > new.start else None
        parts = [part for part in (hidden, entering) if part is not None]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], positions[: new.stop]

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, plain: Attend) -> Tensor:
        output = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
        edits = [tap for tap in attention_taps if tap.layer == layer]
        for bucket in wave.buckets(layer):
            q = query[0][:, bucket.index].transpose(0, 1)  # [rows, head, query, d_head]
            k, v = (_with_prefix(own, kept[layer], bucket) for own, kept in ((key, base.keys), (value, base.values)))
            inside = {tap.kind: Tap(tap.kind, layer, InBucket(wave, bucket), tap.edits) for tap in edits}
            output[0, bucket.index] = plain(q, k, v, _mask(mask, bucket, query.device), inside)
        return output

    top = lens.model.n_layers - 1 if last is None else last
    width = max(row.stop for row in rows)
    # Some families (GPT-2) give their output the dummy prompt's shape: a whole number of widths fits it.
    ends = torch.nn.functional.pad(wave.ends, (0, -len(rows) % width), value=int(wave.ends[-1])).to(device)
    with (
        packed(lens.layout, min(row.entry for row in rows), top, join, attend, ends, token_ids),
        installed(lens.layout, lens.model.hf, [tap for tap in taps if tap.kind not in (*_BY_HEAD, "logits")]),
    ):
        dummy = torch.zeros(1, width, dtype=torch.long, device=device)
        logits = lens.model.hf(input_ids=dummy, use_cache=False).logits.flatten(0, 1)[None, : len(rows)]
    for tap in taps:
        logits = tap(logits) if tap.kind == "logits" else logits
    kept = {Site(tap.kind, tap.layer): tap.kept[0] for tap in taps if tap.kept is not None}
    return Swept(logits[0], wave, kept)


def _with_prefix(own: Tensor, kept: Tensor, bucket: Bucket) -> Tensor:
    """``[rows, kv_head, stop, d_head]``: the base run's up to the rows' start, then their own."""
    mine = own[0][:, bucket.index].transpose(0, 1)
    if not bucket.start:
        return mine
    return torch.cat([kept[bucket.prompts, : bucket.start].transpose(1, 2), mine], dim=2)


def _mask(mask: Tensor | None, bucket: Bucket, device: torch.device) -> Tensor | None:
    """The mask of the bucket's queries: a cut of what transformers made for the whole width, or plain causal."""
    if mask is not None:
        return mask[:, :, bucket.start : bucket.stop, : bucket.stop]
    if not bucket.start:
        return None
    n = bucket.stop - bucket.start
    return torch.ones(n, bucket.stop, dtype=torch.bool, device=device).tril(bucket.start)[None, None]
