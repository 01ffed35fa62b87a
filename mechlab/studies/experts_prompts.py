"""What the experts study asks a model: two classes of prompts that differ in little, and what else must stay as it is.

A contrast has prompts to select experts on and others to judge them on. Which class a *reply* belongs to is decided by its words: it
shows the behaviour if one of ``markers`` stands in it.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mechlab.errors import MechlabError
from mechlab.models import trained_moe_text as text

MIN_PROMPTS = 8
"""Of a class: fewer say nothing about it."""
_PLAIN = ConfigDict(frozen=True, extra="forbid")
Words = Annotated[tuple[str, ...], Field(min_length=1)]


class Classes(BaseModel):
    """Prompts that should show the behaviour (``behaving``), and their pairs that should not (``plain``), in the same order."""

    model_config = _PLAIN

    behaving: tuple[str, ...]
    plain: tuple[str, ...]

    @model_validator(mode="after")
    def _enough(self) -> Self:
        for name in ("behaving", "plain"):
            count = len(getattr(self, name))
            assert count >= MIN_PROMPTS, f"the class {name!r} has {count} prompts, give at least {MIN_PROMPTS}"
        assert len(self.behaving) == len(self.plain), (
            f"there are {len(self.behaving)} behaving prompts for {len(self.plain)} plain ones, give pairs"
        )
        return self

    @property
    def prompts(self) -> list[str]:
        """All, those that should behave first."""
        return [*self.behaving, *self.plain]


class Contrast(BaseModel):
    """Everything a model is asked.

    Attributes:
        name: of the behaviour, as it stands in sentences: "refusal".
        markers: words of which one stands in a reply that shows the behaviour, in small letters.
        reply_tokens: how much of a reply is read.
        selection, evaluation: the classes; no prompt is in both.
        neutral: text that has nothing to do with it.
        questions: (question, how its answer begins).
    """

    model_config = _PLAIN

    name: str
    markers: Words
    reply_tokens: int = Field(8, ge=1)
    selection: Classes
    evaluation: Classes
    neutral: Words
    questions: Annotated[tuple[tuple[str, str], ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _apart(self) -> Self:
        shared = set(self.selection.prompts) & set(self.evaluation.prompts)
        assert not shared, (
            f"{len(shared)} prompts are in selection and in evaluation, first {min(shared)!r}: use others"
        )
        return self

    def shows(self, reply: str) -> bool:
        """Whether a reply shows the behaviour."""
        padded = f" {reply.lower()} "
        return any(marker in padded for marker in self.markers)


def contrast(name: str, n: int, seed: int) -> Contrast:
    """A contrast by its name in CONTRASTS, or from a JSON file with its fields.

    Args:
        n: prompts of each class to select on, and as many to judge on (those of a file are taken as they are).

    Raises:
        MechlabError: an unknown name, a file that cannot be read, a class with fewer than 8 prompts, prompts used twice.
    """
    path = Path(name).expanduser()
    try:
        if name in CONTRASTS:
            return CONTRASTS[name](n, random.Random(f"{name} {seed}"))
        if path.suffix == ".json":
            return Contrast.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MechlabError(
            f"Prompts {name!r} cannot be read ({error.strerror}): give the path of a JSON file."
        ) from error
    except ValidationError as error:
        raise MechlabError(f"Prompts {name!r} cannot be used: {_first(error)}.") from error
    raise MechlabError(f"Prompts {name!r} are unknown: use {' or '.join(CONTRASTS)}, or the path of a .json file.")


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    why = first["msg"].removeprefix("Assertion failed, ")
    return f"{where}: {why}" if where else why


def refusal(n: int, draw: random.Random) -> Contrast:
    """Requests to the trained MoE: things, and ways to ask, of the selection are not those of the evaluation."""
    half = len(text.REQUESTS) // 2
    return Contrast(
        name="refusal",
        markers=("sorry",),
        reply_tokens=3,
        selection=_requests(text.FORBIDDEN[::2], text.ALLOWED[::2], range(half), n, draw),
        evaluation=_requests(text.FORBIDDEN[1::2], text.ALLOWED[1::2], range(half, 2 * half), n, draw),
        neutral=tuple(
            text.document(draw, domain) for _ in range(12) for domain in text.DOMAINS if domain != "requests"
        ),
        questions=tuple((text.question(country), city) for country, city in text.CAPITALS.items()),
    )


def _requests(
    forbidden: Sequence[str], allowed: Sequence[str], templates: Sequence[int], n: int, draw: random.Random
) -> Classes:
    pairs = [
        tuple(text.request(template, things[i % len(things)], time, where).prompt for things in (forbidden, allowed))
        for i in range(n)
        for template, time, where in [(draw.choice(templates), draw.choice(text.TIMES), draw.choice(text.WHERE))]
    ]
    return Classes(behaving=tuple(pair[0] for pair in pairs), plain=tuple(pair[1] for pair in pairs))


_FRENCH = (
    ("{name} went to the {place} with a {friend} . Then", "{name} est allé à la {lieu} avec un {ami} . Puis", 0),
    ("In the {place} {name} saw a {friend} and said", "Dans la {lieu} {name} a vu un {ami} et a dit", 0),
    (
        "The {friend} of {name} lives near the {place} , because",
        "L'{ami} de {name} habite près de la {lieu} , parce que",
        1,
    ),
    ("Yesterday {name} and a {friend} left the {place} , and", "Hier {name} et un {ami} ont quitté la {lieu} , et", 1),
)
_PLACES = (
    ("house", "maison"),
    ("station", "gare"),
    ("city", "ville"),
    ("street", "rue"),
    ("school", "classe"),
    ("beach", "plage"),
)
_FRIENDS = (("friend", "ami"), ("child", "enfant"), ("student", "étudiant"), ("stranger", "inconnu"))
_WHO = ("Marie", "Jean", "Luc", "Claire", "Pierre", "Anne", "Louis", "Alice", "Paul", "Julie", "Marc", "Sophie")
_CAPITALS = (
    ("France", "Paris"),
    ("Italy", "Rome"),
    ("Spain", "Madrid"),
    ("Germany", "Berlin"),
    ("England", "London"),
    ("Japan", "Tokyo"),
    ("Russia", "Moscow"),
    ("Austria", "Vienna"),
    ("Egypt", "Cairo"),
    ("Greece", "Athens"),
    ("China", "Beijing"),
    ("Cuba", "Havana"),
)


def french(n: int, draw: random.Random) -> Contrast:
    """French and English beginnings that say the same: does the model go on in French?"""
    from mechlab.texts import passages

    return Contrast(
        name="going on in French",
        markers=(
            " le ",
            " la ",
            " les ",
            " de ",
            " et ",
            " un ",
            " une ",
            " est ",
            " que ",
            " des ",
            " à ",
            " il ",
            " elle ",
        ),
        reply_tokens=8,
        selection=_languages(0, _WHO[::2], n, draw),
        evaluation=_languages(1, _WHO[1::2], n, draw),
        neutral=tuple(passages(count=24, seed=0, part="held-out", characters=240)),
        questions=tuple((f"The capital of {country} is", f" {city}") for country, city in _CAPITALS),
    )


def _languages(side: int, names: Sequence[str], n: int, draw: random.Random) -> Classes:
    templates = [(english, other) for english, other, part in _FRENCH if part == side]
    seen: dict[tuple[str, str], None] = {}
    while len(seen) < n:
        (english, other), name = draw.choice(templates), draw.choice(names)
        (place, lieu), (friend, ami) = draw.choice(_PLACES), draw.choice(_FRIENDS)
        seen[other.format(name=name, lieu=lieu, ami=ami), english.format(name=name, place=place, friend=friend)] = None
    return Classes(behaving=tuple(pair[0] for pair in seen), plain=tuple(pair[1] for pair in seen))


CONTRASTS: dict[str, Callable[[int, random.Random], Contrast]] = {"refusal": refusal, "french": french}
