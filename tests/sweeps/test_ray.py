"""Sweeps on Ray: the same values, and no cell lost when a worker or a node is."""

import importlib.util
import os
import signal
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from apps.cli.sweep import Means
from mechlab.errors import MechlabError
from mechlab.sweeps import ray_executor
from mechlab.sweeps.cells import Group, Outcome, Unit
from mechlab.sweeps.plan import SweepPlan, TaskSpec
from mechlab.sweeps.ray_cluster import _token, connected  # pyright: ignore[reportPrivateUsage]
from mechlab.sweeps.ray_executor import RayExecutor, _buried, _devices, _Lost  # pyright: ignore[reportPrivateUsage]
from mechlab.sweeps.run import Settings, sweep
from mechlab.sweeps.store import CellStore

with_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="the extra `ray` is not installed")
GROUP = Group("m", "f", "float32", None, TaskSpec(task="t", seed=0), "h", 1, "clean", "kl")
# The first worker that makes the task says who and where it is, and never comes back.
FIRST_HANGS = """
    import os, time
    from pathlib import Path
    import ray
    from circuits.tasks import catalogue

    def make_task(*args, **options):
        flag = Path({flag!r})
        try:
            with flag.open("x") as file:
                file.write(f"{{os.getpid()}} {{ray.get_runtime_context().get_node_id()}}")
        except FileExistsError:
            return catalogue.make_task(*args, **options)
        time.sleep(600)
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Any]:
    """A head without cores and two nodes with one each, on loopback; workers find modules in ``cluster.modules``."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", _token())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.modules = tmp_path
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[_Lost]:
    """The workers that an executor found lost."""
    found: list[_Lost] = []

    def seen(lost: _Lost, *rest: Any) -> Generator[Outcome]:
        found.append(lost)
        return _buried(lost, *rest)

    monkeypatch.setattr(ray_executor, "_buried", seen)
    return found


def first_hangs(folder: Path, name: str) -> tuple[str, Path]:
    """A task maker, and the file that tells who hangs in it."""
    flag = folder / f"{name}.flag"
    (folder / f"{name}.py").write_text(textwrap.dedent(FIRST_HANGS.format(flag=str(flag))))
    return f"{name}:make_task", flag


