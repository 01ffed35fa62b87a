"""``mechlab ablate``: the common sweep in one line."""

from typing import Annotated

import typer

from apps.cli.options import DEFAULT_MODEL, Device, Json, Revision, TrustRemoteCode
from apps.cli.output import Answer, table
from apps.cli.sweep import DEFAULT_SWEEPS, Address, Engine, Means, SweepOut, Workers, run_plan, swept_answer

_SHOWN = 10


def ablate(
    task: Annotated[str, typer.Option("--task", help="A task, or a file of pairs.")],
    model: Annotated[str, typer.Option("--model", metavar="NAME[@random[:SEED]]", help="The model.")] = DEFAULT_MODEL,
    heads: Annotated[
        str | None, typer.Option("--heads", metavar="GRID", help="all, or LAYERS.HEADS as in 0-5.* or 9.6,9")
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option("--sites", metavar="GRID", help='Any grid, as in "mlp_out[*]@END", instead of --heads.'),
    ] = None,
    verb: Annotated[str, typer.Option("--verb", help="zero, mean, resample or patch.")] = "mean",
    over: Annotated[
        str, typer.Option("--over", help="mean: over tokens, or over prompts position by position.")
    ] = "tokens",
    metric: Annotated[str, typer.Option("--metric", help="What is measured.")] = "logit_difference",
    n: Annotated[int, typer.Option("--n", min=1, help="Prompt pairs.")] = 32,
    seed: Annotated[int, typer.Option("--seed", help="Of the prompts, and of resampling.")] = 0,
    base: Annotated[str, typer.Option("--base", help="The side that is edited: clean or corrupted.")] = "clean",
    out: SweepOut = DEFAULT_SWEEPS,
    workers: Workers = None,
    engine: Engine = "local",
    address: Address = None,
    device: Device = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    _json: Json = False,
) -> Answer:
    """Ablate every site of a grid on a task: which matter?"""
    from mechlab.sweeps.plan import PlanError, parse_plan

    if heads is not None and sites is not None:
        raise PlanError(f"Both --heads {heads} and --sites {sites} are given: give one.")
    grid = sites or f"z[{'*.*' if heads in (None, 'all') else heads}]"
    intervention: dict[str, object] = {"sites": grid, "verb": verb}
    if verb == "mean":
        intervention["over"] = over
    plan = parse_plan(
        {
            "name": f"{verb} {grid} on {task}",
            "models": model,
            "revision": revision,
            "tasks": {"task": task, "n": n},
            "interventions": intervention,
            "metrics": metric,
            "base": base,
            "seeds": seed,
        },
        "The sweep",
    )
    means = Means(workers, engine, address, device, trust_remote_code=trust_remote_code)
    done = run_plan(plan, out, means)
    return _with_strongest(swept_answer(done, out), done.plans[0], out)


def _with_strongest(answer: Answer, plan: int, out: str) -> Answer:
    """The answer with the cells that changed the metric most."""
    from mechlab.results.report import plain
    from mechlab.results.wording import interval_text, three_digits
    from mechlab.sweeps.export import group_effects
    from mechlab.sweeps.store import CellStore

    with CellStore(out, must_exist=True) as store:
        groups = [group for group in store.groups(plan) if any(store.done(group, plan))]
        if not groups:
            return answer
        found = group_effects(store, groups[0], plan).summary()
    order = found["change"].abs().sort_values(ascending=False, kind="stable").index[:_SHOWN]
    strongest = found.loc[order, ["site", "verb", "before", "after", "change", "change_low", "change_high"]]
    records = strongest.to_dict("records")
    rows = [
        (
            one["site"],
            one["verb"],
            *(three_digits(one[name]) for name in ("before", "after", "change")),
            interval_text(one["change_low"], one["change_high"]),
        )
        for one in records
    ]
    shown = table(
        "site", "verb", "before", "after", "change", "95 % interval", rows=rows, right=["before", "after", "change"]
    )
    assert isinstance(answer.document, dict)
    return Answer({**answer.document, "strongest": plain(records)}, [shown, "", *answer.view])
