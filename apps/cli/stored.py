"""``mechlab runs`` and ``mechlab show``: what is in a store."""

from pathlib import Path
from typing import Annotated

import typer

from apps.cli.findings import page_of, report_view
from apps.cli.options import DEFAULT_STORE, Json, Out
from apps.cli.output import Answer, table, tell


def runs(out: Out = DEFAULT_STORE, _json: Json = False) -> Answer:
    """List the runs of a store, newest first."""
    from mechlab.results.store import Store

    store = Store(Path(out).expanduser())
    found = store.runs()
    for problem in store.problems():
        tell(problem)
    document = [
        {
            "name": one.name,
            "study": one.study,
            "model": one.model.name,
            "created": one.created,
            "verdicts": one.verdicts,
            "path": str((store.root / one.name).resolve()),
        }
        for one in found
    ]
    if not found:
        return Answer(document, [f"No runs in {store.root}: make one with `mechlab run ioi`."])
    verdicts = {one.name: ", ".join(f"{count} {verdict}" for verdict, count in one.verdicts.items()) for one in found}
    rows = [(one.name, one.study, one.model.name, one.created, verdicts[one.name]) for one in found]
    return Answer(document, [table("run", "study", "model", "made (UTC)", "findings", rows=rows)])


def show(
    name: Annotated[str, typer.Argument(metavar="RUN", help="One of `mechlab runs`.")],
    out: Out = DEFAULT_STORE,
    html: Annotated[bool, typer.Option("--html", help="Print only where the HTML report is.")] = False,
    _json: Json = False,
) -> Answer:
    """Show the findings of a run."""
    from mechlab.results.store import Store

    store = Store(Path(out).expanduser())
    report, folder = store.load(name), store.root / name
    page = page_of(folder).resolve()
    if html:
        return Answer({"html": str(page)}, [str(page)])
    return Answer(report.as_dict(str(folder.resolve())), report_view(report, folder))
