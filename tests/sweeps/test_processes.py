"""Worker processes: the same values, and no cell lost when one is killed."""

import multiprocessing
import os
import signal
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch

from mechlab.errors import MechlabError
from mechlab.sweeps.cells import Group, Unit
from mechlab.sweeps.plan import TaskSpec
from mechlab.sweeps.processes import LocalProcesses, Trouble, _buried, _work, _Worker  # pyright: ignore[reportPrivateUsage]
from mechlab.sweeps.run import Settings, sweep
from mechlab.sweeps.store import CellStore

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is a Unix signal")
GROUP = Group("m", "f", "float32", None, TaskSpec(task="t", seed=0), "h", 1, "clean", "kl")


def test_two_workers_of_which_one_is_killed(plan, settings, monkeypatch, tmp_path: Path):
    """The first worker is killed with its first unit in hand; a third one takes its place."""
    asked = plan("z[*.*]@*")
    sweep(asked, tmp_path / "alone", settings)
    work = LocalProcesses(2, settings.make_task, "cpu", threads=1)
    real, started = work._start, []  # pyright: ignore[reportPrivateUsage]

    def start() -> _Worker:
        started.append(real())
        if len(started) == 2:
            assert started[0].unit is not None
            os.kill(started[0].process.pid or 0, signal.SIGKILL)
        return started[-1]

    monkeypatch.setattr(work, "_start", start)
    few = Settings(settings.make_task, device="cpu", unit_cells=16)
    done = sweep(asked, tmp_path / "two", few, executor=work)
    assert len(started) == 3 and started[0].process.exitcode == -signal.SIGKILL
    assert (done.counts.done, done.computed) == (168, 168) and work.workers == []
    found, expected = read(tmp_path / "two"), read(tmp_path / "alone")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=5e-6)


def test_what_a_worker_cannot_load_is_told_in_the_parent(settings, monkeypatch):
    """A worker's life, in this process: it ends with the first unit that it cannot begin."""
    ours, theirs = multiprocessing.Pipe()
    ours.send(Unit(1, Group(**{**GROUP.__dict__, "model": "/no/such/folder"}), ((1, "[]"),)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    _work(theirs, (settings.make_task, "cpu", False), torch.get_num_threads())
    trouble = ours.recv()
    assert isinstance(trouble, Trouble) and trouble.is_users and "/no/such/folder" in trouble.message


def test_a_unit_whose_worker_dies_is_halved_down_to_the_cell_that_kills():
    """Cell 5 of 8 kills whoever computes it."""
    again, lives, marked = deque([Unit(1, GROUP, tuple((i, "[]") for i in range(8)))]), {}, []
    done: list[int] = []
    deaths = 0
    while again:
        unit = again.popleft()
        cells = [cell for cell, _ in unit.cells]
        if 5 in cells:
            deaths += 1
            marked += list(_buried(unit, again, lives, -9))
        else:
            done += cells
    assert sorted(done) == [0, 1, 2, 3, 4, 6, 7] and deaths == 5
    [outcome] = marked
    assert list(outcome.failed) == [5] and "died 2 times, last with exit code -9" in outcome.failed[5]


def test_workers_that_all_die_stop_the_sweep(monkeypatch, settings):
    """A worker that dies before it answers anything, whatever it is given."""
    work = LocalProcesses(1, settings.make_task, "cpu", threads=1)

    class Dead:
        exitcode = -9

        def join(self) -> None: ...
        def terminate(self) -> None: ...

    class Closed:
        def send(self, _unit: Unit) -> None:
            raise BrokenPipeError

        def recv(self) -> None:
            raise EOFError

        def close(self) -> None: ...

    def start() -> _Worker:
        work.workers.append(_Worker(Dead(), Closed()))  # pyright: ignore[reportArgumentType]
        return work.workers[-1]

    monkeypatch.setattr(work, "_start", start)
    monkeypatch.setattr(work, "_ready", lambda: list(work.workers))
    unit = Unit(1, GROUP, tuple((i, "[]") for i in range(1000)))
    with pytest.raises(MechlabError, match="16 worker processes died one after another"):
        list(work.outcomes(iter([unit])))


def read(folder: Path) -> dict[str, np.ndarray]:
    with CellStore(folder) as store:
        [group] = store.groups()
        return {cell.edits: np.frombuffer(cell.value or b"") for cell in store.done(group)}
