"""What a worker does with a unit: one engine call; where that fails, the failing cells are found by halving."""

import gc
import importlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mechlab.errors import ModelError, PromptError
from mechlab.lens.edit import Edit
from mechlab.lens.lens import Lens
from mechlab.models.loading import load
from mechlab.patching.task import Task
from mechlab.results.effects import Effects
from mechlab.sweeps.cells import Group, Outcome, Unit, task_hash
from mechlab.sweeps.plan import TaskSpec

Edits = list[Edit]


class Bench:
    """One loaded model and its last task; both are made anew when another is asked for.

    Args:
        make_task: ``module:function`` of ``(lens, name, n, *, seed, split) -> Task``. Text, so that another process can find it.
        device, trust_remote_code: as ``mechlab.load`` takes them.
    """

    def __init__(self, make_task: str, device: str = "auto", trust_remote_code: bool = False) -> None:
        module, _, function = make_task.partition(":")
        self._make_task: Callable[..., Task] = getattr(importlib.import_module(module), function)
        self._device, self._trusts = device, trust_remote_code
        self._lens: tuple[object, Lens] | None = None
        self._task: tuple[object, Task] | None = None

    def lens(self, model: str, dtype: str, prepend_bos: bool | None, revision: str | None = None) -> Lens:
        wanted = (model, dtype, prepend_bos, revision)
        if self._lens is None or self._lens[0] != wanted:
            self.clear()
            loaded = load(model, device=self._device, dtype=dtype, revision=revision, trust_remote_code=self._trusts)
            self._lens = (wanted, Lens(loaded, prepend_bos=prepend_bos))
        return self._lens[1]

    def lens_of(self, group: Group) -> Lens:
        """The model that a group's cells are for."""
        return self.lens(group.model, group.dtype, group.prepend_bos, group.revision)

    def task(self, lens: Lens, spec: TaskSpec) -> Task:
        if self._task is None or self._task[0] != spec:
            made = self._make_task(lens, spec.task, spec.n, seed=spec.seed or 0, split=spec.split)
            self._task = (spec, made)
        return self._task[1]

    def clear(self) -> None:
        """Forgets the model before another is loaded, so that two are never held."""
        self._lens = self._task = None
        gc.collect()

    def run(self, unit: Unit) -> Outcome:
        """Computes every cell of the unit; those that cannot be computed are told in ``Outcome.failed``.

        Raises:
            MechlabError: model or task cannot be had, or are no longer what the cells were planned for.
        """
        lens = self.lens_of(unit.group)
        task = self.task(lens, unit.group.task)
        _check_same(unit.group, lens, task)
        outcome = Outcome(unit)
        _Call(lens, task, unit.group, outcome).measure(unit.cells)
        return outcome


def _check_same(group: Group, lens: Lens, task: Task) -> None:
    if lens.model.fingerprint != group.fingerprint:
        raise ModelError(
            f"Model {group.model!r} has the fingerprint {lens.model.fingerprint} and its cells were planned for {group.fingerprint}: "
            "run the plan again, which plans cells for the model that is there now."
        )
    if task_hash(task) != group.task_hash:
        raise PromptError(
            f"Task {group.task.task!r} makes other prompts than when its cells were planned: run the plan again."
        )


@dataclass(frozen=True)
class _Call:
    lens: Lens
    task: Task
    group: Group
    outcome: Outcome

    def measure(self, cells: tuple[tuple[int, str], ...]) -> None:
        start = time.perf_counter()
        try:
            self._effects(cells)
        except Exception as error:  # whatever a cell raises is that cell's result: the other cells go on
            if _was_interrupted(error):
                raise KeyboardInterrupt from error
            reason = _reason(error)
        else:
            return
        finally:
            self.outcome.engine_seconds += time.perf_counter() - start
        if "memory" in reason.lower():
            _free_memory()  # now that the error is gone, which held the frames and their tensors
        if len(cells) == 1:
            self.outcome.failed[cells[0][0]] = reason
            return
        middle = len(cells) // 2
        self.measure(cells[:middle])
        self.measure(cells[middle:])

    def _effects(self, cells: tuple[tuple[int, str], ...]) -> None:
        interventions: list[Edits] = [[Edit.from_dict(one) for one in json.loads(text)] for _, text in cells]
        found = self.lens.effects(self.task, interventions, self.group.metric, base=self.group.base)
        after = _matrix(found, "after", len(cells))
        self.outcome.values |= {cell: after[i].tobytes() for i, (cell, _) in enumerate(cells)}
        if self.outcome.sides is None:
            clean, corrupted = (_matrix(found, name, len(cells))[0] for name in ("clean", "corrupted"))
            self.outcome.sides = (clean.tobytes(), corrupted.tobytes())


def _matrix(found: Effects, column: str, n: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """``[interventions, prompts]``."""
    ordered = found.frame.sort_values(["intervention", "prompt"], kind="stable")
    return ordered[column].to_numpy(dtype="<f8").reshape(n, -1)


def _was_interrupted(error: BaseException | None) -> bool:
    """Foreign code can turn an interrupt into an error of its own."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "no message")
    return f"{type(error).__name__}: {line}"


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
