"""What an edit does to an activation: pure tensor functions.

Activations arrive by position, ``[batch, pos, ...]`` (scores and patterns as ``[batch, query, head, key]``); an edit touches some
``(row, position)`` cells of it, and within a cell one unit or all of them. Nothing is written in place.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mechlab.errors import EditError, PromptError
from mechlab.lens.edit import Edit
from mechlab.lens.site import BY_HEAD
from mechlab.lens.steer import clamped_along, in_window, moved, where_open
from mechlab.lens.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Source:
    """A run that edits take values from: its prompts and its activations by (kind, layer), each ``[batch, pos, ...]``."""

    tokens: Tokens
    activations: Mapping[tuple[str, int | None], Tensor]


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of one activation that one edit touches, ``n`` of them.

    Attributes:
        batch, column: ``[n]`` their indices in the activation's first two axes.
        prompts: ``[n]`` which prompt of the call each belongs to (a source with as many prompts pairs up by it).
        at: ``[n]`` absolute token positions.
    """

    batch: Tensor
    column: Tensor
    prompts: Tensor
    at: Tensor

    def __len__(self) -> int:
        return len(self.at)


class Place(Protocol):
    """What a forward pass covers: it finds an edit's cells, and knows the sources and the number of prompts (``total``) of the call."""

    @property
    def sources(self) -> Mapping[str, Source]: ...
    @property
    def total(self) -> int: ...
    @property
    def n_batch(self) -> int: ...
    def cells(self, edit: Edit, n_positions: int, turn: int = 0) -> Cells: ...


@dataclass(frozen=True, eq=False)
class Window:
    """A batch of whole prompts, or of their latest tokens.

    Attributes:
        tokens: the prompts of this batch.
        rows: the place of each of them among all prompts of the call.
        stop: absolute position after the last one covered. Activations end there; keys and values may begin earlier than the rest.
        sources: by name.
        total: number of prompts of the whole call.
    """

    tokens: Tokens
    rows: tuple[int, ...]
    stop: int
    sources: Mapping[str, Source] = field(default_factory=dict)
    total: int = 0

    @property
    def n_batch(self) -> int:
        return len(self.rows)

    def cells(self, edit: Edit, n_positions: int, turn: int = 0) -> Cells:  # noqa: ARG002 (a packed wave needs it)
        """The cells ``edit`` touches in an activation of ``n_positions`` that ends at ``stop``."""
        start = self.stop - n_positions
        at = torch.arange(start, self.stop)[None, :]
        lengths = torch.tensor(self.tokens.lengths)[:, None]
        generating = self.stop > self.tokens.width
        touched = at < lengths if edit.phase == "prompt" else at >= lengths if edit.phase == "generated" else at >= 0
        if not generating:
            touched = touched & (at < lengths)  # padding is never edited
        if edit.start:
            touched = touched & (at >= edit.start)
        if edit.steer and edit.steer.windowed:
            touched = touched & in_window(edit.steer, at, lengths)
        if edit.site.pos is not None:
            touched = touched & (at == torch.tensor(self.tokens.positions(edit.site.pos))[:, None])
        touched = touched.expand(len(self.rows), -1)
        batch, column = touched.nonzero(as_tuple=True)
        return Cells(batch, column, torch.tensor(self.rows)[batch], column + start)


def apply(
    edit: Edit,
    activation: Tensor,
    place: Place,
    turn: int = 0,
    *,
    owned: bool = False,
    change: Callable[[Tensor, Cells], Tensor] | None = None,
) -> tuple[Tensor, int]:
    """The activation after ``edit``, and how many cells it touched.

    Args:
        activation: ``[batch, pos, ...]``; never written to, unless it is ``owned``: a copy that an earlier edit made.
        turn: which of a row's edits at this site it is, where rows have different edits (see ``Placed``).
        change: what is done to the touched ``[n, ...]`` instead of what the verb alone says (a splice needs its dictionary).
    """
    cells = place.cells(edit, activation.shape[1], turn)
    if not len(cells):
        return activation, 0
    old = activation[cells.batch, cells.column]  # [n, ...]
    index = edit.site.index
    part = old if index is None else old[:, index]
    new = change(part, cells) if change else _transform(edit, part, place, cells)
    new = (where_open(edit.steer, part, new) if edit.steer else new).to(activation.dtype)
    if edit.site.kind == "scores":
        new = new.masked_fill(part.isneginf(), float("-inf"))  # no edit lets a query see what the model hides from it
    elif edit.site.kind == "pattern":
        _check_causal(edit, new, cells.at)
    result = activation if owned else activation.clone()
    if index is None:
        result[cells.batch, cells.column] = new
    else:
        result[cells.batch, cells.column, index] = new
    return result, len(cells)


