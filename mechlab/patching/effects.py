"""The effect of each intervention on each prompt of a task.

1. Run the clean and the corrupted prompts once; keep what interventions take from them and what the sweep takes from the base run.
2. Turn interventions into rows: what is unchanged or repeated is not computed (``rows``).
3. Sweep the rows upward through the layers in waves that fit in memory (``packed``).

Every value is that of a full forward pass with the edit (up to float rounding); nothing is approximated. ``exhaustive=True`` runs one whole
forward pass per intervention instead: the slow proof.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from torch import Tensor

from mechlab.errors import EditError, UnknownName
from mechlab.lens.apply import check_source
from mechlab.lens.edit import Edit
from mechlab.lens.site import KINDS
from mechlab.lens.tokens import Tokens
from mechlab.patching.plan import Plan, plan, prompts_at_once, tokens_per_wave
from mechlab.patching.prepared import enters, last_logits, measured, prepare
from mechlab.patching.rows import Group, entry_layer, lowered, rows
from mechlab.patching.task import Task
from mechlab.results.effects import Effects
from mechlab.results.metrics import Metric
from mechlab.results.metrics import metric as find_metric

if TYPE_CHECKING:
    from mechlab.lens.lens import Lens

__all__ = ["Interrupted"]

Progress = Callable[[str, int, int], None]


def effects(
    lens: "Lens",
    task: Task,
    interventions: Sequence[Edit | Sequence[Edit]],
    metric: str = "logit_difference",
    *,
    base: Literal["clean", "corrupted"] = "corrupted",
    exhaustive: bool = False,
    progress: Progress | None = None,
) -> Effects:
    """Applies each intervention to the ``base`` prompts of ``task`` and measures ``metric`` at the answer position (the last token).

    Args:
        interventions: each an Edit, or several applied together. Edits may take values from the sources ``"clean"`` and ``"corrupted"``.
        base: ``"corrupted"`` with patches from ``"clean"`` asks what suffices to restore (denoising); the reverse asks what is necessary.
        metric: a key of ``METRICS``; ``kl`` is measured from the base run.
        exhaustive: one whole forward pass per intervention instead of the sweep.
        progress: called with (label, done, total) in interventions x prompts.

    Raises:
        SiteError, EditError, PromptError: as ``Lens.run`` does, before anything runs wherever that can be known.
        ModelError: a single prompt does not fit in memory (more than one are split).
        Interrupted: on Ctrl-C, with what was completed.
    """
    measure = find_metric(metric)
    groups = _checked(lens, task, interventions, base)
    if exhaustive or not enters(lens, groups):
        values, after = _one_by_one(lens, task, groups, measure, base, progress)
        return effects_table(groups, after, values, base, measure.key)
    n_layers = lens.model.n_layers
    entries = [entry_layer(group, n_layers) for group in groups]
    at_once = prompts_at_once(lens, task, groups, entries)
    parts: list[Effects] = []
    for start in range(0, len(task), at_once):  # prompts do not meet, so they may be run in parts where memory is short
        part = task.select(range(start, min(start + at_once, len(task))))
        try:
            values, after = _swept(lens, part, groups, measure, base, progress, start)
        except Interrupted as stop:
            completed = [*parts, *([stop.completed] if stop.completed else [])]
            raise Interrupted(_together(completed) if completed else None) from stop
        parts.append(effects_table(groups, after, values, base, measure.key, first_prompt=start))
    return parts[0] if len(parts) == 1 else _together(parts)


def _together(parts: Sequence[Effects]) -> Effects:
    frame = pd.concat([part.frame for part in parts]).sort_values(["intervention", "prompt"], kind="stable")
    return Effects(frame.reset_index(drop=True), parts[0].metric, parts[0].base, parts[0].method)


def plan_effects(
    lens: "Lens", task: Task, interventions: Sequence[Edit | Sequence[Edit]], *, base: str = "corrupted"
) -> Plan:
    """What ``effects`` would compute and cost; nothing is run. Raises what ``effects`` raises before it runs."""
    n_layers = lens.model.n_layers
    groups = [lowered(group, n_layers) for group in _checked(lens, task, interventions, base)]
    found = rows(groups, task, base, n_layers)
    return plan(lens, task, groups, found, tokens_per_wave(lens))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during patching. ``completed`` holds the effects that were done (None if there were none): nothing is lost."""

    def __init__(self, completed: Effects | None) -> None:
        super().__init__()
        self.completed = completed


def _checked(
    lens: "Lens", task: Task, interventions: Sequence[Edit | Sequence[Edit]], base: str
) -> list[tuple[Edit, ...]]:
    groups = [(item,) if isinstance(item, Edit) else tuple(item) for item in interventions]
    if not groups or not all(groups):
        raise EditError("No intervention was given: pass at least one edit each.")
    check_edits(lens, task, groups, base)
    return groups


