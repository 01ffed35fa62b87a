"""Training kept in a folder, so that a stopped run goes on: weights, the optimizer's moments, and the curves so far.

A folder belongs to one recipe (its name is a hash of it). The JSON file is written last, renamed into place, and names the weights that
belong to it; whatever a stopped process left half-written is never read.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechlab.errors import StoreError
from mechlab.models.cache import cache_root

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, eq=False)
class Kept:
    """What a folder holds.

    Attributes:
        step: steps done.
        finished: no step is left to do.
        weights: by name.
        moments: the optimizer's state by parameter name.
        curves: one record per checkpoint, JSON-ready.
    """

    step: int
    finished: bool
    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    curves: list[Any]


def training_folder(written: str | None) -> Path:
    """Where trainings are kept: the folder that was named, or one in the cache."""
    return Path(written).expanduser() if written else cache_root() / "training"


def home(folder: Path, recipe: "DataclassInstance", *more: str) -> Path:
    """The folder of this recipe: a hash over its kind, its fields, what ``more`` decides the numbers, and torch's version."""
    text = json.dumps([type(recipe).__name__, asdict(recipe), *more, torch.__version__], sort_keys=True)
    return folder / hashlib.sha256(text.encode()).hexdigest()[:16]


def keep(
    at: Path,
    step: int,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Mapping[str, Tensor]],
    curves: list[Any],
    *,
    finished: bool,
) -> None:
    """Writes the state after ``step``: weights and, by their names, the optimizer's moments."""
    at.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    tensors |= {f"{name}#{key}": one.detach().clone() for name, own in moments.items() for key, one in own.items()}
    file = at / f"step{step}.safetensors"
    save_file(tensors, file)
    waiting = at / "state.json.new"
    waiting.write_text(json.dumps({"step": step, "finished": finished, "curves": curves, "weights": file.name}))
    os.replace(waiting, at / "state.json")  # noqa: PTH105 (atomic on every system)
    for old in at.glob("step*.safetensors"):
        if old != file:
            old.unlink()


def kept(at: Path) -> Kept | None:
    """The state in the folder; None where there is none.

    Raises:
        StoreError: a state that cannot be read.
    """
    state = at / "state.json"
    if not state.is_file():
        return None
    try:
        saved: dict[str, Any] = json.loads(state.read_text())
        tensors = load_file(at / Path(saved["weights"]).name)
        moments: dict[str, dict[str, Tensor]] = {}
        for name in [name for name in tensors if "#" in name]:
            parameter, _, key = name.partition("#")
            moments.setdefault(parameter, {})[key] = tensors.pop(name)
        return Kept(int(saved["step"]), bool(saved["finished"]), tensors, moments, list(saved["curves"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise unreadable(at, error) from error


def unreadable(at: Path, error: Exception) -> StoreError:
    """What to say of a folder whose state cannot be used."""
    return StoreError(f"The training folder {str(at)!r} cannot be read ({error}): delete it to train anew.")


def moments_of(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state by the names of its parameters, given in order."""
    state = optimizer.state_dict()["state"]
    return {names[index]: {key: torch.as_tensor(one) for key, one in own.items()} for index, own in state.items()}


def put_back(found: Kept, optimizer: torch.optim.Optimizer, names: list[str]) -> None:
    """Gives the optimizer its moments again; ``names`` are its parameters, in order."""
    state = {index: found.moments[name] for index, name in enumerate(names) if name in found.moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
