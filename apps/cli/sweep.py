"""``mechlab sweep``: many cells from a plan, in a store that survives being killed."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import RenderableType
from typer.core import TyperGroup

from apps.cli.options import Device, Json, TrustRemoteCode
from apps.cli.output import Answer, table, tell
from apps.cli.progress import duration, reporter
from mechlab.errors import MechlabError

if TYPE_CHECKING:
    from mechlab.sweeps.estimate import Estimate
    from mechlab.sweeps.executors import Executor
    from mechlab.sweeps.plan import SweepPlan
    from mechlab.sweeps.run import Settings, Swept

MAKE_TASK = "circuits.tasks.catalogue:make_task"
"""Who makes the tasks that plans name."""
DEFAULT_SWEEPS = "sweeps"
_PLANS = (".yaml", ".yml", ".json")
_SHOWN = 10

Store = Annotated[str, typer.Argument(metavar="STORE", help="The folder of a sweep store.")]
SweepOut = Annotated[str, typer.Option("--out", metavar="STORE", help="The folder where cells are kept.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        help="Processes, each with the model.  [default: 1; with --engine ray, one per device]",
    ),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(
        "--engine", help="local: on this machine. ray: on a Ray cluster, or a Ray started here for the time of it."
    ),
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="With --engine ray: of a running cluster, or auto."),
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Try cells again that failed before.")]


@dataclass(frozen=True)
class Means:
    """What a sweep is run with, as its options say."""

    workers: int | None = None
    engine: str = "local"
    address: str | None = None
    device: str = "auto"
    retry_failed: bool = False
    trust_remote_code: bool = False

    def settings(self) -> "Settings":
        from mechlab.sweeps.run import Settings

        return Settings(
            MAKE_TASK,
            workers=self.workers or 1,
            device=self.device,
            retry_failed=self.retry_failed,
            trust_remote_code=self.trust_remote_code,
        )

    def executor(self) -> "Executor | None":
        """None for this machine, where the settings say how many processes."""
        if self.engine == "ray":
            from mechlab.sweeps.ray_executor import RayExecutor

            return RayExecutor(
                MAKE_TASK, self.address, self.device, self.workers, trust_remote_code=self.trust_remote_code
            )
        if self.address is not None:
            raise MechlabError(
                f"--address {self.address} names a Ray cluster and the engine is {self.engine!r}: add --engine ray."
            )
        return None


class PlanOrCommand(TyperGroup):
    """``mechlab sweep PLAN`` is ``mechlab sweep run PLAN``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = any(arg in self.commands for arg in args)
        if not named and any(arg.lower().endswith(_PLANS) for arg in args):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=PlanOrCommand, no_args_is_help=True, help="Compute many interventions from a plan; resumable.")


@app.command("run")
def run(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan in YAML or JSON.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would compute and cost.")] = False,
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    retry_failed: Retry = False,
    out: SweepOut = DEFAULT_SWEEPS,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    _json: Json = False,
) -> Answer:
    """Compute the cells of a plan that the store lacks (also: mechlab sweep PLAN)."""
    from mechlab.sweeps.plan import read_plan

    asked = read_plan(plan)
    if dry_run:
        return dry(asked, out, device, trust_remote_code)
    means = Means(workers, engine, address, device, retry_failed, trust_remote_code)
    return swept_answer(run_plan(asked, out, means), out)


@app.command("resume")
def resume(
    store: Store = DEFAULT_SWEEPS,
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    retry_failed: Retry = False,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    _json: Json = False,
) -> Answer:
    """Compute what still waits in a store, of all its plans."""
    from mechlab.sweeps.run import resume as go_on

    means = Means(workers, engine, address, device, retry_failed, trust_remote_code)
    with reporter() as progress, resumable(store):
        done = go_on(store, means.settings(), executor=means.executor(), progress=progress)
    return swept_answer(done, store)


@app.command("status")
def status(store: Store = DEFAULT_SWEEPS, _json: Json = False) -> Answer:
    """Show what is done, failed and waiting in a store."""
    from mechlab.sweeps.store import CellStore

    with CellStore(store, must_exist=True) as cells:
        total, failures = cells.counts(), cells.failures()
        plans = [
            (plan.name, cells.counts([number]), cells.is_laid_out(number)) for number, plan in cells.plans().items()
        ]
    document = {
        "store": str(Path(store).resolve()),
        "cells": vars(total),
        "plans": [{"name": name, "laid_out": whole, **vars(counts)} for name, counts, whole in plans],
        "failures": [{"edits": edits, "error": error} for edits, error in failures],
    }
    rows = [
        (name, counts.total, counts.done, counts.failed, counts.waiting, "" if whole else "not laid out in full yet")
        for name, counts, whole in plans
    ]
    numbers = ("cells", "done", "failed", "waiting")
    view: list[RenderableType] = [table("plan", *numbers, "", rows=rows, right=numbers), *_told_failures(failures)]
    if total.waiting or not all(whole for _, _, whole in plans):
        view.append(f"\nGo on with: mechlab sweep resume {store}")
    return Answer(document, view)


@app.command("export")
def export(
    store: Store = DEFAULT_SWEEPS,
    to: Annotated[str, typer.Option("--to", metavar="FILE", help="The Parquet file.")] = "sweep.parquet",
    summary: Annotated[
        bool, typer.Option("--summary", help="One row per cell with 95 % intervals, not one per cell and prompt.")
    ] = False,
    _json: Json = False,
) -> Answer:
    """Write the finished cells to a Parquet file."""
    from mechlab.sweeps.export import export as write
    from mechlab.sweeps.store import CellStore

    with CellStore(store, must_exist=True) as cells:
        rows, counts = write(cells, to, summary=summary), cells.counts()
    left = "" if counts.done == counts.total else f"; {counts.waiting} cells wait and {counts.failed} failed"
    path = Path(to).expanduser().resolve()
    document = {"path": str(path), "rows": rows, "cells": vars(counts)}
    return Answer(document, [f"{rows:,} rows of {counts.done:,} cells: {path}{left}"])


