"""``mechlab studies``: what can be run, and each study's settings."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from apps.cli.options import Json
from apps.cli.output import Answer, table
from apps.cli.progress import reporter
from apps.studies import STUDIES, entry, study

if TYPE_CHECKING:
    from mechlab.results.study import Study


def studies(
    name: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Show this study's settings.")] = None,
    _json: Json = False,
) -> Answer:
    """List the studies, or the settings of one."""
    if name is None:
        document = [{"name": one.name, "paper": one.paper, "line": one.line} for one in STUDIES]
        rows = [(one.name, one.line, one.paper) for one in STUDIES]
        return Answer(document, [table("study", "what it asks", "paper", rows=rows)])
    entry(name)
    with reporter() as progress:
        progress.stage(f"reading study {name}")
        return _settings(study(name))


def _settings(chosen: "Study") -> Answer:
    from mechlab.results.report import plain
    from mechlab.results.study import type_text

    settings = [
        {
            "name": key,
            "type": type_text(field.annotation),
            "default": plain(field.get_default(call_default_factory=True)),
            "description": field.description or "",
        }
        for key, field in chosen.settings.model_fields.items()
    ]
    document = {"name": chosen.name, "paper": chosen.paper, "line": chosen.line, "settings": settings}
    rows = [(one["name"], one["type"], _typed(one["default"]), one["description"]) for one in settings]
    return Answer(
        document,
        [
            Text(f"{chosen.name}: {chosen.title}\n{chosen.paper}\n{chosen.line}\n"),
            table("setting", "takes", "default", "what it is", rows=rows),
            f"\nChange one with: mechlab run {chosen.name} --set KEY=VALUE",
        ],
    )


def _typed(value: object) -> str:
    """A default as one would type it."""
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
