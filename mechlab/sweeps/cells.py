"""Cells and what they are called. A cell is one intervention on one group's prompts; its key is a hash of all that decides its values.

A group is what cells share: model (fingerprint and dtype), prompts with answers, base and metric. Units of work and their outcomes are
plain data, so that any executor can carry them. Nothing here imports torch.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mechlab.sweeps.plan import Base, TaskSpec

if TYPE_CHECKING:
    from mechlab.patching.task import Task

RULES = 1
"""Of how identities are made: another number, other keys."""
KEY_BYTES = 16


@dataclass(frozen=True)
class Group:
    """What cells share.

    Attributes:
        model, revision, prepend_bos, task: by which name model and prompts are found; not part of the identity.
        fingerprint, dtype: of the model.
        task_hash: of token ids, answers, foils and position labels.
        prompts: how many.
    """

    model: str
    fingerprint: str
    dtype: str
    prepend_bos: bool | None
    task: TaskSpec
    task_hash: str
    prompts: int
    base: Base
    metric: str
    revision: str | None = None

    @property
    def key(self) -> bytes:
        """16 bytes."""
        identity = [RULES, self.fingerprint, self.dtype, self.task_hash, self.base, self.metric]
        return _digest(json.dumps(identity).encode())

    def to_json(self) -> str:
        return json.dumps({**self.__dict__, "task": self.task.model_dump()}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Group":
        record: dict[str, Any] = json.loads(text)
        record["task"] = TaskSpec.model_validate(record["task"])
        return Group(**record)


def cell_key(group_key: bytes, edits: str) -> bytes:
    """16 bytes from a group and its edits as canonical JSON."""
    return _digest(group_key + edits.encode())


def edits_json(edits: list[dict[str, Any]]) -> str:
    """Canonical text of edits: equal edits, equal text."""
    return json.dumps(edits, sort_keys=True, separators=(",", ":"))


def task_hash(task: "Task") -> str:
    """Hash of what a task asks: token ids of both sides, answers, foils, labelled positions."""
    sides = [
        [side.sha256, {k: list(at) for k, at in sorted(side.labels.items())}] for side in (task.clean, task.corrupted)
    ]
    identity = json.dumps([sides, task.answers.tolist(), task.foils.tolist()])
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Unit:
    """Work for one engine call: cells of one group, as (number in the store, edits)."""

    group_id: int
    group: Group
    cells: tuple[tuple[int, str], ...]

    def halves(self) -> list["Unit"]:
        """The same work in two units."""
        middle = len(self.cells) // 2
        return [Unit(self.group_id, self.group, part) for part in (self.cells[:middle], self.cells[middle:])]


@dataclass
class Outcome:
    """What came of a unit.

    Attributes:
        values: cell -> the metric at each prompt after the edits, float64 bytes (SQLite would turn NaN into NULL).
        failed: cell -> what went wrong, in one line.
        sides: clean and corrupted values of the group's prompts, float64 bytes; None where every cell failed.
        engine_seconds: spent in engine calls.
    """

    unit: Unit
    values: dict[int, bytes] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    sides: tuple[bytes, bytes] | None = None
    engine_seconds: float = 0.0


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:KEY_BYTES]