@app.command("compare")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A sweep store, or a file of `mechlab sweep export`.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    _json: Json = False,
) -> Answer:
    """Put the cells that two sweeps share side by side."""
    from mechlab.results.report import plain
    from mechlab.results.wording import three_digits
    from mechlab.sweeps.export import compare as side_by_side

    both = side_by_side(a, b)
    largest = float(both["difference"].abs().max())
    correlation = float(both["change_a"].corr(both["change_b"])) if len(both) > 1 else float("nan")
    document = {
        "cells": len(both),
        "largest_difference": largest,
        "correlation": plain(correlation),
        "largest": plain(both.head(_SHOWN).to_dict("records")),
    }
    rows = [
        (
            one["task"],
            _short(one["edits"]),
            *(three_digits(one[name]) for name in ("change_a", "change_b", "difference")),
        )
        for one in both.head(_SHOWN).to_dict("records")
    ]
    numbers = ("change A", "change B", "B - A")
    return Answer(
        document,
        [
            table("task", "edits", *numbers, rows=rows, right=numbers),
            f"\n{len(both):,} cells in both: largest difference {three_digits(largest)}, correlation {three_digits(correlation)}.",
        ],
    )


def dry(asked: "SweepPlan", out: str, device: str, trust_remote_code: bool = False) -> Answer:
    """What a plan would compute and cost."""
    with reporter() as progress:
        progress.stage("loading models and laying out the plan")
        from mechlab.sweeps.estimate import estimate
        from mechlab.sweeps.work import Bench

        found = list(estimate(asked, out, Bench(MAKE_TASK, device, trust_remote_code)))
    document = {"plan": asked.name, "groups": [one.as_dict() for one in found], "total": _total(found)}
    rows = [_estimate_row(one) for one in found]
    numbers = ("prompts", "cells", "done", "failed", "to do", "forwards", "computed", "GFLOP", "saved", "MiB")
    total = _total(found)
    return Answer(
        document,
        [
            table("model", "task", "seed", "metric", *numbers, rows=rows, right=numbers),
            f"\n{total['cells']:,} cells, {total['to_do']:,} to compute: {total['flops'] / 1e9:,.0f} GFLOP, at least "
            f"{duration(total['seconds'])} with one worker. Nothing was run.",
        ],
    )


def run_plan(asked: "SweepPlan", out: str, means: Means) -> "Swept":
    """Runs a plan with progress, and says how to go on where it is stopped."""
    work = means.executor()
    with reporter() as progress, resumable(out):
        progress.stage("loading models and laying out the plan")
        from mechlab.sweeps.run import sweep as compute

        return compute(asked, out, means.settings(), executor=work, progress=progress)


@contextmanager
def resumable(store: str) -> Generator[None]:
    """After Ctrl-C the user is told how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        tell(f"The sweep was stopped: finished cells are in {store}; go on with `mechlab sweep resume {store}`.")
        raise


def swept_answer(done: "Swept", store: str) -> Answer:
    """How a sweep ended."""
    from mechlab.sweeps.store import CellStore

    for note in done.notes:
        tell(note)
    with CellStore(store, must_exist=True) as cells:
        failures = cells.failures() if done.counts.failed else []
    document = {
        "store": str(Path(store).expanduser().resolve()),
        "cells": vars(done.counts),
        "computed": done.computed,
        "failed_now": done.failed_now,
        "engine_seconds": done.engine_seconds,
        "notes": list(done.notes),
        "failures": [{"edits": edits, "error": error} for edits, error in failures],
    }
    counts = done.counts
    view: list[RenderableType] = [
        f"{counts.total:,} cells: {done.computed:,} computed now, {counts.done - done.computed:,} before, {counts.failed:,} failed. "
        f"Store: {store}",
        *_told_failures(failures),
    ]
    if counts.failed:
        view.append(f"\nTry them again with: mechlab sweep resume {store} --retry-failed")
    view.append(f"Table: mechlab sweep export {store} --to sweep.parquet")
    return Answer(document, view)


def _told_failures(failures: list[tuple[str, str]]) -> list[RenderableType]:
    if not failures:
        return []
    return [table("failed cell", "why", rows=[(_short(edits), error) for edits, error in failures[:_SHOWN]])]


def _short(edits: str) -> str:
    """``zero L5H3 + zero L5H4``, from an intervention's text."""
    import json

    parts = [f"{one['verb']} {one['site']}" for one in json.loads(edits)]
    return " + ".join(parts[:3]) + (f" + {len(parts) - 3} more" if len(parts) > 3 else "")


def _estimate_row(one: "Estimate") -> tuple[object, ...]:
    saved = f"{one.full_flops / one.flops:.1f}x" if one.flops else "–"
    counts = (one.cells, one.done, one.failed, one.to_do, one.forwards, one.rows)
    return (
        one.model,
        one.task,
        one.seed,
        one.metric,
        one.prompts,
        *(f"{number:,}" for number in counts),
        f"{one.flops / 1e9:,.0f}",
        saved,
        f"{one.memory_bytes / 2**20:,.0f}",
    )


def _total(found: "list[Estimate]") -> dict[str, Any]:
    summed = ("cells", "done", "failed", "to_do", "forwards", "rows", "flops", "full_flops", "seconds")
    total = {name: sum(getattr(one, name) for one in found) for name in summed}
    return {**total, "memory_bytes": max((one.memory_bytes for one in found), default=0)}
