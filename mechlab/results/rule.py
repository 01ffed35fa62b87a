"""Rules: what would support a claim, written before the run; and the controls a claim must beat.

A rule has one text form and one parser for it, so that a findings file says in words what is computed from it.
"""

import json
import math
import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from mechlab.errors import StoreError

Direction = Literal[">", "<"]
Json = dict[str, object]
_WORD: dict[Direction, str] = {">": "above", "<": "below"}
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_TEXT = re.compile(
    rf"95 % interval (?P<word>above|below) (?P<threshold>\S+?)"
    rf"(?P<rest> and (?P=word) (?:(?P<all>every control)|the controls? (?P<names>{_QUOTED}(?:, {_QUOTED})*)))?"
)


def number_or_none(value: float) -> float | None:
    """JSON has no NaN: null stands for a number that is not there."""
    return None if math.isnan(value) else value


Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Rule(BaseModel):
    """The interval must lie on one side of a threshold, and on that side of the controls.

    Attributes:
        direction: the side that supports the claim.
        threshold: in the finding's unit, finite.
        beats: names of the controls that must be beaten, or "all".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    direction: Direction
    threshold: float
    beats: Literal["all"] | tuple[str, ...] = "all"

    @model_validator(mode="after")
    def _finite(self) -> Self:
        assert math.isfinite(self.threshold), f"a rule needs a finite threshold, got {self.threshold}"
        return self

    @property
    def word(self) -> str:
        """ "above" or "below"."""
        return _WORD[self.direction]

    def passes(self, value: float, limit: float) -> bool:
        """Whether the value is strictly on the supporting side of the limit; False where either is NaN."""
        return value > limit if self.direction == ">" else value < limit

    @property
    def text(self) -> str:
        """Such as ``95 % interval above 0.05 and above every control``."""
        start = f"95 % interval {self.word} {self.threshold!r}"
        if self.beats == "all":
            return f"{start} and {self.word} every control"
        names = ", ".join(json.dumps(name, ensure_ascii=False) for name in self.beats)
        return f"{start} and {self.word} the control{'s' * (len(self.beats) > 1)} {names}" if names else start

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """The rule whose text this is. Raises StoreError for any other text."""
        match = _TEXT.fullmatch(text)
        try:
            assert match
            names = tuple(json.loads(name) for name in re.findall(_QUOTED, match["names"] or ""))
            beats = "all" if match["all"] else names
            return cls(
                direction=">" if match["word"] == "above" else "<", threshold=float(match["threshold"]), beats=beats
            )
        except (AssertionError, ValueError) as error:
            raise StoreError(
                f"Rule {text!r} does not parse: expected words such as '95 % interval above 0.05 and above every control'."
            ) from error


class Control(BaseModel):
    """What the same measurement gives where the claim should not hold.

    Attributes:
        name: such as "random heads, same layers".
        estimate, low, high: in the finding's unit; NaN or None bounds where only a point was measured. Never infinite.
        n: prompts, or draws, behind it.
        note: how it was made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    estimate: Number
    low: Number = math.nan
    high: Number = math.nan
    n: int
    note: str = ""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        check_numbers(f"control {self.name!r}", self.estimate, self.low, self.high)
        return self

    def bound(self, direction: Direction) -> float:
        """The end of the interval that a claim must clear, or the estimate where there is no interval."""
        end = self.high if direction == ">" else self.low
        return self.estimate if math.isnan(end) or math.isnan(self.estimate) else end

    def as_json(self) -> Json:
        """JSON-ready values; missing numbers are None."""
        ci = [number_or_none(self.low), number_or_none(self.high)]
        return {"name": self.name, "estimate": number_or_none(self.estimate), "ci": ci, "n": self.n, "note": self.note}


def check_numbers(owner: str, estimate: float, low: float, high: float) -> None:
    """Asserts that no number is infinite and that the bounds are in order."""
    assert not any(math.isinf(x) for x in (estimate, low, high)), (
        f"{owner} has an infinite number: write NaN for a missing one"
    )
    assert not low > high, f"{owner} has low {low} above high {high}"
