"""What a command answers with, and where it goes: results to stdout, everything else to stderr."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 120
"""Columns of a table that is not shown on a terminal."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The result of a command.

    Attributes:
        document: JSON-ready, for ``--json``.
        view: the same for people. Text is printed as it is, never wrapped.
    """

    document: object
    view: Sequence[RenderableType]


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether ``--json`` is among the options. Known before parsing, since a parsing error must be JSON too."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def console(stream: TextIO) -> Console:
    """A console on that stream, wide enough for tables where it is no terminal."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False)


def write_json(document: object, stream: TextIO) -> None:
    """One JSON document and a line end."""
    stream.write(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    stream.flush()


def write_view(view: Sequence[RenderableType], stream: TextIO) -> None:
    """The parts of a view below each other."""
    out = console(stream)
    for part in view:
        out.print(part, soft_wrap=isinstance(part, str))
    stream.flush()


def tell(text: str) -> None:
    """A message on stderr, as one line."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the command line's own voice


def table(*columns: str, rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> Table:
    """A plain table; the columns named in ``right`` are aligned to the right."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    return made


def size_text(size_bytes: int) -> str:
    """``538 MB``."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"