def _check_causal(edit: Edit, pattern: Tensor, at: Tensor) -> None:
    """Raises EditError if ``pattern [n, ..., key]`` gives weight to keys after its query, which stands at ``at [n]``."""
    later = torch.arange(pattern.shape[-1])[None, :] > at[:, None]
    later = later.reshape(len(at), *[1] * (pattern.ndim - 2), -1).to(pattern.device)
    if bool((pattern * later).any()):
        raise EditError(f"Edit {edit}: the pattern attends to later tokens; give 0 to keys after the query.")


def _transform(edit: Edit, part: Tensor, place: Place, cells: Cells) -> Tensor:
    match edit.verb:
        case "zero":
            return torch.zeros_like(part)
        case "scale":
            return part * (_vector(edit, part) if isinstance(edit.value, tuple) else float(edit.value or 0))
        case "add":
            vector = edit.strength * _vector(edit, part)
            return moved(edit.steer, part, vector) if edit.steer else part + vector
        case "clamp":
            if edit.steer and edit.steer.along is not None:
                return clamped_along(edit.steer.along, part, edit.low, edit.high)
            return part.clamp(edit.low, edit.high)
        case "patch" | "resample" | "mean":
            return _from_source(edit, part, place, cells)
        case "project":
            basis = orthonormal(edit, part)
            toward = _from_source(edit, part, place, cells) if edit.source else torch.zeros_like(part)
            return part + (toward - part) @ basis.T @ basis
        case "pattern":
            return _pattern_rows(edit, part, cells)
        case "route":
            raise AssertionError("routing edits are applied at the router")
        case "splice":
            raise AssertionError("a splice is applied with its dictionary")


def _vector(edit: Edit, part: Tensor) -> Tensor:
    value = edit.vector.to(part.device)
    try:
        if value.ndim >= part.ndim or torch.broadcast_shapes(value.shape, part.shape) != part.shape:
            raise RuntimeError
    except RuntimeError as error:
        raise EditError(
            f"Edit {edit}: a value of shape {tuple(value.shape)} does not fit activations of shape {tuple(part.shape[1:])}."
        ) from error
    return value


def orthonormal(edit: Edit, part: Tensor) -> Tensor:
    """``[k, d]`` orthonormal rows that span the edit's basis. Raises EditError when sizes differ or the vectors are dependent."""
    basis = torch.tensor(edit.basis, dtype=torch.float64)
    basis = basis[None] if basis.ndim == 1 else basis
    if basis.ndim != 2 or basis.shape[1] != part.shape[-1]:
        raise EditError(
            f"Edit {edit}: a basis of shape {tuple(basis.shape)} does not fit activations of size {part.shape[-1]}."
        )
    q, r = torch.linalg.qr(basis.T)
    if r.shape[0] < basis.shape[0] or bool((r.diagonal().abs() < 1e-9 * basis.norm().clamp_min(1e-30)).any()):
        raise EditError(f"Edit {edit}: the basis vectors are linearly dependent; give independent ones.")
    return q.T.to(device=part.device, dtype=part.dtype)


