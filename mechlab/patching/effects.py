"""The effect of each intervention on each prompt of a task.

1. Run the clean and the corrupted prompts once; keep what interventions take from them and the base run's residual stream.
2. Group interventions by the layer they start at: below it nothing changes, so their forward passes start there from the base run.
3. Within a group, put several interventions in one batch, each on its own rows; unembed only at the answer position.

Patches that copy what is already there (the pair's common beginning) are not run. Every value is that of a full forward pass with the edit
(up to float rounding); nothing is approximated.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from torch import Tensor

from mechlab.errors import EditError
from mechlab.lens.apply import Source, Window, check_source
from mechlab.lens.edit import Edit
from mechlab.lens.hooks import Placed, Tap, installed, skipped
from mechlab.lens.lens import Run, check_touched
from mechlab.lens.site import KINDS, Site
from mechlab.lens.tokens import Tokens
from mechlab.patching.task import Task
from mechlab.results.effects import Effects
from mechlab.results.metrics import Metric
from mechlab.results.metrics import metric as find_metric

if TYPE_CHECKING:
    from mechlab.lens.lens import Lens

Progress = Callable[[str, int, int], None]
_ROWS_PER_PASS = 64  # fills the matrix products of small models on a CPU; more only costs memory


def effects(
    lens: "Lens",
    task: Task,
    interventions: Sequence[Edit | Sequence[Edit]],
    metric: str = "logit_difference",
    *,
    base: Literal["clean", "corrupted"] = "corrupted",
    progress: Progress | None = None,
) -> Effects:
    """Applies each intervention to the ``base`` prompts of ``task`` and measures ``metric`` at the answer position (the last token).

    Args:
        interventions: each an Edit, or several applied together. Edits may take values from the sources ``"clean"`` and ``"corrupted"``.
        base: ``"corrupted"`` with patches from ``"clean"`` asks what suffices to restore (denoising); the reverse asks what is necessary.
        metric: a key of ``METRICS``; ``kl`` is measured from the base run.

    Raises:
        SiteError, EditError, PromptError: as ``Lens.run`` does, before anything runs wherever that can be known.
    """
    measure = find_metric(metric)
    groups = [(item,) if isinstance(item, Edit) else tuple(item) for item in interventions]
    if not groups or not all(groups):
        raise EditError("No intervention was given: pass at least one edit each.")
    sides = {"clean": task.clean, "corrupted": task.corrupted}
    for edit in {edit for group in groups for edit in group}:
        _check(lens, edit, sides[base], sides)
    runs = _side_runs(lens, sides, groups, base)
    sources = {name: Source(run.tokens, _activations(run)) for name, run in runs.items()}
    values = {name: _measured(measure, task, _last(run), _last(runs[base])) for name, run in runs.items()}
    after = values[base].repeat(len(groups), 1)
    unchanged = _unchanged(groups, task, base)
    touched = {edit: 1 for i, _ in unchanged for edit in groups[i]}
    done = len(unchanged)
    for start, batch in _batches(groups, len(task), unchanged):
        logits = _pass(lens, sides[base], start, [(groups[i], row) for i, row in batch], sources, runs[base], touched)
        rows = torch.tensor([row for _, row in batch])
        measured = _measured(measure, task.select(rows.tolist()), logits, _last(runs[base])[rows])
        after[[i for i, _ in batch], rows] = measured
        done += len(batch)
        if progress:
            progress("patching", done, len(groups) * len(task))
    check_touched([edit for group in groups for edit in group], touched)
    return _table(groups, after, values, base, measure.key)


def _check(lens: "Lens", edit: Edit, tokens: Tokens, sides: dict[str, Tokens]) -> None:
    lens.layout.check(edit.site)
    if edit.site.pos is not None:
        tokens.positions(edit.site.pos)
    if edit.source is not None:
        if edit.source not in sides:
            raise EditError(
                f"Edit {edit} names source {edit.source!r}: a task has the sources 'clean' and 'corrupted'."
            )
        check_source(edit, tokens, sides[edit.source])


def _side_runs(lens: "Lens", sides: dict[str, Tokens], groups: Sequence[tuple[Edit, ...]], base: str) -> dict[str, Run]:
    """Both sides once, with what edits take from each and the base side's residual stream at the layers where groups start."""
    read: dict[str, set[Site]] = {name: set() for name in sides}
    for group in groups:
        read[base].add(Site("resid_pre", max(_entry(group), 0)))
        for edit in group:
            if edit.source is not None:
                read[edit.source].add(edit.site.whole)
    runs: dict[str, Run] = {}
    for name, tokens in sides.items():
        wanted = sorted(read[name], key=lambda at: at.sort_key)
        runs[name] = lens.run(tokens, read=wanted, logits="last")
    return runs


def _activations(run: Run) -> dict[tuple[str, int | None], Tensor]:
    return {
        (at.kind, at.layer): run[at].transpose(1, 2) if KINDS[at.kind].axes[-1] == "key" else run[at]
        for at in run.activations
    }


