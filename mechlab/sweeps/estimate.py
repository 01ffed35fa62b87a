"""What a sweep will cost, before it runs: cells, what is already there, what the engine saves, operations, memory, time."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from mechlab.lens.edit import Edit
from mechlab.patching.plan import Plan
from mechlab.sweeps.cells import cell_key
from mechlab.sweeps.compiling import Compiled, compiled
from mechlab.sweeps.database import DONE, FAILED, FILE
from mechlab.sweeps.plan import SweepPlan
from mechlab.sweeps.store import CellStore
from mechlab.sweeps.work import Bench

_AT_ONCE = 2000


@dataclass(frozen=True)
class Estimate:
    """The cost of one group of cells.

    Attributes:
        model, task, seed, metric, prompts: which group.
        cells: as planned; done, failed: of them in the store already, or planned twice.
        forwards: prompts x cells that are to be computed: forward passes where each is run whole.
        rows: of them the engine computes (unchanged and repeated ones are not).
        flops, full_flops: floating-point operations of the engine, and of whole forward passes.
        memory_bytes: activations at the largest call, beside the model.
        seconds: a lower bound, at the measured speed of matrix products.
    """

    model: str
    task: str
    seed: int
    metric: str
    prompts: int
    cells: int
    done: int
    failed: int
    forwards: int
    rows: int
    flops: int
    full_flops: int
    memory_bytes: int
    seconds: float

    @property
    def to_do(self) -> int:
        return self.cells - self.done - self.failed

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "to_do": self.to_do}


def estimate(plan: SweepPlan, folder: str | Path, bench: Bench) -> Iterator[Estimate]:
    """Group by group; nothing is run and nothing is written. Raises what ``sweep`` would raise before it runs."""
    folder = Path(folder).expanduser()
    with ExitStack() as stack:
        store = stack.enter_context(CellStore(folder)) if (folder / FILE).is_file() else None
        for one in compiled(plan, bench):
            yield _group(one, store, bench)


def _group(one: Compiled, store: CellStore | None, bench: Bench) -> Estimate:
    lens = bench.lens_of(one.group)
    task = bench.task(lens, one.group.task)
    costs: list[Plan] = []
    n_done = n_failed = 0
    for texts in _parts(one.cells):
        keys = {cell_key(one.group.key, text): text for text in texts}
        found = store.known([*keys]) if store else {}
        n_done += sum(status == DONE for status in found.values()) + len(texts) - len(keys)
        n_failed += sum(status == FAILED for status in found.values())
        left = [text for key, text in keys.items() if found.get(key) not in (DONE, FAILED)]
        if left:
            edits = [[Edit.from_dict(edit) for edit in json.loads(text)] for text in left]
            costs.append(lens.plan(task, edits, base=one.group.base))
    return Estimate(
        model=one.group.model,
        task=one.group.task.task,
        seed=one.group.task.seed or 0,
        metric=one.group.metric,
        prompts=one.group.prompts,
        cells=len(one.cells),
        done=n_done,
        failed=n_failed,
        forwards=sum(cost.interventions * cost.prompts for cost in costs),
        rows=sum(cost.rows for cost in costs),
        flops=sum(cost.flops for cost in costs),
        full_flops=sum(cost.full_flops for cost in costs),
        memory_bytes=max((cost.memory_bytes for cost in costs), default=0),
        seconds=sum(cost.seconds for cost in costs),
    )


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while part := list(islice(rest, _AT_ONCE)):
        yield part
