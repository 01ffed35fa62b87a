"""A cluster, through Ray: one actor per device holds the model, units go to whoever is free, and the parent alone writes the store.

A unit whose worker or node died goes to another worker in halves; a cell alone is tried twice and then marked failed. Workers hold one unit
each, so no more are in flight than there are devices. A worker gets its first unit when it has begun, so a worker that no node has room for
holds up nothing. This file imports no torch at its top: a worker sets its number of threads before torch is there.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mechlab.errors import MechlabError
from mechlab.sweeps.cells import Outcome, Unit
from mechlab.sweeps.executors import LIVES, MOST_DEATHS, buried
from mechlab.sweeps.processes import Trouble
from mechlab.sweeps.ray_cluster import Ray, check_installed, connected, first_line

Ref = Any
"""A promise of Ray: what an actor will answer."""


@dataclass(eq=False)
class _Worker:
    """An actor, and the answer it owes: of its start when it has no unit yet, else of its unit."""

    actor: Any
    owed: Ref | None
    unit: Unit | None = None


@dataclass(frozen=True)
class _Lost:
    """A worker died, or its node, or the way to it."""

    unit: Unit | None
    why: str


class RayExecutor:
    """Workers on the devices of a Ray cluster.

    Args:
        make_task: as ``Bench`` takes it; ``mechlab`` and that module must be installed on every node, and models be found there by the
            same name or path.
        address: ``host:port`` of a running cluster, or ``auto`` for the one on this machine. None starts Ray here for the time of the
            sweep: on the loopback address only, with a secret token, without dashboard or usage reports. A process that is connected
            already keeps its connection.
        device: as ``Bench`` takes it. ``auto`` means GPUs where the cluster has any, else CPU cores.
        workers: how many; None for one per device.
        trust_remote_code: as ``Bench`` takes it.
        patience: seconds that may pass with no worker at all. A large cluster may take minutes to make room.

    Raises:
        MechlabError: Ray is not installed.
    """

    def __init__(
        self,
        make_task: str,
        address: str | None = None,
        device: str = "auto",
        workers: int | None = None,
        patience: float = 300.0,
        trust_remote_code: bool = False,
    ) -> None:
        check_installed()
        self._make_task, self._device, self._address = make_task, device, address
        self._n, self._patience, self._trusts = workers, patience, trust_remote_code
        self.workers: list[_Worker] = []

    def outcomes(self, units: Iterator[Unit]) -> Generator[Outcome]:
        """One outcome per unit or part of it.

        Raises:
            MechlabError: no cluster answers, it has no such device, no worker starts in time, a worker cannot have
                model or task, or workers die one after another.
        """
        with connected(self._address, self._n) as ray:
            start = self._starter(ray)
            again: deque[Unit] = deque()
            lives: dict[int, int] = {}
            deaths = 0
            try:
                while self._fed(again, units):
                    worker = self._next(ray)
                    answer = _answer(ray, worker)
                    if isinstance(answer, Outcome):
                        deaths = 0
                        yield answer
                    elif isinstance(answer, Trouble):
                        raise MechlabError(answer.message) if answer.is_users else RuntimeError(answer.message)
                    elif answer is not None:
                        deaths += 1
                        self._too_many(deaths, answer)
                        self._replace(ray, worker, start)
                        yield from _buried(answer, again, lives)
            finally:
                self._end(ray)

    def _starter(self, ray: Ray) -> Callable[[], _Worker]:
        """Starts all workers; returns what starts one more."""
        devices, options = _devices(ray.cluster_resources(), self._device)
        n = self._n or devices
        if n > devices:
            raise MechlabError(
                f"{n} workers were asked for and the Ray cluster has {devices} {_named(options)}: ask for at most {devices} --workers, "
                "or add nodes to the cluster first."
            )
        actor = ray.remote(**options, max_restarts=0, max_task_retries=0)(Holder)

        def start() -> _Worker:
            handle = actor.remote(self._make_task, self._device, self._trusts)
            return _Worker(handle, handle.begin.remote())

        self.workers = [start() for _ in range(n)]
        return start

    def _fed(self, again: deque[Unit], units: Iterator[Unit]) -> bool:
        """Gives each idle worker a unit. False when nothing is in flight and nothing is left."""
        idle = [worker for worker in self.workers if worker.owed is None]
        for worker in idle:
            worker.unit = again.popleft() if again else next(units, None)
            if worker.unit is None:
                break
            worker.owed = worker.actor.run.remote(worker.unit)
        return any(worker.unit for worker in self.workers) or not idle

    def _next(self, ray: Ray) -> _Worker:
        """The next worker that answered or died. There is no limit on how long a unit takes, only on having no worker at all."""
        owing = {worker.owed: worker for worker in self.workers if worker.owed is not None}
        limit = None if any(worker.unit for worker in self.workers) else self._patience
        found, _ = ray.wait(list(owing), num_returns=1, timeout=limit)
        if not found:
            free, there = _told(ray.available_resources()), _told(ray.cluster_resources())
            raise MechlabError(
                f"No Ray worker began in {self._patience:.0f} seconds: {free} of {there} are free, and a worker needs one GPU or CPU: "
                "wait until other jobs end, or add nodes (`ray status` shows who holds what)."
            )
        return owing[found[0]]

    def _replace(self, ray: Ray, worker: _Worker, start: Callable[[], _Worker]) -> None:
        """A new worker for a lost one, which is ended for sure: it may only have been out of reach."""
        _kill(ray, worker)
        self.workers.remove(worker)
        self.workers.append(start())

    def _too_many(self, deaths: int, lost: _Lost) -> None:
        if deaths >= MOST_DEATHS + len(self.workers):
            raise MechlabError(
                f"{deaths} Ray workers died one after another, the last because: {lost.why} Look into the logs of Ray on its node; where "
                "memory is short, use fewer --workers, or a smaller model or dtype."
            )

    def _end(self, ray: Ray) -> None:
        for worker in self.workers:
            _kill(ray, worker)
        self.workers.clear()


class Holder:
    """What lives in a Ray worker: a ``Bench``, made there."""

    def __init__(self, make_task: str, device: str, trust_remote_code: bool = False) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._made_of = (make_task, device, trust_remote_code)
        self._bench: Any = None

    def begin(self) -> Trouble | None:
        """Imports what units need, so that only workers that are ready for them are given any."""
        answer = _tried(self._made)
        return answer if isinstance(answer, Trouble) else None

    def run(self, unit: Unit) -> Outcome | Trouble:
        answer = _tried(lambda: self._bench.run(unit))
        assert isinstance(answer, Outcome | Trouble)
        return answer

    def _made(self) -> None:
        import torch

        from mechlab.sweeps.work import Bench

        torch.set_num_threads(1)
        self._bench = Bench(*self._made_of)


def _tried(work: Callable[[], object]) -> object:
    """What ``work`` returns, or why it cannot: told in the parent."""
    import traceback

    try:
        return work()
    except MechlabError as error:
        return Trouble(str(error), is_users=True)
    except Exception:  # told in the parent, with its traceback
        return Trouble(f"A Ray worker failed:\n{traceback.format_exc()}", is_users=False)


def _answer(ray: Ray, worker: _Worker) -> Outcome | Trouble | _Lost | None:
    """What a worker sent for its unit, or for its start; that it is lost otherwise."""
    from ray.exceptions import RayError, RayTaskError

    try:
        answer = ray.get(worker.owed)
    except RayTaskError as error:  # a worker tells all errors as Trouble: this one came before its first line of code
        return Trouble(
            f"A Ray worker could not begin ({first_line(error.cause or error)}): install this version of mechlab-workbench, under the same "
            "version of Python, on every node of the cluster.",
            is_users=True,
        )
    except RayError as error:
        return _Lost(worker.unit, first_line(error))
    worker.owed = worker.unit = None
    assert answer is None or isinstance(answer, Outcome | Trouble)
    return answer


def _buried(lost: _Lost, again: deque[Unit], lives: dict[int, int]) -> Generator[Outcome]:
    """What becomes of the unit of a worker that died."""
    if lost.unit is not None:
        died = f"its Ray worker died {LIVES} times, the last because: {lost.why}"
        yield from buried(lost.unit, again, lives, died)


def _kill(ray: Ray, worker: _Worker) -> None:
    with suppress(Exception):  # it is dead already, or its cluster is gone
        ray.kill(worker.actor)


def _devices(resources: Mapping[str, float], device: str) -> tuple[int, dict[str, int]]:
    """How many workers a cluster has room for, and what Ray is to keep for each."""
    if device.startswith("cuda:"):
        raise MechlabError(f"Ray chooses the GPU of each worker and {device!r} names one: use 'cuda'.")
    wants_gpu = device == "cuda" or (device == "auto" and resources.get("GPU", 0) >= 1)
    kind, options = ("GPU", {"num_gpus": 1, "num_cpus": 0}) if wants_gpu else ("CPU", {"num_cpus": 1})
    n = int(resources.get(kind, 0))
    if not n:
        raise MechlabError(
            f"The Ray cluster has no {kind} ({_told(resources)}): add nodes that have, or choose another device."
        )
    return n, options


def _named(options: Mapping[str, int]) -> str:
    return "GPUs" if "num_gpus" in options else "CPUs"


def _told(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
