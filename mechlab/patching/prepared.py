"""A task made ready for sweeps: both sides run once, what edits take from them and what the sweep takes from the base kept."""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechlab.errors import ModelError
from mechlab.lens.apply import Source
from mechlab.lens.products import OneDnn
from mechlab.lens.reading import Run
from mechlab.lens.site import KINDS, Site
from mechlab.lens.tokens import Tokens
from mechlab.patching.packed import Base, Swept, sweep
from mechlab.patching.plan import tokens_per_wave
from mechlab.patching.rows import Group, Row, waves
from mechlab.patching.task import Task
from mechlab.results.metrics import Metric

if TYPE_CHECKING:
    from mechlab.lens.lens import Lens

_FEW = 256  # tokens of one side


@dataclass(frozen=True, eq=False)
class Prepared:
    """Both sides of a task run once, and everything sweeps over its base side need.

    Attributes:
        values: side -> ``[n]`` metric.
        sources: side -> what edits take from it.
        reference: ``[n, vocab]`` logits of the base side (KL is measured from them); None where the metric reads answers and foils alone.
        token_ids: the only tokens that are unembedded; None for the whole vocabulary.
        targets: answers and foils as places in what is unembedded.
    """

    lens: "Lens"
    measure: Metric
    base: Base
    values: dict[str, Tensor]
    sources: dict[str, Source]
    reference: Tensor | None
    token_ids: Tensor | None
    targets: tuple[Tensor, Tensor]

    def sweeps(
        self,
        groups: Sequence[Group],
        found: Sequence[Row],
        read: Sequence[Site] = (),
        more: Mapping[str, Source] = MappingProxyType({}),
        last: int | None = None,
    ) -> Iterator[Swept]:
        """Sweeps the rows wave by wave, in smaller ones where memory runs out.

        ``more``: further sources of the edits; ``read`` and ``last``: as ``sweep`` has them.
        """
        left = deque(waves(found, tokens_per_wave(self.lens)))
        while left:
            wave = left.popleft()
            try:
                yield sweep(self.lens, wave, groups, self.base, {**self.sources, **more}, self.token_ids, read, last)
            except torch.OutOfMemoryError:
                left.extendleft(reversed(_halved(wave)))

    def recorded(
        self,
        groups: Sequence[Group],
        found: Sequence[Row],
        wholes: Sequence[Site],
        side: str,
        more: Mapping[str, Source] = MappingProxyType({}),
        last: int | None = None,
    ) -> dict[int, Source]:
        """Group -> its activations at ``wholes``, as a source for further edits; where nothing changes, those of the base ``side``."""
        kept = self.sources[side].activations
        sources = {
            group: Source(self.base.tokens, {(at.kind, at.layer): kept[at.kind, at.layer].clone() for at in wholes})
            for group in dict.fromkeys(row.group for row in found)
        }
        for swept in self.sweeps(groups, found, wholes, more, last):
            for at, values in swept.activations.items():
                swept.scatter(at, values, sources)
        return sources

    def measure_into(self, after: Tensor, swept: Swept) -> int:
        """Writes the rows' metric into ``after [interventions, n]``; returns how many rows."""
        found = swept.wave.rows
        prompts = torch.tensor([row.prompt for row in found])
        answers, foils = self.targets
        after[[row.group for row in found], prompts] = measured(
            self.measure,
            answers[prompts],
            foils[prompts],
            swept.logits,
            None if self.reference is None else self.reference[prompts],
        )
        return len(found)


