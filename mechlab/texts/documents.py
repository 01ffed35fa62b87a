"""The documents of a text source, one at a time: bundled, files, folders, Hugging Face datasets."""

import json
import lzma
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from mechlab.errors import MechlabError

BUNDLED = "bundled"
_FILES = (".txt", ".jsonl", ".parquet")


def documents(source: str) -> Iterator[str]:
    """Texts of the documents of ``source`` in its own order, read as they are asked for.

    Lines inside a paragraph are joined; paragraphs stay parted by an empty line.

    Args:
        source: ``bundled``; the path of a .txt file (one document), a .jsonl or .parquet file (one document a row, in column ``text`` or
            the only column of text) or a folder of them; ``hf:NAME[:SPLIT][:COLUMN]`` (``train`` and ``text`` unless given), streamed.

    Raises:
        MechlabError: a source, file, dataset, split or column that is not there.
    """
    for text in _raw(source):
        paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
        if joined := "\n\n".join(paragraph for paragraph in paragraphs if paragraph):
            yield joined


def _raw(source: str) -> Iterator[str]:
    if source == BUNDLED:
        return _bundled()
    if source.startswith("hf:"):
        return _dataset(source)
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if path.suffix in _FILES and path.is_file():
        return _file(path)
    raise MechlabError(
        f"Text source {source!r} is unknown: use 'bundled', the path of a {', '.join(_FILES)} file or of a folder of them, "
        "or 'hf:NAME[:SPLIT][:COLUMN]'."
    )


def _bundled() -> Iterator[str]:
    packed = files("mechlab.texts") / "bundled" / "english.jsonl.xz"
    for line in lzma.decompress(packed.read_bytes()).decode().splitlines():
        yield json.loads(line)["text"]


def _folder(folder: Path) -> Iterator[str]:
    root = folder.resolve()
    inside = sorted(p for p in folder.rglob("*") if p.suffix in _FILES and p.resolve().is_relative_to(root))
    if not inside:
        raise MechlabError(
            f"Folder {str(folder)!r} holds no {', '.join(_FILES)} file: put texts there, or name another."
        )
    for path in inside:
        yield from _file(path)


def _file(path: Path) -> Iterator[str]:
    if path.suffix == ".txt":
        yield path.read_text(encoding="utf-8", errors="replace")
        return
    try:
        yield from _texts(_lines(path) if path.suffix == ".jsonl" else _parquet(path), str(path))
    except (ValueError, OSError) as error:  # what json and pyarrow raise for a file of another kind
        raise MechlabError(
            f"{str(path)!r} does not read as {path.suffix[1:]} ({str(error).splitlines()[0]}): check the file."
        ) from None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is no object")
                yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as table:
        for batch in table.iter_batches(batch_size=256):
            yield from batch.to_pylist()


def _dataset(source: str) -> Iterator[str]:
    name, split, column = [*source[3:].split(":"), "", ""][:3]
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise MechlabError(f"Text source {source!r} needs the package datasets: pip install datasets.") from None
    http_error: type[Exception] = import_module("huggingface_hub.errors").HfHubHTTPError
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
        yield from _texts(rows, source, column)
    except (OSError, ValueError, http_error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MechlabError(
            f"Text source {source!r} could not be read ({reason}): check its name and split and the connection, "
            "or use 'bundled' or a file."
        ) from None


def _texts(rows: Iterable[dict[str, Any]], source: str, column: str = "") -> Iterator[str]:
    """The text of each row; which column holds it is settled by the first row."""
    for row in rows:
        column = column or _column(row)
        if not isinstance(row.get(column), str):
            have = ", ".join(row) or "none"
            raise MechlabError(
                f"{source!r} has no column of text {column or 'text'!r}: it has {have}; name or rename one."
            )
        yield row[column]


def _column(row: dict[str, Any]) -> str:
    of_text = [name for name, value in row.items() if isinstance(value, str)]
    return "text" if "text" in of_text or len(of_text) != 1 else of_text[0]
