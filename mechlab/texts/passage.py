"""Passages: distinct stretches of a source's documents, of about one length, in two parts that never overlap."""

import hashlib
import random
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Literal

from mechlab.errors import MechlabError
from mechlab.texts.documents import BUNDLED, documents

Part = Literal["fit", "held-out"]
_HELD_OUT = 5  # one document in so many
_FEW = 20  # fewer documents than this are each cut in two instead
_POOL = 8  # how many times the passages asked for are read from a source that may be long
# The end of a sentence: not after a title or an initial, and before what can begin another.
_SENTENCE = re.compile(
    r"(?<!Mr)(?<!Mrs)(?<!Dr)(?<!St)(?<!\b[A-Z])[.!?][\"'”’)\]]*(?=\s+[\"'“‘(\[]*[A-Z0-9])|[.!?][\"'”’)\]]*(?=\n\n|$)"
)
_SHORTEST = 20


def passages(
    source: str = BUNDLED, *, count: int, seed: int = 0, part: Part = "fit", characters: int = 400
) -> list[str]:
    """``count`` distinct passages of connected text, each ``characters / 2`` to ``characters`` long.

    A passage is a stretch of one document, cut at the end of a sentence or, in a very long sentence, of a word; passages do not overlap.
    With the same seed, fewer passages of the bundled text are the first of more.

    Args:
        source: ``bundled`` (see ``texts/bundled/SOURCES.md``), a path, or ``hf:NAME[:SPLIT][:COLUMN]``; see ``documents``. Of anything
            but the bundled text only the first documents are read, until there are eight times as many passages as asked for.
        seed: of the choice and order.
        part: ``fit`` holds about four documents in five, ``held-out`` the others, by a hash of their text, so that a document given twice
            is in one part; a passage that documents of both share counts as ``fit``. Of fewer than 20 documents each is cut in two at
            a sentence: the first four fifths, and the rest.

    Raises:
        MechlabError: a source that cannot be read, or one with fewer passages; a count, length or part that makes no sense.
    """
    if count < 1:
        raise MechlabError(f"{count} passages are none: ask for 1 or more.")
    if characters < _SHORTEST:
        raise MechlabError(f"Passages of {characters} characters are too short to read: ask for {_SHORTEST} or more.")
    if part not in ("fit", "held-out"):
        raise MechlabError(f"Part {part!r} is unknown: use 'fit' or 'held-out'.")
    pools: dict[Part, dict[str, None]] = {"fit": {}, "held-out": {}}
    for side, document in _sides(documents(source)):
        pools[side].update(dict.fromkeys(cut(document, characters)))
        if source != BUNDLED and len(pools[part]) >= _POOL * count:
            break
    pool = pools[part] if part == "fit" else [p for p in pools[part] if p not in pools["fit"]]
    if len(pool) < count:
        raise MechlabError(
            f"Text source {source!r} has {len(pool)} passages of {characters} characters in its {part!r} part and {count} were asked "
            "for: ask for fewer or shorter ones, or use a longer source."
        )
    chosen = list(pool)
    random.Random(seed).shuffle(chosen)
    return chosen[:count]


def cut(document: str, characters: int) -> Iterator[str]:
    """Consecutive passages of a document, each ``characters / 2`` to ``characters`` long; a shorter rest is left out."""
    ends = [match.end() for match in _SENTENCE.finditer(document)]
    start = 0
    while len(document) - start >= characters / 2:
        end = _end(document, ends, start, characters)
        passage = document[start:end].strip()
        if len(passage) >= characters / 2:
            yield passage
        start = end
        while start < len(document) and document[start].isspace():
            start += 1


def _end(document: str, ends: list[int], start: int, characters: int) -> int:
    """The last end of a sentence, else of a word, in the second half of the room there is; else the end of the room."""
    low, high = start + characters // 2 + characters % 2, start + characters
    if high >= len(document):
        return len(document)
    last = bisect_right(ends, high) - 1
    if last >= 0 and ends[last] >= low:
        return ends[last]
    words = [match.start() for match in re.finditer(r"\s", document[low : high + 1])]
    return low + words[-1] if words else high


def _sides(texts: Iterable[str]) -> Iterator[tuple[Part, str]]:
    texts = iter(texts)
    first = list(islice(texts, _FEW))
    if len(first) < _FEW:
        for fit, held_out in map(_halves, first):
            yield "fit", fit
            yield "held-out", held_out
        return
    for text in chain(first, texts):
        yield ("held-out" if hashlib.sha256(text.encode()).digest()[0] % _HELD_OUT == 0 else "fit"), text


def _halves(document: str) -> tuple[str, str]:
    """The first four fifths and the rest, parted at the end of a sentence (a word, where no sentence ends)."""
    wanted = len(document) * (_HELD_OUT - 1) // _HELD_OUT
    ends = [match.end() for match in _SENTENCE.finditer(document) if match.end() <= wanted]
    at = ends[-1] if ends else max(document.rfind(" ", 0, wanted), 0)
    return document[:at], document[at:].strip()