@with_ray
@pytest.mark.cluster
def test_a_worker_killed_in_the_middle_of_a_ray_that_is_closed_to_others(
    plan, settings, tmp_path: Path, monkeypatch, losses: list[_Lost]
):
    """The first worker holds a unit that it never finishes and is killed when the other has done one."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    environment, before, on_term = dict(os.environ), children(), signal.getsignal(signal.SIGTERM)
    maker, flag = first_hangs(tmp_path, "first_worker_hangs")
    listening: set[str] = set()

    def kill(_label: str, done: int, _total: int) -> None:
        if done and not listening:
            listening.update(at for child in children() - before for at in _listens(child))
            os.kill(int(flag.read_text().split()[0]), signal.SIGKILL)

    work = RayExecutor(maker, device="cpu", workers=2)
    check_same(plan("z[*.*]@*"), settings, tmp_path, work, kill)
    assert losses[0].unit and "process has died" in losses[0].why
    assert listening and listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    psutil.wait_procs(children() - before, timeout=10)
    assert children() <= before
    assert dict(os.environ) == environment and signal.getsignal(signal.SIGTERM) is on_term


@with_ray
@pytest.mark.cluster
def test_a_cluster_where_there_is_no_room_and_then_a_node_is_lost(
    cluster, plan, settings, tmp_path: Path, losses: list[_Lost]
):
    """As above, with all that runs on the node of the worker that hangs. What takes its place finds no room."""
    import ray

    with connected(cluster.address):
        check_no_room(ray, cluster.address, settings)
        assert ray.is_initialized()  # one's own connection is kept
    assert not ray.is_initialized()
    maker, flag = first_hangs(cluster.modules, "first_node_hangs")

    def kill(_label: str, done: int, _total: int) -> None:
        if done and len(cluster.worker_nodes) == 2:
            node = flag.read_text().split()[1]
            [lost] = [one for one in cluster.worker_nodes if one.node_id == node]
            cluster.remove_node(lost, allow_graceful=False)

    work = RayExecutor(maker, cluster.address, device="cpu", patience=120)
    check_same(plan("z[*.*]@*"), settings, tmp_path, work, kill)
    assert losses[0].unit and len(cluster.worker_nodes) == 1 and not ray.is_initialized()


def check_no_room(ray: Any, address: str, settings: Settings) -> None:
    """Two cores, both held by others."""
    hogs = [ray.remote(num_cpus=1)(Hog).remote() for _ in range(2)]
    ray.get([hog.__ray_ready__.remote() for hog in hogs])
    for work, said in (
        (
            RayExecutor(settings.make_task, device="cpu", patience=1),
            "No Ray worker began in 1 seconds: 0 CPUs .* of 2 CPUs",
        ),
        (RayExecutor(settings.make_task, device="cpu", workers=3), "3 workers .* has 2 CPUs"),
        (RayExecutor(settings.make_task, device="cuda"), "has no GPU"),
        (RayExecutor(settings.make_task, "10.0.0.1:6379"), f"connected to the Ray cluster at {address}"),
    ):
        with pytest.raises(MechlabError, match=said):
            list(work.outcomes(iter([])))
        assert work.workers == []


def check_same(
    asked: SweepPlan, settings: Settings, folder: Path, work: RayExecutor, progress: Callable[[str, int, int], None]
) -> None:
    """Every cell once, with the value that one process computes."""
    sweep(asked, folder / "alone", settings)
    few = Settings(settings.make_task, device="cpu", unit_cells=16)
    done = sweep(asked, folder / "ray", few, executor=work, progress=progress)
    assert (done.counts.done, done.computed, done.counts.failed) == (168, 168, 0) and work.workers == []
    found, expected = read(folder / "ray"), read(folder / "alone")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=5e-6)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


class Hog:
    pass


def test_without_ray_the_extra_is_named(monkeypatch, settings):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MechlabError, match=r"pip install 'mechlab-workbench\[ray\]'"):
        RayExecutor(settings.make_task)


@with_ray
def test_the_command_line_chooses_the_engine():
    assert Means().executor() is None
    assert isinstance(Means(2, "ray", "auto", "cpu").executor(), RayExecutor)
    with pytest.raises(MechlabError, match=r"--address h:1 .* add --engine ray"):
        Means(address="h:1").executor()


@with_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_an_address_where_no_cluster_is(settings, address: str):
    with pytest.raises(MechlabError, match=f"No Ray cluster could be joined at '{address}'"):
        list(RayExecutor(settings.make_task, address).outcomes(iter([])))


def test_a_gpu_is_a_worker_where_there_are_any():
    assert _devices({"CPU": 64.0, "GPU": 3.0}, "auto") == (3, {"num_gpus": 1, "num_cpus": 0})
    assert _devices({"CPU": 64.0, "GPU": 3.0}, "cpu") == (64, {"num_cpus": 1})
    assert _devices({"CPU": 5.0}, "auto") == (5, {"num_cpus": 1})
    with pytest.raises(MechlabError, match="use 'cuda'"):
        _devices({"GPU": 3.0}, "cuda:1")


def test_a_unit_whose_worker_dies_is_halved_down_to_the_cell_that_kills():
    """Cell 5 of 8 kills whoever computes it."""
    again, lives, marked = deque([Unit(1, GROUP, tuple((i, "[]") for i in range(8)))]), {}, []
    done, deaths = [], 0
    while again:
        unit = again.popleft()
        cells = [cell for cell, _ in unit.cells]
        if 5 in cells:
            deaths += 1
            marked += list(_buried(_Lost(unit, "it fell."), again, lives))
        else:
            done += cells
    assert sorted(done) == [0, 1, 2, 3, 4, 6, 7] and deaths == 5
    [outcome] = marked
    assert list(outcome.failed) == [5] and "died 2 times, the last because: it fell." in outcome.failed[5]


def _listens(process: psutil.Process) -> list[str]:
    """Addresses on which it takes connections."""
    try:
        return [one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
    except psutil.NoSuchProcess:
        return []


def read(folder: Path) -> dict[str, np.ndarray]:
    with CellStore(folder) as store:
        [group] = store.groups()
        return {cell.edits: np.frombuffer(cell.value or b"") for cell in store.done(group)}
