"""``mechlab run`` and ``mechlab demo``: a study on a model, into a store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apps.cli.findings import report_view
from apps.cli.options import (
    DEFAULT_MODEL,
    DEFAULT_STORE,
    Device,
    Dtype,
    Json,
    Out,
    PrependBos,
    Revision,
    TrustRemoteCode,
)
from apps.cli.output import Answer
from apps.cli.progress import Reporter, reporter
from apps.studies import entry, study

if TYPE_CHECKING:
    from mechlab.models.model import Model


def run(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="One of `mechlab studies`.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="NAME[@random[:SEED]]", help="A hub id, a folder, a .gguf file or the default."
        ),
    ] = DEFAULT_MODEL,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting; `mechlab studies STUDY` lists them."),
    ] = None,
    out: Out = DEFAULT_STORE,
    run_name: Annotated[
        str | None, typer.Option("--name", metavar="RUN", help="Name of the run.  [default: study, model and time]")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    prepend_bos: PrependBos = None,
    _json: Json = False,
) -> Answer:
    """Run a study on a model and keep its report."""
    from mechlab.models.loading import parse_request
    from mechlab.results.store import Store

    # All that can be refused without the model is refused before it is loaded.
    entry(name)
    parse_request(model)
    store = Store(Path(out).expanduser())
    store.check(run_name)
    with reporter() as progress:
        progress.stage(f"reading study {name}")
        from mechlab.results.study import parse_settings

        chosen = study(name)
        settings = parse_settings(chosen, pairs or [])
        loaded = load_model(model, progress, device, dtype, revision, trust_remote_code)
        from mechlab.lens.lens import Lens

        report = chosen.run(Lens(loaded, prepend_bos=prepend_bos), settings, progress)
        progress.stage("writing the report")
        folder = store.save(report, run_name)
    return Answer(report.as_dict(str(folder.resolve())), report_view(report, folder))


def demo(out: Out = DEFAULT_STORE, _json: Json = False) -> Answer:
    """Run the IOI study on the default model: which attention heads find the indirect object?"""
    return run("ioi", out=out)


def load_model(
    name: str,
    progress: Reporter,
    device: str = "auto",
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> "Model":
    """The model, telling each stage of getting it."""
    progress.stage(f"loading model {name}")
    from mechlab.models.loading import load

    return load(
        name,
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        progress=progress.stage,
    )
