"""From a plan to groups and cells: every site is looked up in the loaded model, so that what is wrong is known before anything runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from mechlab.errors import EditError
from mechlab.lens.edit import Edit
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.patching.effects import check_edits
from mechlab.patching.task import Task
from mechlab.results.metrics import metric as find_metric
from mechlab.sweeps.cells import Group, edits_json, task_hash
from mechlab.sweeps.grid import Sites, expand
from mechlab.sweeps.plan import Intervention, SweepPlan, TaskSpec
from mechlab.sweeps.work import Bench

_NEEDS_SOURCE = ("mean", "resample", "patch")
_HERE = "?"  # stands for the site while the rest of an edit's text is made


@dataclass(frozen=True)
class Cells:
    """The cells of one model and task: canonical JSON of each one's edits, made as it is asked for.

    ``grids``: sites with the text before and after each; ``joint``: edits of many sites at once.
    """

    grids: tuple[tuple[Sites, str, str], ...]
    joint: tuple[str, ...]

    def __len__(self) -> int:
        return sum(len(sites) for sites, _, _ in self.grids) + len(self.joint)

    def __iter__(self) -> Iterator[str]:
        of_grids = (f"{before}{site}{after}" for sites, before, after in self.grids for site in sites)
        return chain(of_grids, self.joint)


class Compiled(NamedTuple):
    """A group and its cells."""

    group: Group
    cells: Cells


def compiled(plan: SweepPlan, bench: Bench) -> Iterator[Compiled]:
    """Group by group, model by model; ``bench`` holds the group's model and task until the next is asked for.

    Raises:
        MechlabError: a model, task, metric, verb, site or position that is not there.
    """
    for metric in plan.metrics:
        find_metric(metric)
    for model in dict.fromkeys(plan.models):
        yield from _of_model(plan, model, bench)


def _of_model(plan: SweepPlan, model: str, bench: Bench) -> Iterator[Compiled]:
    # A generator of its own: when it ends it lets the model go, so that two are never held.
    lens = bench.lens(model, plan.dtype, plan.prepend_bos, plan.revision)
    for spec in plan.seeded_tasks():
        task = bench.task(lens, spec)
        cells = _cells(plan, lens, task, spec.seed or 0)
        for metric in dict.fromkeys(plan.metrics):
            yield Compiled(_group(plan, model, lens, spec, task, metric), cells)


def _group(plan: SweepPlan, model: str, lens: Lens, spec: TaskSpec, task: Task, metric: str) -> Group:
    return Group(
        model=model,
        fingerprint=lens.model.fingerprint,
        dtype=str(lens.model.dtype).removeprefix("torch."),
        prepend_bos=plan.prepend_bos,
        task=spec,
        task_hash=task_hash(task),
        prompts=len(task),
        base=plan.base,
        metric=metric,
        revision=plan.revision,
    )


def _cells(plan: SweepPlan, lens: Lens, task: Task, seed: int) -> Cells:
    grids: list[tuple[Sites, str, str]] = []
    joint: list[str] = []
    for one in plan.interventions:
        found = [
            expand(text, lens.layout, task.clean if plan.base == "clean" else task.corrupted) for text in one.sites
        ]
        for verb in dict.fromkeys(one.verb):
            fields = _fields(one, verb, plan.base, seed)
            for sites in found:
                _check(lens, task, plan.base, sites, fields)
            if one.together:
                joint.append(edits_json([_edit(fields, at).to_dict() for sites in found for at in sites]))
            else:
                grids += [(sites, *_around(fields, next(iter(sites)))) for sites in found]
    return Cells(tuple(grids), tuple(joint))


def _fields(one: Intervention, verb: str, base: str, seed: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"verb": verb, **one.edit_fields}
    if verb in _NEEDS_SOURCE:
        fields.setdefault("source", "corrupted" if base == "clean" else "clean")
    if verb == "resample":
        fields["seed"] = seed
    return fields


def _edit(fields: dict[str, Any], at: Site) -> Edit:
    return Edit.from_dict({**fields, "site": at})


def _check(lens: Lens, task: Task, base: str, sites: Sites, fields: dict[str, Any]) -> None:
    """The edit at the grid's first place, at each position: sites of a grid differ in nothing else that an edit could refuse."""
    if not len(sites):
        raise EditError(f"A grid of {sites.kind} has no site here: check its positions.")
    first = next(iter(sites))
    check_edits(lens, task, [(_edit(fields, first.at(position)),) for position in sites.positions], base)


def _around(fields: dict[str, Any], first: Site) -> tuple[str, str]:
    """The text of an edit before and after its site: 100,000 edits need not be made to be named."""
    text = edits_json([{**_edit(fields, first).to_dict(), "site": _HERE}])
    before, _, after = text.rpartition(f'"site":"{_HERE}"')
    return before + '"site":"', '"' + after
