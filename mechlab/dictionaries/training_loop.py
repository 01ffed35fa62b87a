"""The loop around sae-lens's trainer: our batches and progress, and checkpoints that survive a kill.

The steps are sae-lens's own (``SAETrainer.step``), as its multi-SAE trainer calls them.
"""

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechlab.errors import MechlabError, StoreError
from mechlab.results.study import Progress

_RUN, _WEIGHTS = "run.json", "weights.safetensors"


@dataclass(frozen=True)
class Checkpoints:
    """Where a training run keeps its state: a hidden folder beside the result, gone when the result is there.

    Attributes:
        every: steps between two checkpoints. run: what identifies the run; a checkpoint of another is refused.
    """

    folder: Path
    every: int
    run: dict[str, Any]

    @staticmethod
    def beside(result: Path, every: int, run: dict[str, Any]) -> "Checkpoints":
        return Checkpoints(result.parent / f".{result.name}.training", every, json.loads(json.dumps(run)))

    def newest(self) -> Path | None:
        """The folder of the last checkpoint. Raises MechlabError for one of another run."""
        whole = sorted(self.folder.glob("step-*"))
        if not whole:
            return None
        there = json.loads((whole[-1] / _RUN).read_text(encoding="utf-8"))
        if there != self.run:
            changed = ", ".join(k for k in self.run if there.get(k) != self.run[k])
            raise MechlabError(
                f"{self.folder} has a checkpoint of another run (other {changed}): train into another folder, or pass resume=False."
            )
        return whole[-1]

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, trainer: Any) -> None:
        """Writes the state under a hidden name and renames it; older checkpoints go."""
        from safetensors.torch import save_file

        name = f"step-{trainer.n_training_steps:08d}"
        beside = self.folder / f".{name}.tmp-{secrets.token_hex(4)}"
        try:
            beside.mkdir(parents=True)
            state: dict[str, Tensor] = trainer.sae.state_dict()
            save_file({key: value.contiguous() for key, value in state.items()}, beside / _WEIGHTS)
            trainer.save_trainer_state(beside)
            (beside / _RUN).write_text(json.dumps(self.run), encoding="utf-8")
            beside.replace(self.folder / name)
        except OSError as error:
            raise StoreError(
                f"Checkpoint {beside} cannot be written ({error.strerror or error}): free some space."
            ) from error
        for old in (*self.folder.glob("step-*"), *self.folder.glob(".step-*")):
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)

    def load(self, trainer: Any, checkpoint: Path) -> None:
        from safetensors.torch import load_file

        trainer.sae.load_state_dict(load_file(checkpoint / _WEIGHTS))
        trainer.load_trainer_state(checkpoint)  # torch.load with weights_only, the default


def run(
    trainer: Any,
    batches: Callable[[int], Iterator[Tensor]],
    checkpoints: Checkpoints,
    *,
    resume: bool,
    progress: Progress | None,
    after_step: Callable[[], None] | None = None,
) -> None:
    """Trains to the end, from the newest checkpoint if there is one and ``resume``.

    Args:
        batches: number of batches to pass over -> the batches from there on.
    """
    if not resume:
        checkpoints.discard()
    elif (newest := checkpoints.newest()) is not None:
        checkpoints.load(trainer, newest)
    steps = trainer.cfg.total_training_steps
    stream = batches(trainer.n_training_steps)
    while trainer.n_training_steps < steps:
        output = trainer.step(next(stream))
        if after_step:
            after_step()
        trainer.n_training_steps += 1
        loss = float(output.loss.detach())
        if not torch.isfinite(torch.tensor(loss)):
            raise MechlabError(f"The loss is {loss} at step {trainer.n_training_steps}: lower lr, or raise warm_up.")
        if progress:
            progress(f"training (loss {loss:.4g})", trainer.n_training_steps, steps)
        if trainer.n_training_steps % checkpoints.every == 0 and trainer.n_training_steps < steps:
            checkpoints.save(trainer)