def _from_source(edit: Edit, part: Tensor, place: Place, cells: Cells) -> Tensor:
    """``[n, ...]`` values for the cells, in their order."""
    source = place.sources[edit.source or ""]
    values = source.activations[edit.site.kind, edit.site.layer]
    pos = edit.source_pos if edit.source_pos is not None else edit.site.pos
    if edit.verb == "mean":
        picked = _means(edit, values, source.tokens, pos, cells.at)
    else:
        rows = _source_rows(edit, place, source.tokens)[cells.prompts]
        picked = values[rows, cells.at if pos is None else torch.tensor(source.tokens.positions(pos))[rows]]
    if edit.site.kind == "pattern":
        _check_causal(edit, picked, cells.at)
    if edit.site.kind in BY_HEAD:
        picked = _fit_keys(picked, part.shape[-1], fill=float("-inf") if edit.site.kind == "scores" else 0.0)
    picked = picked if edit.site.index is None else picked[:, edit.site.index]
    return picked.to(device=part.device, dtype=part.dtype)


def _source_rows(edit: Edit, place: Place, tokens: Tokens) -> Tensor:
    """``[total]``: which source prompt each prompt of the call reads."""
    if edit.verb == "resample":
        generator = torch.Generator().manual_seed(edit.seed)
        return torch.randint(len(tokens), (place.total,), generator=generator)
    return torch.zeros(place.total, dtype=torch.long) if len(tokens) == 1 else torch.arange(place.total)


def _means(edit: Edit, values: Tensor, tokens: Tokens, pos: int | str | None, at: Tensor) -> Tensor:
    if pos is not None:
        mean = values[range(len(tokens)), list(tokens.positions(pos))].mean(dim=0)
        return mean.expand(len(at), *mean.shape)
    if edit.over == "tokens":
        mean = values[tokens.mask.to(values.device)].mean(dim=0)
        return mean.expand(len(at), *mean.shape)
    return values.mean(dim=0)[at]


def _fit_keys(values: Tensor, n_keys: int, fill: float = 0.0) -> Tensor:
    """Pads or cuts the key axis: two batches may be padded to different widths, and no query looks beyond itself."""
    missing = n_keys - values.shape[-1]
    return torch.nn.functional.pad(values, (0, missing), value=fill) if missing > 0 else values[..., :n_keys]


def _pattern_rows(edit: Edit, part: Tensor, cells: Cells) -> Tensor:
    value, at = torch.tensor(edit.value, dtype=torch.float32), cells.at
    rows = value.expand(len(at), -1) if value.ndim == 1 else value[at] if int(at.max()) < len(value) else None
    if rows is None or bool((rows < 0).any()) or not torch.allclose(rows.sum(-1), torch.ones(len(at)), atol=1e-4):
        raise EditError(f"Edit {edit}: each edited query needs non-negative attention over keys that sums to 1.")
    _check_causal(edit, rows, at)
    fitted = _fit_keys(rows, part.shape[-1]).to(part.device)
    return fitted if part.ndim == 2 else fitted[:, None, :].expand_as(part)


def check_source(edit: Edit, tokens: Tokens, source: Tokens) -> None:
    """Raises PromptError or EditError when ``source`` cannot give ``edit`` what it needs for ``tokens``."""
    pos = edit.source_pos if edit.source_pos is not None else edit.site.pos
    if pos is not None:
        source.positions(pos)
    if edit.verb not in ("mean", "resample") and len(source) not in (1, len(tokens)):
        raise PromptError(
            f"Source {edit.source!r} has {len(source)} prompts for {len(tokens)}: give one per prompt, or a single one for all."
        )
    if pos is not None or (edit.verb == "mean" and edit.over == "tokens"):
        return
    pairs = (
        [(a, b) for a in set(tokens.lengths) for b in set(source.lengths)]
        if len(source) == 1 or edit.verb in ("mean", "resample")
        else list(zip(tokens.lengths, source.lengths, strict=True))
    )
    for have, want in pairs:
        if have != want:
            raise PromptError(
                f"Edit {edit} runs over all positions, but its prompts have {have} tokens and those of source {edit.source!r} "
                f"{want}: use prompts of equal token length, or give the site a position (@-1, @END)."
            )


def check_touched(edits: Iterable[Edit], touched: Mapping[Edit, int]) -> None:
    """Raises EditError for an edit that no token of no prompt was under: never a silent no-op."""
    for edit in edits:
        if not touched.get(edit):
            raise EditError(f"Edit {edit} touched nothing: no {edit.phase} token of these prompts is at its site.")
