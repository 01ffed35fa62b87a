"""The bundled scenarios: 8 themes, 10 scenarios each, every one with a positive, a neutral and a negative outcome.

No sentence names an emotion, so what an instruction adds to a prompt is not in the event already. See ``data/SOURCES.md``. The scheme is
that of the SEV set (Wang et al., arXiv 2510.11328); the sentences are our own.
"""

import csv
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from mechlab.errors import MechlabError

Part = Literal["fit", "held-out"]
VALENCES = ("positive", "neutral", "negative")


@dataclass(frozen=True)
class Item:
    """One scenario with one outcome. ``group``: theme, number of the scenario in it, valence."""

    theme: str
    number: int
    part: Part
    scenario: str
    valence: str
    event: str

    @property
    def group(self) -> str:
        return f"{self.theme} {self.number} {self.valence}"

    @property
    def text(self) -> str:
        return f"{self.scenario} {self.event}"


def items(part: Part | None = None, per_theme: int | None = None) -> list[Item]:
    """The items of a part (None: of both), all valences.

    Args:
        per_theme: the first so many scenarios of each theme; None: all.

    Raises:
        MechlabError: more scenarios than a theme has in this part.
    """
    found: list[Item] = []
    seen: dict[str, int] = {}
    used: dict[str, int] = {}
    for row in csv.DictReader(_data("scenarios.csv").splitlines()):
        theme = row["theme"]
        seen[theme] = seen.get(theme, 0) + 1
        if part is not None and row["part"] != part:
            continue
        used[theme] = used.get(theme, 0) + 1
        if per_theme is None or used[theme] <= per_theme:
            found += [Item(theme, seen[theme], row["part"], row["scenario"], v, row[v]) for v in VALENCES]  # pyright: ignore[reportArgumentType]
    fewest = min(used.values())
    if per_theme is not None and not 1 <= per_theme <= fewest:
        raise MechlabError(
            f"Themes have {fewest} scenarios in part {part or 'all'}, not {per_theme}: ask for 1 to {fewest}."
        )
    return found


def lexicon() -> dict[str, tuple[str, ...]]:
    """Emotion -> its words; no word belongs to two."""
    return {emotion: tuple(words) for emotion, words in json.loads(_data("lexicon.json"))["emotions"].items()}


def forbidden_words() -> frozenset[str]:
    """Words that no scenario may hold: the whole lexicon, and words that tell how somebody takes an event."""
    return frozenset(json.loads(_data("lexicon.json"))["never_in_scenarios"]).union(*lexicon().values())


def _data(name: str) -> str:
    return (files("steering.emotion") / "data" / name).read_text(encoding="utf-8")
