"""Studies: a named, parametrised experiment, and the parser of the settings people type.

A study's settings are a frozen pydantic model, so one declaration gives the defaults, the types, the checks and the
words of the help.
"""

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mechlab.errors import MechlabError, UnknownName

if TYPE_CHECKING:
    from mechlab.results.report import Report

_LISTS: tuple[object, ...] = (list, tuple, set, frozenset)
# `int | None` and `Literal["a"] | None` have different origins before Python 3.14.
_UNIONS = (types.UnionType, get_origin(Literal["a"] | None))


class Progress(Protocol):
    """Told how far a run is: what it is doing, steps done, steps in all."""

    def __call__(self, label: str, done: int, total: int) -> None: ...


def silent(label: str, done: int, total: int) -> None:
    """The progress of whoever does not ask."""


def named(progress: Progress, text: str) -> Progress:
    """The same progress under another label."""

    def renamed(label: str, done: int, total: int) -> None:  # noqa: ARG001
        progress(text, done, total)

    return renamed


def in_one(progress: Progress, parts: int) -> Callable[[int], Progress]:
    """One count for the whole study, so that the time left is told for all of it; each part counts as 1000."""

    def part(at: int) -> Progress:
        def tell(label: str, done: int, total: int) -> None:
            progress(label, 1000 * at + 1000 * done // max(1, total), 1000 * parts)

        return tell

    return part


@dataclass(frozen=True)
class Study:
    """One paper's claims as an experiment.

    Attributes:
        name: what people type.
        title: heading of its report.
        paper: authors, year, arXiv number.
        line: one line on what it asks.
        settings: frozen pydantic model with ``extra="forbid"`` and a default for every field.
        run: ``(lens, settings, progress) -> Report``.
    """

    name: str
    title: str
    paper: str
    line: str
    settings: type[BaseModel]
    run: "Callable[[Any, Any, Progress], Report]"

    def __post_init__(self) -> None:
        config = self.settings.model_config
        assert config.get("frozen") and config.get("extra") == "forbid", (
            f"The settings of study {self.name!r} must be frozen and forbid extra fields."
        )


class Settable(Protocol):
    """What has a name and settings: a study, or a part of one that has settings of its own."""

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> type[BaseModel]: ...


def parse_settings(of: Settable, pairs: Sequence[str], what: str = "study") -> BaseModel:
    """Settings of a study (or of ``what`` it is) from ``key=value`` texts; what is not named keeps its default.

    Lists are written with commas (``layers=0,3,5``), an optional value can be ``none``.

    Raises:
        UnknownName: no such setting.
        MechlabError: text without "=", a setting given twice, a value of another type, or values that contradict each other.
    """
    fields, texts = of.settings.model_fields, _split(pairs)
    for key in texts:
        if key not in fields:
            if not fields:
                raise MechlabError(f"{what.capitalize()} {of.name!r} has no settings: leave out {key!r}.")
            raise UnknownName("setting", key, fields, f"These are the settings of {what} {of.name!r}.")
    values = {key: _value(text, fields[key].annotation) for key, text in texts.items()}
    try:
        return of.settings.model_validate(values)
    except ValidationError as error:
        raise _refusal(of, what, error, texts) from error


def _split(pairs: Sequence[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise MechlabError(f"Setting {pair!r} has no value: write it as key=value, for example seed=1.")
        if key in texts:
            raise MechlabError(f"Setting {key!r} is given twice ({texts[key]!r} and {text!r}): give it once.")
        texts[key] = text.strip()
    return texts


def _value(text: str, annotation: object) -> object:
    """The text as pydantic should see it: lists split at commas, ``none`` for an optional value."""
    kinds = _alternatives(annotation)
    if type(None) in kinds and text.lower() == "none":
        return None
    if any(get_origin(kind) in _LISTS or kind in _LISTS for kind in kinds):
        return [part.strip() for part in text.split(",")] if text else []
    return text


def _alternatives(annotation: object) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)


def _refusal(of: Settable, what: str, error: ValidationError, texts: dict[str, str]) -> MechlabError:
    first = error.errors()[0]
    why = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    if not first["loc"]:
        return MechlabError(f"The settings of {what} {of.name!r} do not fit together: {why}.")
    key = str(first["loc"][0])
    if first["type"] == "missing":
        return MechlabError(f"{what.capitalize()} {of.name!r} needs the setting {key!r}: add {key}=VALUE.")
    expected = type_text(of.settings.model_fields[key].annotation)
    return MechlabError(f"Setting {key}={texts.get(key, '')!r} is refused ({why}): expected {expected}.")


_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}


def type_text(annotation: object) -> str:
    """The values a setting takes, in words: ``an integer``, ``one of swap, abc``."""
    if isinstance(annotation, type) and annotation in _NAMES:
        return _NAMES[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(item) for item in arguments)
    if origin in _UNIONS:
        return " or ".join(type_text(item) for item in arguments)
    if origin in _LISTS:
        inner = type_text(next((item for item in arguments if item is not Ellipsis), str))
        return f"a list with commas, each {inner}"
    return getattr(annotation, "__name__", str(annotation))