def _entry(group: Sequence[Edit]) -> int:
    """The first layer a group changes: -1 before the layers, 0 for edits that come after all of them (nothing can be skipped then)."""
    return min(-1 if e.site.kind == "embed" else 0 if e.site.layer is None else e.site.layer for e in group)


def _unchanged(groups: Sequence[tuple[Edit, ...]], task: Task, base: str) -> set[tuple[int, int]]:
    """Cells (intervention, prompt) that cannot change anything: patches from the base run itself, or at a position before the first token
    in which the pair differs, where both runs are the same because attention is causal."""
    first = task.first_difference()
    same: set[tuple[int, int]] = set()
    for i, group in enumerate(groups):
        if not all(edit.verb == "patch" and edit.source_pos is None for edit in group):
            continue
        at = [task.clean.positions(e.site.pos) if e.site.pos is not None and e.source != base else None for e in group]
        for row in range(len(task)):
            if all(e.source == base or (p is not None and p[row] < first[row]) for e, p in zip(group, at, strict=True)):
                same.add((i, row))
    return same


def _batches(
    groups: Sequence[tuple[Edit, ...]], n_prompts: int, leave_out: set[tuple[int, int]]
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """(entry layer, cells) with cells = (intervention, prompt), at most ``_ROWS_PER_PASS`` of one entry layer at a time."""
    by_entry: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        by_entry.setdefault(_entry(group), []).append(i)
    for entry in sorted(by_entry):
        cells = [(i, row) for i in by_entry[entry] for row in range(n_prompts) if (i, row) not in leave_out]
        for at in range(0, len(cells), _ROWS_PER_PASS):
            yield entry, cells[at : at + _ROWS_PER_PASS]


@torch.no_grad()
def _pass(
    lens: "Lens",
    base: Tokens,
    entry: int,
    cells: Sequence[tuple[tuple[Edit, ...], int]],
    sources: dict[str, Source],
    base_run: Run,
    touched: dict[Edit, int],
) -> Tensor:
    """``[cells, vocab]`` logits at the last position of each cell's prompt under its own edits."""
    rows = [row for _, row in cells]
    batch = base.select(rows)
    window = Window(batch, tuple(rows), batch.width, sources, len(base))
    taps: dict[tuple[str, int | None], Tap] = {}
    for group in dict.fromkeys(group for group, _ in cells):
        only = torch.tensor([other is group for other, _ in cells])
        for edit in group:
            key = (edit.site.kind, edit.site.layer)
            taps.setdefault(key, Tap(*key, window)).edits.append(Placed(edit, only))
    ends = torch.tensor(batch.lengths) - 1
    last = ends if ("logits", None) not in taps else None
    start = (
        nullcontext()
        if entry < 1
        else skipped(lens.layout, entry, base_run[Site("resid_pre", entry)][rows, : batch.width])
    )
    with start, installed(lens.layout, lens.model.hf, list(taps.values()), last):
        logits: Tensor = lens.model.hf(input_ids=batch.ids.to(lens.model.device), use_cache=False).logits
    for tap in taps.values():
        for edit, count in tap.touched.items():
            touched[edit] = touched.get(edit, 0) + count
    return logits[:, 0] if last is not None else logits[torch.arange(len(rows)), ends]


def _last(run: Run) -> Tensor:
    assert run.last_logits is not None
    return run.last_logits


def _measured(measure: Metric, task: Task, logits: Tensor, reference: Tensor) -> Tensor:
    return measure(logits.cpu(), task.answers, task.foils, reference.cpu()).double()


def _table(
    groups: Sequence[tuple[Edit, ...]],
    after: Tensor,
    values: dict[str, Tensor],
    base: Literal["clean", "corrupted"],
    metric: str,
) -> Effects:
    n = after.shape[1]
    frame = pd.DataFrame([_describe(i, group) for i, group in enumerate(groups) for _ in range(n)])
    frame["prompt"] = list(range(n)) * len(groups)
    for name in ("clean", "corrupted"):
        frame[name] = values[name].tolist() * len(groups)
    frame["before"] = frame[base]
    frame["after"] = after.flatten().tolist()
    return Effects(frame, metric, base)


def _describe(number: int, group: tuple[Edit, ...]) -> dict[str, object]:
    """What identifies an intervention in the table; several edits are joined, and keep in columns only what they share."""
    first = group[0].site
    shared = all(
        (e.site.kind, e.site.layer, e.site.index, e.site.pos) == (first.kind, first.layer, first.index, first.pos)
        for e in group
    )
    by_head = KINDS[first.kind].index in ("head", "KV head")
    return {
        "intervention": number,
        "site": " + ".join(str(e.site) for e in group),
        "kind": first.kind,
        "layer": first.layer if shared else None,
        "head": first.index if shared and by_head else None,
        "unit": first.index if shared and not by_head else None,
        "pos": first.pos if shared else None,
        "verb": " + ".join(dict.fromkeys(e.verb for e in group)),
    }
