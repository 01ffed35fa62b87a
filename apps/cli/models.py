"""``mechlab models``, ``mechlab check`` and ``mechlab tokens``: what is on this machine, and what a model really does."""

from typing import Annotated

import typer
from rich.text import Text

from apps.cli.options import (
    DEFAULT_MODEL,
    Device,
    Dtype,
    Json,
    ModelName,
    PrependBos,
    Revision,
    TrustRemoteCode,
)
from apps.cli.output import Answer, size_text, table
from apps.cli.progress import reporter
from apps.cli.run import load_model

ABSENT = "not obtained yet: the first run that uses it fetches it (93 MB)"
SOURCES = {"default": "mechlab's cache", "hub": "the Hugging Face cache"}


def models(_json: Json = False) -> Answer:
    """List the models on this machine, with size and source."""
    from mechlab.models.cache import cached_models

    found: list[dict[str, object]] = [
        {
            "name": one.name,
            "default": one.name == DEFAULT_MODEL,
            "obtained": True,
            "size_bytes": one.size_bytes,
            "source": one.source,
            "path": str(one.path),
        }
        for one in cached_models()
    ]
    if not any(one["default"] for one in found):
        absent: dict[str, object] = {"obtained": False, "size_bytes": None, "source": "default", "path": None}
        found.insert(0, {"name": DEFAULT_MODEL, "default": True} | absent)
    rows = [
        (
            f"{one['name']} (default)" if one["default"] else one["name"],
            size_text(int(str(one["size_bytes"]))) if one["obtained"] else "–",
            SOURCES[str(one["source"])] if one["obtained"] else ABSENT,
            one["path"] or "–",
        )
        for one in found
    ]
    return Answer(found, [table("model", "size", "source", "path", rows=rows, right=["size"])])


def check(
    model: ModelName = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: Dtype = "float32",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    prepend_bos: PrependBos = None,
    _json: Json = False,
) -> Answer:
    """Measure whether mechlab sees a model exactly as Hugging Face runs it."""
    with reporter() as progress:
        loaded = load_model(model, progress, device, dtype, revision, trust_remote_code)
        from mechlab.lens.check import parity
        from mechlab.lens.lens import Lens
        from mechlab.results.report import plain
        from mechlab.results.wording import three_digits

        checks = parity(Lens(loaded, prepend_bos=prepend_bos), progress)
    failed = [one.name for one in checks if one.ok is False]
    measured = [{"name": one.name, "value": plain(one.value), "bound": one.bound, "ok": one.ok} for one in checks]
    words = {True: Text("holds", style="green"), False: Text("FAILS", style="bold red"), None: Text("measured")}
    rows = [(one.name, three_digits(one.value), one.bound, words[one.ok]) for one in checks]
    held = sum(one.ok is True for one in checks)
    verdict = (
        f"All {held} bounds hold."
        if not failed
        else f"{len(failed)} of {held + len(failed)} bounds FAIL: {'; '.join(failed)}."
    )
    return Answer(
        {"model": model, "ok": not failed, "checks": measured},
        [table("check", "value", "bound", "", rows=rows, right=["value"]), f"\n{model}: {verdict}"],
    )


def tokens(
    model: ModelName,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The prompt.")],
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    prepend_bos: PrependBos = None,
    _json: Json = False,
) -> Answer:
    """Show the tokens that a model really sees."""
    with reporter() as progress:
        loaded = load_model(model, progress, revision=revision, trust_remote_code=trust_remote_code)
        from mechlab.lens.tokens import tokenize

        seen = tokenize(loaded, text, prepend_bos=prepend_bos)
    ids = [int(token) for token in seen.ids[0, : seen.lengths[0]]]
    pieces = list(seen.pieces[0])
    rows = [(str(at), str(token), repr(piece)) for at, (token, piece) in enumerate(zip(ids, pieces, strict=True))]
    return Answer(
        {"model": model, "text": text, "ids": ids, "pieces": pieces, "length": len(ids)},
        [table("position", "id", "token", rows=rows, right=["position", "id"]), f"\n{len(ids)} tokens."],
    )
