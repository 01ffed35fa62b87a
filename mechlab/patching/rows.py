"""From interventions to rows: what has to be computed, and nothing else.

A row is one intervention on one prompt, from the layer it enters at and from the first position it can change (in a causal model nothing
before either is touched). An edit behind that layer's keys and values reaches later positions only in the next layer. Interventions that
are equal are computed once; patches that copy what is already there are not computed at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mechlab.lens.edit import Edit
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.patching.task import Task

Group = tuple[Edit, ...]
AFTER_LAYERS = ("final_norm", "logits")
_SEEN_LATER = ("embed", "resid_pre", "k", "v")  # later positions attend to it in the same layer


@dataclass(frozen=True)
class Row:
    """One intervention on one prompt.

    Attributes:
        group: index of the intervention.
        prompt: index of the prompt.
        entry: layer at which it joins the sweep.
        start, stop: positions it carries: the first that can change, and the prompt's length.
        entry_stop: where the positions that can change in the entry layer end; ``stop`` holds from the next layer on.
    """

    group: int
    prompt: int
    entry: int
    start: int
    stop: int
    entry_stop: int

    @property
    def n_tokens(self) -> int:
        return self.stop - self.start

    @property
    def n_entering(self) -> int:
        return self.entry_stop - self.start


def lowered(group: Group, n_layers: int) -> Group:
    """The same intervention with resid_post named as the next layer's resid_pre (one tensor), so that it joins a layer later."""
    return tuple(
        replace(edit, site=Site("resid_pre", edit.site.layer + 1, edit.site.index, edit.site.pos))
        if edit.site.kind == "resid_post" and edit.site.layer is not None and edit.site.layer + 1 < n_layers
        else edit
        for edit in group
    )


def entry_layer(group: Group, n_layers: int) -> int:
    """The first layer that must be computed: that of the first edit; the last one for edits after the layers."""
    return min(n_layers - 1 if edit.site.kind in AFTER_LAYERS else edit.site.layer or 0 for edit in group)


def rows(groups: Sequence[Group], task: Task, base: str, n_layers: int) -> list[Row]:
    """Rows to compute, by entry layer (then longest first, so that equal shapes meet). Unchanged ones and repeats are left out."""
    tokens = task.clean if base == "clean" else task.corrupted
    first = task.first_difference()
    found: list[Row] = []
    seen: set[Group] = set()
    for i, group in enumerate(groups):
        if group in seen:
            continue
        seen.add(group)
        entry = entry_layer(group, n_layers)
        ends = _entry_stops(group, tokens, entry, base) if entry < n_layers - 1 else tokens.lengths
        for prompt, start in enumerate(_starts(group, tokens, first, base)):
            if start is not None:
                found.append(Row(i, prompt, entry, start, tokens.lengths[prompt], max(start + 1, ends[prompt])))
    return sorted(found, key=lambda row: (row.entry, -row.n_tokens, row.stop))


def _starts(group: Group, tokens: Tokens, first: Sequence[int], base: str) -> list[int | None]:
    """Per prompt the first position the group can change; None where it changes nothing."""
    starts: list[int | None] = [None] * len(tokens)
    for edit in group:
        if _own_values(edit, base):
            continue
        copies = edit.verb == "patch" and edit.source_pos is None
        at = None if edit.site.pos is None else tokens.positions(edit.site.pos)
        for prompt, length in enumerate(tokens.lengths):
            begin = first[prompt] if copies else 0
            position = begin if at is None else at[prompt]
            if edit.site.kind in AFTER_LAYERS:
                position = length - 1
            if position >= length or (copies and position < begin):
                continue
            known = starts[prompt]
            starts[prompt] = position if known is None else min(known, position)
    return starts


def _entry_stops(group: Group, tokens: Tokens, entry: int, base: str) -> Sequence[int]:
    """Per prompt where the positions end that the group's edits can change in its entry layer; 0 where none does."""
    ends = [0] * len(tokens)
    for edit in group:
        at = edit.site
        if (at.layer != entry and at.kind != "embed") or _own_values(edit, base):
            continue
        if at.pos is None or at.kind in _SEEN_LATER:
            return tokens.lengths
        ends = [max(end, position + 1) for end, position in zip(ends, tokens.positions(at.pos), strict=True)]
    return ends


def _own_values(edit: Edit, base: str) -> bool:
    """Whether the edit gives the run back what it has anyway."""
    return edit.source == base and edit.verb == "patch" and edit.source_pos is None


def waves(all_rows: Sequence[Row], max_tokens: int) -> Iterator[list[Row]]:
    """Rows in order, cut so that no wave carries more than ``max_tokens`` tokens at its top (a single longer row goes alone)."""
    wave: list[Row] = []
    n_tokens = 0
    for row in all_rows:
        if wave and n_tokens + row.n_tokens > max_tokens:
            yield wave
            wave, n_tokens = [], 0
        wave.append(row)
        n_tokens += row.n_tokens
    if wave:
        yield wave
