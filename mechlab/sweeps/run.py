"""Running a sweep: lay the plan out, hand the waiting cells to an executor unit by unit, write each outcome, until nothing waits."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mechlab.errors import StoreError
from mechlab.sweeps.cells import Group, Outcome, Unit
from mechlab.sweeps.plan import SweepPlan
from mechlab.sweeps.repair import opened
from mechlab.sweeps.store import CellStore, Counts, require

if TYPE_CHECKING:
    from mechlab.sweeps.executors import Executor
    from mechlab.sweeps.work import Bench

Progress = Callable[[str, int, int], None]
LOCK = "sweeping.lock"
LABEL = "sweep cells"


@dataclass(frozen=True)
class Settings:
    """How a sweep is run; nothing here changes a value.

    Attributes:
        make_task: ``module:function`` of ``(lens, name, n, *, seed, split) -> Task``.
        workers: 1 for this process, more for as many local processes.
        device, trust_remote_code: as ``mechlab.load`` takes them.
        retry_failed: cells that failed before are tried again.
        unit_seconds: how long an engine call should take: what ``kill -9`` can lose per worker. Measured by a clock that never jumps.
        unit_cells: most cells in a unit.
    """

    make_task: str
    workers: int = 1
    device: str = "auto"
    retry_failed: bool = False
    unit_seconds: float = 4.0
    unit_cells: int = 2000
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Swept:
    """How a sweep ended.

    Attributes:
        counts: all cells of its plans.
        computed, failed_now: in this run.
        engine_seconds: spent in engine calls, over all workers.
        plans: their numbers in the store.
        notes: what else is to be told, in sentences.
    """

    counts: Counts
    computed: int
    failed_now: int
    engine_seconds: float
    plans: tuple[int, ...]
    notes: tuple[str, ...]


def sweep(
    plan: SweepPlan,
    folder: str | Path,
    settings: Settings,
    *,
    executor: "Executor | None" = None,
    progress: Progress | None = None,
) -> Swept:
    """Computes the cells of ``plan`` that the store in ``folder`` lacks.

    Args:
        executor: instead of the one that ``settings.workers`` chooses.
        progress: called with (label, done, total) in cells.

    Raises:
        MechlabError: a plan that asks for what is not there, before anything runs; a store that cannot be written.
        KeyboardInterrupt: on Ctrl-C. What was saved is kept; the same call goes on.
    """
    bench = _bench(settings)
    with _store(folder) as (store, notes):
        number = lay_out(store, plan, bench)
        return _run(store, [number], bench, settings, executor, progress, notes)


def resume(
    folder: str | Path, settings: Settings, *, executor: "Executor | None" = None, progress: Progress | None = None
) -> Swept:
    """Computes what waits in the store, of all its plans.

    A plan that was laid out whole is not compiled again; where nothing waits, no model is loaded and torch is not imported. Raises as
    ``sweep`` does.
    """
    require(folder)
    with _store(folder) as (store, notes):
        plans = store.plans()
        if all(map(store.is_laid_out, plans)) and not _to_do(store.counts([*plans]), settings):
            return _Tally(store, [*plans], progress).swept(notes)
        bench = _bench(settings)
        numbers = [
            number if store.is_laid_out(number) else lay_out(store, plan, bench) for number, plan in plans.items()
        ]
        return _run(store, list(dict.fromkeys(numbers)), bench, settings, executor, progress, notes)


def _bench(settings: Settings) -> "Bench":
    from mechlab.sweeps.work import Bench  # this imports torch

    return Bench(settings.make_task, settings.device, settings.trust_remote_code)


def _to_do(counts: Counts, settings: Settings) -> int:
    return counts.waiting + (counts.failed if settings.retry_failed else 0)


def lay_out(store: CellStore, plan: SweepPlan, bench: "Bench") -> int:
    """Gives every cell of the plan a row; returns the plan's number. Doing it twice is doing it once."""
    from mechlab.sweeps.compiling import compiled

    found = list(compiled(plan, bench))  # the whole plan is checked before any of it is written
    number = store.plan(plan, [group for group, _ in found])
    if not store.is_laid_out(number):
        for group, cells in found:
            store.lay_out(number, group, cells)
        store.laid_out(number)
    return number


