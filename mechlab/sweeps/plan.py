"""Plans: what a sweep is to compute, as data. Written in YAML, JSON or Python; read without torch.

name: heads of IOI
models: [smollm2-135m]
tasks: [{task: ioi, n: 32, split: discovery}]
interventions:
  - {sites: "z[*.*]", verb: [zero, mean], over: tokens}
  - {sites: "resid_pre[0-9]@S1,S2,END", verb: patch}
metrics: [logit_difference]
base: clean
seeds: [0, 1]
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError

from mechlab.errors import MechlabError

Base = Literal["clean", "corrupted"]


class PlanError(MechlabError):
    """A plan that cannot be read, or that asks for what is not there."""


def _listed(value: object) -> object:
    """One of several may be written without a list."""
    return (value,) if isinstance(value, str | int | Mapping) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
_PLAIN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskSpec(BaseModel):
    """Prompts, by the name of what makes them.

    Attributes:
        task: a name or a file that the task maker knows.
        n: prompt pairs.
        seed: of the prompts; None for each of the plan's ``seeds`` in turn.
        split: the half of the material that prompts are made from.
    """

    model_config = _PLAIN

    task: str
    n: PositiveInt = 32
    seed: int | None = None
    split: Literal["all", "discovery", "evaluation"] = "all"


class Intervention(BaseModel):
    """A grid of sites and what is done at each: one cell per site and verb.

    Attributes:
        sites: grids (see ``mechlab.sweeps.grid``) or sites, ``z[*.*]``, ``L5H3@-1``.
        verb: one or several verbs of an Edit.
        together: all sites are edited at once, as one cell per verb.
        source: the run that values come from; where the verb needs one and none is named, the side of the task that is not the base.
        source_pos, value, strength, low, high, basis, over, state, weight, renormalise: fields of Edit (``mechlab.lens.edit``).
    """

    model_config = _PLAIN

    sites: Words
    verb: Words
    together: bool = False
    source: str | None = None
    source_pos: int | str | None = None
    value: Any = None
    strength: float = 1.0
    low: float | None = None
    high: float | None = None
    basis: Any = None
    over: Literal["prompts", "tokens"] = "prompts"
    state: Literal["off", "drop", "on"] | None = None
    weight: float | None = None
    renormalise: bool = True

    @property
    def edit_fields(self) -> dict[str, Any]:
        """The fields of Edit that were given."""
        return self.model_dump(exclude={"sites", "verb", "together"}, exclude_defaults=True)


class SweepPlan(BaseModel):
    """Models x tasks x seeds x metrics x interventions.

    Attributes:
        name: for people.
        models: as ``mechlab.load`` takes them.
        dtype, revision, prepend_bos: how every model is loaded and its prompts are tokenised. A plan cannot allow code that comes with a
            model to run: that is asked of whoever runs it.
        base: the side of the task that is edited.
        seeds: each task without a seed of its own is made with each of these; ``resample`` draws with them too.
    """

    model_config = _PLAIN

    name: str = "sweep"
    models: Words
    dtype: str = "float32"
    revision: str | None = None
    prepend_bos: bool | None = None
    tasks: Annotated[tuple[TaskSpec, ...], BeforeValidator(_listed), Field(min_length=1)]
    interventions: Annotated[tuple[Intervention, ...], BeforeValidator(_listed), Field(min_length=1)]
    metrics: Words = ("logit_difference",)
    base: Base = "clean"
    seeds: Annotated[tuple[int, ...], BeforeValidator(_listed), Field(min_length=1)] = (0,)

    def seeded_tasks(self) -> tuple[TaskSpec, ...]:
        """Every task with a seed, each once."""
        specs = (
            spec if spec.seed is not None else spec.model_copy(update={"seed": seed})
            for spec in self.tasks
            for seed in self.seeds
        )
        return tuple(dict.fromkeys(specs))

    def to_json(self) -> str:
        """Canonical text: equal plans, equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def read_plan(path: str | Path) -> SweepPlan:
    """The plan in a YAML or JSON file. Names that are files or folders beside it are taken as such.

    Raises:
        PlanError: no such file, text that does not parse, or fields that are wrong.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise PlanError(f"{str(path)!r} cannot be read ({why}): give the path of a plan in YAML or JSON.") from error
    return _beside(parse_plan(_record(text, path), path.name), path.parent)


def parse_plan(record: object, name: str = "The plan") -> SweepPlan:
    """A plan from plain data. Raises PlanError, naming the first field that is wrong."""
    if not isinstance(record, Mapping):
        raise PlanError(f"{name} holds no fields: write models, tasks and interventions.")
    try:
        return SweepPlan.model_validate(record)
    except ValidationError as error:
        raise PlanError(_refusal(name, error)) from error


def _record(text: str, path: Path) -> object:
    if path.suffix.lower() == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise PlanError(f"{path.name} is not JSON ({error}): check its brackets and commas.") from error
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise PlanError(f"{path.name} ends in {path.suffix!r}: a plan is a .yaml or a .json file.")
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise PlanError(f"{path.name} is not YAML ({why}): put grids in quotes and check the indentation.") from error


def _beside(plan: SweepPlan, folder: Path) -> SweepPlan:
    """Relative paths are relative to the plan, wherever the sweep is started or resumed."""

    def found(name: str) -> str:
        there = folder / name
        return str(there.resolve()) if there.exists() else name

    tasks = tuple(spec.model_copy(update={"task": found(spec.task)}) for spec in plan.tasks)
    interventions = tuple(
        one.model_copy(update={"sites": tuple(_file_beside(text, found) for text in one.sites)})
        for one in plan.interventions
    )
    models = tuple(found(name) for name in plan.models)
    return plan.model_copy(update={"models": models, "tasks": tasks, "interventions": interventions})


def _file_beside(text: str, found: Any) -> str:
    from mechlab.sweeps.grid import RANKED

    match = RANKED.match(text)
    return text if match is None else text.replace(match["file"], found(match["file"]))


def _refusal(name: str, error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = {*SweepPlan.model_fields, *TaskSpec.model_fields, *Intervention.model_fields}
        near = difflib.get_close_matches(str(first["loc"][-1]), sorted(fields), n=1)
        hint = f"did you mean {near[0]}?" if near else "leave it out."
        return f"{name} has an unknown field {where!r}: {hint}"
    if first["type"] == "missing":
        return f"{name} lacks the field {where!r}: add it."
    return f"{name} has {first['input']!r} at {where!r} ({first['msg']}): correct it."