def check_edits(lens: "Lens", task: Task, groups: Sequence[Group], base: str) -> None:
    """Raises what can be known to be wrong before anything runs."""
    sides = {"clean": task.clean, "corrupted": task.corrupted}
    if base not in sides:
        raise UnknownName("base", base, sides)
    for edit in {edit for group in groups for edit in group}:
        _check(lens, edit, sides[base], sides)


def _check(lens: "Lens", edit: Edit, tokens: Tokens, sides: dict[str, Tokens]) -> None:
    lens.layout.check(edit.site)
    if edit.site.pos is not None:
        tokens.positions(edit.site.pos)
    if edit.phase == "generated":
        raise EditError(f"Edit {edit} touched nothing: a task's prompts have no generated tokens.")
    if edit.verb == "splice":
        raise EditError(f"Edit {edit} cannot be swept over a task: run it with lens.run(..., dictionaries=...).")
    if edit.steer and edit.steer.windowed:
        raise EditError(
            f"Edit {edit} cannot be swept over a task in a window of tokens: give its site a position, or use lens.run."
        )
    if edit.source is not None:
        if edit.source not in sides:
            raise EditError(
                f"Edit {edit} names source {edit.source!r}: a task has the sources 'clean' and 'corrupted'."
            )
        check_source(edit, tokens, sides[edit.source])


def _one_by_one(
    lens: "Lens", task: Task, groups: Sequence[Group], measure: Metric, base: str, progress: Progress | None
) -> tuple[dict[str, Tensor], Tensor]:
    if progress:
        progress("patching, one by one", 0, len(groups) * len(task))
    sides: dict[str, Tokens] = {"clean": task.clean, "corrupted": task.corrupted}
    wanted = sorted(
        {e.site.whole for group in groups for e in group if e.source is not None}, key=lambda at: at.sort_key
    )
    runs = {name: lens.run(tokens, read=wanted, logits="last") for name, tokens in sides.items()}
    reference = last_logits(runs[base])
    values = {
        name: measured(measure, task.answers, task.foils, last_logits(run), reference) for name, run in runs.items()
    }
    after: list[Tensor] = []
    for done, group in enumerate(groups):
        run = lens.run(sides[base], group, sources=runs, logits="last")
        after.append(measured(measure, task.answers, task.foils, last_logits(run), reference))
        if progress:
            progress("patching, one by one", (done + 1) * len(task), len(groups) * len(task))
    return values, torch.stack(after)


def _swept(
    lens: "Lens",
    task: Task,
    groups: Sequence[Group],
    measure: Metric,
    base: str,
    progress: Progress | None,
    first_prompt: int,
) -> tuple[dict[str, Tensor], Tensor]:
    n_layers = lens.model.n_layers
    groups = [lowered(group, n_layers) for group in groups]
    found = rows(groups, task, base, n_layers)
    if progress:
        progress("patching", 0, len(found))
    ready = prepare(lens, task, groups, measure, base, [row.entry for row in found])
    after = ready.values[base].repeat(len(groups), 1)
    done = 0
    try:
        for swept in ready.sweeps(groups, found):
            done += ready.measure_into(after, swept)
            if progress:
                progress("patching", done, len(found))
    except KeyboardInterrupt as stop:
        undone = {groups[row.group] for row in found[done:]}
        whole = [i for i, group in enumerate(groups) if group not in undone]
        table = effects_table(groups, _repeated(groups, after), ready.values, base, measure.key, "exact", first_prompt)
        kept = table.frame[table.frame["intervention"].isin(whole)]
        raise Interrupted(Effects(kept, table.metric, table.base, table.method) if len(kept) else None) from stop
    return ready.values, _repeated(groups, after)


def _repeated(groups: Sequence[Group], after: Tensor) -> Tensor:
    """Equal interventions are computed once: each gets the values of the first of its kind."""
    first: dict[Group, int] = {}
    return after[[first.setdefault(group, i) for i, group in enumerate(groups)]]


def effects_table(
    groups: Sequence[tuple[Edit, ...]],
    after: Tensor,
    values: dict[str, Tensor],
    base: str,
    metric: str,
    method: str = "exact",
    first_prompt: int = 0,
) -> Effects:
    """The table of ``after [interventions, n]``, named by the groups."""
    n = after.shape[1]
    frame = pd.DataFrame([_describe(i, group) for i, group in enumerate(groups) for _ in range(n)])
    frame["prompt"] = list(range(first_prompt, first_prompt + n)) * len(groups)
    for name in ("clean", "corrupted"):
        frame[name] = values[name].tolist() * len(groups)
    frame["before"] = frame[base]
    frame["after"] = after.flatten().tolist()
    return Effects(frame, metric, base, method)  # pyright: ignore[reportArgumentType]


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
