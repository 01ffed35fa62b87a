"""Local processes: each holds one loaded model and its share of the cores. A process that dies takes no cell with it.

A unit whose process died goes to another one in halves; a cell alone is tried twice and then marked failed. This file imports no torch at
its top: a new process must set its number of threads before torch is there.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any

from mechlab.errors import MechlabError
from mechlab.sweeps.cells import Outcome, Unit
from mechlab.sweeps.executors import LIVES, MOST_DEATHS, buried

Pipe = Any
"""A connection: of another class on Windows."""


@dataclass(frozen=True)
class Trouble:
    """Why a worker could not begin a unit: told in the parent."""

    message: str
    is_users: bool


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    pipe: Pipe
    unit: Unit | None = None


class LocalProcesses:
    """``n`` processes on this machine, started with the first units.

    Args:
        make_task, device, trust_remote_code: as ``Bench`` takes them.
        threads: of torch in each; None for an even share of the cores.
    """

    def __init__(
        self,
        n: int,
        make_task: str,
        device: str = "auto",
        threads: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._n, self._bench = n, (make_task, device, trust_remote_code)
        self._threads = threads or max(1, (os.cpu_count() or 1) // n)
        self.workers: list[_Worker] = []

    def outcomes(self, units: Iterator[Unit]) -> Generator[Outcome]:
        again: deque[Unit] = deque()
        lives: dict[int, int] = {}
        deaths = 0
        try:
            while self._fed(again, units):
                for worker in self._ready():
                    answer = self._answer(worker)
                    if isinstance(answer, Outcome):
                        deaths = 0
                        yield answer
                    elif isinstance(answer, Trouble):
                        raise MechlabError(answer.message) if answer.is_users else RuntimeError(answer.message)
                    elif answer is not None:
                        deaths += 1
                        self._too_many(deaths, worker)
                        yield from _buried(answer, again, lives, worker.process.exitcode)
        finally:
            self._end()

    def _fed(self, again: deque[Unit], units: Iterator[Unit]) -> bool:
        """Gives each idle worker a unit, starting workers while there are units; False when nothing is in flight."""
        while unit := self._next_for_idle(again, units):
            worker = next((one for one in self.workers if one.unit is None), None) or self._start()
            worker.unit = unit
            with suppress(OSError):  # it has just died: its end of the pipe tells, and the unit goes to another
                worker.pipe.send(unit)
        return any(worker.unit for worker in self.workers)

    def _next_for_idle(self, again: deque[Unit], units: Iterator[Unit]) -> Unit | None:
        busy = sum(worker.unit is not None for worker in self.workers)
        if busy >= self._n:
            return None
        return again.popleft() if again else next(units, None)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work,
            args=(theirs, self._bench, self._threads),
            daemon=True,
            name="mechlab sweep worker",
        )
        process.start()
        theirs.close()  # so that its death is an end of file here
        worker = _Worker(process, ours)
        self.workers.append(worker)
        return worker

    def _ready(self) -> list[_Worker]:
        by_pipe = {worker.pipe: worker for worker in self.workers}
        return [by_pipe[pipe] for pipe in wait(list(by_pipe))]  # pyright: ignore[reportArgumentType]

    def _answer(self, worker: _Worker) -> Outcome | Trouble | Unit | None:
        """What the worker sent; the unit it left behind if it died; None if it died idle."""
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            worker.pipe.close()
            self.workers.remove(worker)
            return worker.unit
        worker.unit = None
        assert isinstance(answer, Outcome | Trouble)
        return answer

    def _too_many(self, deaths: int, worker: _Worker) -> None:
        if deaths >= MOST_DEATHS:
            raise MechlabError(
                f"{deaths} worker processes died one after another (exit code {worker.process.exitcode}), most likely for lack of memory: "
                "use fewer --workers, or a smaller model or dtype."
            )

    def _end(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join()
            worker.pipe.close()
        self.workers.clear()


def _buried(unit: Unit, again: deque[Unit], lives: dict[int, int], code: int | None) -> Generator[Outcome]:
    """What becomes of a unit whose worker died."""
    died = f"its worker process died {LIVES} times, last with exit code {code} (-9: most likely out of memory)"
    yield from buried(unit, again, lives, died)


def _work(pipe: Pipe, bench: tuple[str, str, bool], threads: int) -> None:
    """A worker's life: units in, outcomes out, until the parent closes the pipe."""
    import traceback

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process of the terminal: the parent decides
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _serve(pipe, bench, threads)
    except MechlabError as error:
        _send(pipe, Trouble(str(error), is_users=True))
    except Exception:  # told in the parent, with its traceback
        _send(pipe, Trouble(f"A worker process failed:\n{traceback.format_exc()}", is_users=False))


def _serve(pipe: Pipe, made_of: tuple[str, str, bool], threads: int) -> None:
    import torch

    from mechlab.sweeps.work import Bench

    torch.set_num_threads(threads)
    bench = Bench(*made_of)
    while unit := _received(pipe):
        if not _send(pipe, bench.run(unit)):
            return


def _received(pipe: Pipe) -> Unit | None:
    try:
        return pipe.recv()
    except (EOFError, OSError):  # the parent is gone
        return None


def _send(pipe: Pipe, answer: Outcome | Trouble) -> bool:
    try:
        pipe.send(answer)
    except OSError:  # the parent is gone
        return False
    return True