def prepare(
    lens: "Lens",
    task: Task,
    groups: Sequence[Group],
    measure: Metric,
    base: str,
    entries: Sequence[int],
    more: Sequence[Site] = (),
) -> Prepared:
    """Runs both sides once. ``entries``: layers at which rows enter; ``more``: further sites to read on the base side."""
    read: dict[str, set[Site]] = {"clean": set(), "corrupted": set()}
    read[base].update(more)
    if entries:
        read[base].update(Base.sites(entries, lens.model.n_layers))
    if any(edit.site.kind == "embed" for group in groups for edit in group):
        read[base].add(Site("embed"))
    for edit in {edit for group in groups for edit in group}:
        if edit.source is not None:
            read[edit.source].add(edit.site.whole)
    runs = _both_sides(lens, task, read)
    reference = last_logits(runs[base])
    narrow = measure.answers_only and not any(e.site.kind == "logits" for g in groups for e in g)
    token_ids, answers, foils = task.targets() if narrow else (None, task.answers, task.foils)
    return Prepared(
        lens,
        measure,
        Base.of(runs[base]),
        {name: measured(measure, task.answers, task.foils, last_logits(run), reference) for name, run in runs.items()},
        {name: Source(run.tokens, _activations(run)) for name, run in runs.items()},
        None if measure.answers_only else reference,
        token_ids,
        (answers, foils),
    )


def _both_sides(lens: "Lens", task: Task, read: Mapping[str, Collection[Site]]) -> dict[str, Run]:
    """Side -> its run. With few tokens a pass is mostly reading the weights: then both sides share one."""
    sides = {"clean": task.clean, "corrupted": task.corrupted}
    wanted = {side: sorted(read[side], key=lambda at: at.sort_key) for side in sides}
    n, (first, second) = len(task), sides.values()
    with OneDnn():
        if first.ids.numel() > _FEW:
            return {side: lens.run(tokens, read=wanted[side], logits="last") for side, tokens in sides.items()}
        both = Tokens(torch.cat([first.ids, second.ids]), first.lengths + second.lengths, first.pieces + second.pieces)
        run = lens.run(both, read=list(dict.fromkeys([*wanted["clean"], *wanted["corrupted"]])), logits="last")
    found: dict[str, Run] = {}
    for side, rows in (("clean", slice(n)), ("corrupted", slice(n, None))):
        last = last_logits(run)[rows]
        found[side] = Run(sides[side], last[:, None], last, {at: run[at][rows] for at in wanted[side]})
    return found


def enters(lens: "Lens", groups: Sequence[Group]) -> bool:
    """Whether these edits can be rows. Edits of ``embed`` are where what comes between it and the first layer is added by position alone.

    So it is with nothing in between (rotary positions) and with learned positions (GPT-2), but not with a norm (BLOOM). Read off two
    prompts of different tokens.
    """
    if not any(edit.site.kind == "embed" for group in groups for edit in group):
        return True
    run = lens.run(lens.tokens([[0, 1, 2], [3, 4, 5]]), read=["embed", "L0.resid_pre"], logits="none")
    embed = run["embed"]
    between = run["L0.resid_pre"] - embed
    rounding = 4 * torch.finfo(embed.dtype).eps * float((embed.abs() + between.abs()).max())
    return float((between[0] - between[1]).abs().max()) <= rounding


def _halved(wave: list[Row]) -> list[list[Row]]:
    """Out of memory: the same rows in two smaller waves."""
    if len(wave) == 1:
        raise ModelError(
            f"One prompt of {wave[0].stop} tokens does not fit in this device's memory: use shorter prompts, a smaller model or dtype."
        )
    return [wave[: len(wave) // 2], wave[len(wave) // 2 :]]


def _activations(run: Run) -> dict[tuple[str, int | None], Tensor]:
    by_query = (run[at].transpose(1, 2) if KINDS[at.kind].axes[-1] == "key" else run[at] for at in run.activations)
    return {(at.kind, at.layer): activation for at, activation in zip(run.activations, by_query, strict=True)}


def last_logits(run: Run) -> Tensor:
    assert run.last_logits is not None
    return run.last_logits


def measured(measure: Metric, answers: Tensor, foils: Tensor, logits: Tensor, reference: Tensor | None) -> Tensor:
    return measure(logits.cpu(), answers, foils, None if reference is None else reference.cpu()).double()
