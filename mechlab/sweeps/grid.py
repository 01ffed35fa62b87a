"""Grids of sites: the one grammar.

    z[*.*]                      every head of every layer
    z[0-5,8.*]@-1               heads of layers 0 to 5 and 8, at each prompt's last token
    z[*]                        each layer's heads all at once
    resid_pre[*]@*              every layer and every position that all prompts have
    resid_pre[*]@S1,S2,0-3      positions by label and by number
    mlp_post[7.0-99]            neurons;  k[*.*]: KV heads;  router[*.*]: experts
    mlp_post[top 100 of FILE]   the 100 largest |score| of a file with the columns layer, unit and score
    final_norm@-1, L5H3@S2      a site as ``mechlab.lens.site`` reads it

KIND[LAYERS], KIND[LAYERS.UNITS], then @POSITIONS. Each of the three is ``*`` or a list with commas of numbers, ranges (both ends
included) and, for positions, labels and negative numbers. What this model lacks is an error that says what it has.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechlab.errors import SiteError, UnknownName
from mechlab.lens.site import KINDS, Site, site

if TYPE_CHECKING:
    from mechlab.lens.layout import Layout
    from mechlab.lens.tokens import Tokens

Position = int | str | None
RANKED = re.compile(r"^(?P<kind>[a-z_]+)\[top (?P<k>\d+) of (?P<file>.+)\](?:@.*)?$")
_GRID = re.compile(r"^(?P<kind>[a-z_]+)\[(?P<layers>[^\].]+)(?:\.(?P<units>[^\].]+))?\]$")
_RANGE = re.compile(r"(\d+)-(\d+)")
_NUMBER = re.compile(r"-?\d+")
_UNIT_COLUMNS = ("unit", "index", "neuron", "head", "expert")


@dataclass(frozen=True)
class Sites:
    """The sites of a grid in one model, made as they are asked for.

    ``places``: (layer, unit) of each, or the layers and units whose product they are.
    """

    kind: str
    layers: Sequence[int | None]
    units: Sequence[int | None]
    positions: tuple[Position, ...]
    pairs: tuple[tuple[int, int], ...] | None = None

    def __len__(self) -> int:
        places = len(self.layers) * len(self.units) if self.pairs is None else len(self.pairs)
        return places * len(self.positions)

    def __iter__(self) -> Iterator[Site]:
        places = product(self.layers, self.units) if self.pairs is None else self.pairs
        for layer, unit in places:
            for position in self.positions:
                yield Site(self.kind, layer, unit, position)


def expand(text: str, layout: "Layout", tokens: "Tokens") -> Sites:
    """The sites that ``text`` names in this model and for these prompts.

    Raises:
        SiteError, UnknownName: a grid that does not parse, or a layer, unit or kind that the model lacks.
        PromptError: a position that these prompts lack.
    """
    found = _Reading(text.strip(), layout, tokens)
    return found.ranked() or found.grid() or found.single()


@dataclass(frozen=True)
class _Reading:
    text: str
    layout: "Layout"
    tokens: "Tokens"

    @cached_property
    def body(self) -> str:
        head, bracket, tail = self.text.rpartition("]")
        return head + bracket if bracket else tail.partition("@")[0]

    def positions(self) -> tuple[Position, ...]:
        written = self.text.removeprefix(self.body)
        if not written:
            return (None,)
        if not written.startswith("@") or len(written) == 1:
            raise SiteError(
                f"Grid {self.text!r} has {written!r} after its sites: write @ and positions, as in @-1 or @S1,END."
            )
        if written == "@*":
            return tuple(range(min(self.tokens.lengths)))
        found: list[Position] = []
        for part in written[1:].split(","):
            span = _RANGE.fullmatch(part)
            if span:
                found += self._span(span, "position")
            else:
                found.append(int(part) if _NUMBER.fullmatch(part) else part)
        for position in found:
            assert position is not None
            self.tokens.positions(position)
        return tuple(dict.fromkeys(found))

    def single(self) -> Sites:
        """A plain site, with any positions."""
        if "[" in self.text:
            raise SiteError(
                f"Grid {self.text!r} does not parse: write KIND[LAYERS.UNITS]@POSITIONS, for example z[*.*], z[0-5.*]@-1 or "
                "mlp_post[top 100 of scores.csv]."
            )
        one = site(self.body)
        self.layout.check(one)
        return Sites(one.kind, (one.layer,), (one.index,), self.positions())

    def grid(self) -> Sites | None:
        match = _GRID.match(self.body)
        if not match:
            return None
        kind = self._kind(match["kind"])
        have = [layer for layer in range(len(self.layout.blocks)) if kind in self.layout.kinds(layer)]
        if not have:
            self.layout.check(Site(kind, 0))
        layers = have if match["layers"] == "*" else self._numbers(match["layers"], len(self.layout.blocks), "layer")
        for layer in layers:
            self.layout.check(Site(kind, layer))
        return Sites(kind, layers, self._units(kind, match["units"]), self.positions())

    def ranked(self) -> Sites | None:
        match = RANKED.match(self.text)
        if not match:
            return None
        kind = self._kind(match["kind"])
        pairs = strongest(Path(match["file"]).expanduser(), int(match["k"]))
        for layer, unit in pairs:
            self.layout.check(Site(kind, layer, unit))
        return Sites(kind, (), (), self.positions(), pairs)

    def _kind(self, kind: str) -> str:
        if kind not in KINDS:
            raise UnknownName("site kind", kind, KINDS)
        if not KINDS[kind].per_layer:
            raise SiteError(f"Grid {self.text!r}: {kind} lives outside the layers; write it without brackets.")
        return kind

    def _units(self, kind: str, written: str | None) -> Sequence[int | None]:
        if written is None:
            return (None,)
        size, counts = self.layout.size(kind), KINDS[kind].index
        if size is None or counts is None:
            raise SiteError(f"Grid {self.text!r}: {kind} has no units; write {kind}[LAYERS].")
        return range(size) if written == "*" else self._numbers(written, size, counts)

    def _numbers(self, written: str, size: int, what: str) -> list[int]:
        found: list[int] = []
        for part in written.split(","):
            span = _RANGE.fullmatch(part)
            if not span and not part.isdecimal():
                raise SiteError(f"Grid {self.text!r} has {part!r} as {what}: write *, numbers and ranges, as in 0-5,8.")
            found += self._span(span, what) if span else [int(part)]
        beyond = [number for number in found if number >= size]
        if beyond:
            raise SiteError(f"Grid {self.text!r} names {what} {beyond[0]}: this model has {what} 0 to {size - 1}.")
        return list(dict.fromkeys(found))

    def _span(self, span: re.Match[str], what: str) -> range:
        first, last = int(span[1]), int(span[2])
        if first > last:
            raise SiteError(f"Grid {self.text!r} has the {what} range {span[0]}: write {last}-{first}.")
        return range(first, last + 1)


def strongest(path: Path, k: int) -> tuple[tuple[int, int], ...]:
    """(layer, unit) of the ``k`` largest absolute scores in a CSV, JSON (list of objects) or Parquet file; the earlier row of equals.

    Raises:
        SiteError: no such file, a column missing, a value that is no number, or fewer than ``k`` rows.
    """
    rows = _score_rows(path)
    unit = next((name for name in _UNIT_COLUMNS if rows and name in rows[0]), "unit")
    try:
        scored = [(abs(float(row["score"])), int(row["layer"]), int(row[unit])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise SiteError(
            f"{path.name} cannot be ranked ({type(error).__name__}: {error}): it needs the columns layer, unit and score, all numbers."
        ) from error
    if not 0 < k <= len(scored):
        raise SiteError(
            f"{path.name} has {len(scored)} rows and the top {k} were asked for: ask for 1 to {len(scored)}."
        )
    order = sorted(range(len(scored)), key=lambda i: -scored[i][0])[:k]
    return tuple(dict.fromkeys(scored[i][1:] for i in order))


def _score_rows(path: Path) -> Sequence[Mapping[Any, Any]]:
    import pandas as pd

    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    try:
        if path.suffix.lower() == ".json":
            return list(json.loads(path.read_text(encoding="utf-8")))
        if path.suffix.lower() in readers:
            return readers[path.suffix.lower()](path).to_dict("records")
    except (OSError, ValueError) as error:
        raise SiteError(f"{str(path)!r} cannot be read ({error}): give a CSV, JSON or Parquet file.") from error
    raise SiteError(f"{path.name} ends in {path.suffix!r}: scores are read from .csv, .json and .parquet files.")
