"""Manifests: what one run on disk says about itself. Reading one needs neither pandas nor plotly."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mechlab.errors import StoreError
from mechlab.results.provenance import ModelInfo, Provenance
from mechlab.results.report import KEY

SCHEMA = 1
MANIFEST = "manifest.json"


class Item(BaseModel):
    """A table or figure of a run; ``table`` is the key of the table a figure draws, empty for tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(pattern=rf"^(?:{KEY.pattern})$")  # it becomes a path: nothing but a plain file name may pass
    title: str
    note: str
    table: str = ""


class Manifest(BaseModel):
    """A run on disk.

    Attributes:
        schema_number: of the layout of the folder, ``SCHEMA`` when this version wrote it; "schema" in the file.
        name: the run's folder.
        created: UTC, ISO 8601.
        study, title, summary_text, paper, config, model, provenance: as in `Report`.
        verdicts: number of findings of each verdict.
        tables, figures: in reading order.
        files: size in bytes of every other file, by its path inside the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_number: int = Field(alias="schema")
    name: str
    created: str
    study: str
    title: str
    summary_text: str
    paper: str
    config: dict[str, object]
    model: ModelInfo
    provenance: Provenance
    verdicts: dict[str, int]
    tables: tuple[Item, ...]
    figures: tuple[Item, ...]
    files: dict[str, int]

    def as_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(self.model_dump(by_alias=True), ensure_ascii=False, indent=2, allow_nan=False)


def read_manifest(run: Path) -> Manifest:
    """The manifest of a run folder, with every file it lists present in full.

    Raises:
        StoreError: no run, a newer schema, a manifest that does not read, or a file missing or of another size.
    """
    path = run / MANIFEST
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{run} is not a run: it has no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}): restore it, or delete the run.") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(schema, int):
        raise StoreError(f"{path} has no schema number: it is not a manifest that mechlab wrote.")
    if schema > SCHEMA:
        raise StoreError(
            f"{run.name} was written with schema {schema}, and this mechlab reads up to {SCHEMA}: upgrade mechlab to open it."
        )
    try:
        manifest = Manifest.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{path} is damaged at {where!r} ({first['msg']}): restore it, or delete the run.") from error
    _check_files(run, manifest)
    return manifest


def _check_files(run: Path, manifest: Manifest) -> None:
    for name, size in manifest.files.items():
        path = run / name
        if not path.is_file():
            raise StoreError(f"Run {run.name} lacks its file {name}: restore it, or delete the run.")
        if path.stat().st_size != size:
            raise StoreError(
                f"Run {run.name} has a file {name} of {path.stat().st_size} bytes where its manifest says {size}: "
                "it was changed or cut short; restore it, or delete the run."
            )