@contextmanager
def _store(folder: str | Path) -> Generator[tuple[CellStore, list[str]]]:
    store, note = opened(Path(folder).expanduser())
    with store:
        yield store, [note] if note else []


def _run(
    store: CellStore,
    plans: Sequence[int],
    bench: "Bench",
    settings: Settings,
    executor: "Executor | None",
    progress: Progress | None,
    notes: list[str],
) -> Swept:
    if settings.retry_failed:
        for plan in plans:
            store.retry(plan)
    tally = _Tally(store, plans, progress)
    if tally.left:
        if executor:
            bench.clear()  # its workers hold models of their own
        work = executor or _executor(settings, bench)
        with _turn(store.folder) as backwards:
            units = _Units(store, plans, settings, backwards)
            outcomes = work.outcomes(iter(units))
            try:
                for outcome in outcomes:
                    tally.add(store.save(outcome), outcome)
                    units.learn(outcome)
            finally:
                outcomes.close()
    return tally.swept(notes)


def _executor(settings: Settings, bench: "Bench") -> "Executor":
    from mechlab.sweeps.executors import InProcess
    from mechlab.sweeps.processes import LocalProcesses

    if settings.workers < 1:
        raise StoreError(f"{settings.workers} workers cannot run a sweep: use 1 or more.")
    if settings.workers == 1:
        return InProcess(bench)
    bench.clear()  # the workers hold models of their own
    return LocalProcesses(
        settings.workers, settings.make_task, settings.device, trust_remote_code=settings.trust_remote_code
    )


@contextmanager
def _turn(folder: Path) -> Generator[bool]:
    """Whether to walk through the cells backwards: a second sweep on one store begins at the other end, so that the two meet once.

    The lock only divides the work: without it both would compute the same cells and write them once.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield True
        return
    try:
        yield False
    finally:
        lock.release()


class _Units:
    """Waiting cells, group by group, in units that take about ``unit_seconds``. Each is looked up when a worker is free for it, so what
    another process has done meanwhile is not handed out."""

    def __init__(self, store: CellStore, plans: Sequence[int], settings: Settings, backwards: bool) -> None:
        self._store, self._plans, self._backwards = store, plans, backwards
        self._seconds, self._most = settings.unit_seconds, settings.unit_cells
        self._size = min(32, self._most)

    def __iter__(self) -> Iterator[Unit]:
        for plan in self._plans:
            groups = list(self._store.groups(plan).items())
            for number, group in reversed(groups) if self._backwards else groups:
                yield from self._of(plan, number, group)

    def _of(self, plan: int, number: int, group: Group) -> Iterator[Unit]:
        last: int | None = None
        while cells := self._store.waiting(plan, number, self._size, last, self._backwards):
            last = cells[-1][0]
            yield Unit(number, group, tuple(cells))

    def learn(self, outcome: Outcome) -> None:
        """Sizes the next units by how long this one took. At most four times larger: early units pay for warming up."""
        n = len(outcome.unit.cells)
        if outcome.failed or not outcome.engine_seconds:
            return
        fitting = int(n * self._seconds / outcome.engine_seconds)
        self._size = max(1, min(fitting, 4 * n, self._most))


class _Tally:
    """What is done, told as it happens."""

    def __init__(self, store: CellStore, plans: Sequence[int], progress: Progress | None) -> None:
        self._store, self._plans, self._progress = store, plans, progress
        before = store.counts(plans)
        self._before, self._total, self.left = before.total - before.waiting, before.total, before.waiting
        self._computed = self._failed = 0
        self._seconds = 0.0
        self._told(0)

    def add(self, changed: Counts, outcome: Outcome) -> None:
        self._computed += changed.done
        self._failed += changed.failed
        self._seconds += outcome.engine_seconds
        self._told(self._computed + self._failed)

    def _told(self, now: int) -> None:
        if self._progress and self.left:
            self._progress(LABEL, min(self._before + now, self._total), self._total)

    def swept(self, notes: list[str]) -> Swept:
        return Swept(
            self._store.counts(self._plans),
            self._computed,
            self._failed,
            self._seconds,
            tuple(self._plans),
            tuple(notes),
        )
