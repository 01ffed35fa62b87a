"""Edits: interventions as data. A frozen value that says what, where and how strong; it serialises to JSON and runs anywhere.

Values that come from another run name that run (``source``); the run's prompts are given to the Lens when the edit runs. Two sources
mean the same thing everywhere: ``"clean"`` and ``"corrupted"`` are the two sides of a Task.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from mechlab.errors import EditError, UnknownName
from mechlab.lens.site import KINDS, Site, site

Verb = Literal["zero", "mean", "resample", "patch", "add", "scale", "clamp", "project", "pattern", "route"]
Phase = Literal["all", "prompt", "generated"]
RouteState = Literal["off", "drop", "on"]
Numbers: TypeAlias = "float | tuple[Numbers, ...]"
NumbersLike: TypeAlias = "float | Sequence[Any] | Tensor"

VERBS: tuple[str, ...] = get_args(Verb)
_SOURCED = ("mean", "resample", "patch")
_READ_ONLY = ("expert_weights",)


@dataclass(frozen=True)
class Edit:
    """One intervention at one site. Make it with the functions below rather than by hand.

    Attributes:
        verb: what is done to the activation ``a``.
        site: where; all heads / units without an index, all positions without one.
        value: ``add``: a vector (or number); ``scale``: the factor; ``pattern``: attention over keys.
        strength: ``add`` multiplies ``value`` by it.
        low, high: ``clamp`` limits; None leaves that side open.
        basis: ``project``: vectors that span the subspace (orthonormalised when applied).
        source: name of the run that values come from (``mean``, ``resample``, ``patch``, and ``project`` if given).
        source_pos: position in the source run, when it is not the site's own.
        over: ``mean`` over ``"prompts"`` (each position apart) or over ``"tokens"`` (all positions of all prompts).
        state: ``route``: ``off`` (masked before the top-k choice, so another expert takes its place), ``drop`` (its weight goes to
            zero, the others are rescaled to the same sum, nobody takes its place), ``on`` (always chosen, with the weight the router
            gives it).
        seed: ``resample`` draws source prompts with it.
        phase: apply at ``prompt`` tokens, ``generated`` tokens, or ``all``.
    """

    verb: Verb
    site: Site
    value: "Numbers | None" = None
    strength: float = 1.0
    low: float | None = None
    high: float | None = None
    basis: "Numbers | None" = None
    source: str | None = None
    source_pos: int | str | None = None
    over: Literal["prompts", "tokens"] = "prompts"
    state: RouteState | None = None
    seed: int = 0
    phase: Phase = "all"

    def __post_init__(self) -> None:
        for word, valid in _WORDS.items():
            given = getattr(self, word)
            if given is not None and given not in valid:
                raise UnknownName(word, str(given), valid)
        if self.site.kind in _READ_ONLY:
            raise EditError(
                f"Site {self.site} can be read but not edited: edit {self.site.kind}'s cause, the router (L0E0)."
            )
        for field, wanted in _NEEDS.items():
            given = getattr(self, field) is not None
            if given and self.verb not in wanted["may"]:
                raise EditError(f"Edit {self.verb} takes no {field}: it belongs to {' or '.join(wanted['may'])}.")
            if not given and self.verb in wanted["must"]:
                raise EditError(f"Edit {self.verb} at {self.site} needs a {field}.")
        if self.verb == "scale" and not isinstance(self.value, int | float):
            raise EditError(f"Edit scale at {self.site} takes one number, not {self.value}: the factor.")
        if self.verb == "clamp" and self.low is None and self.high is None:
            raise EditError(f"Edit clamp at {self.site} has no limit: give low, high or both.")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise EditError(f"Edit clamp at {self.site} has low {self.low} above high {self.high}: swap them.")
        if self.verb == "route" and (self.site.kind != "router" or self.site.index is None):
            raise EditError(f"Edit route needs one expert, not {self.site}: write for example L5E7.")
        if self.verb == "pattern" and self.site.kind != "pattern":
            raise EditError(
                f"Edit pattern needs an attention pattern, not {self.site}: write for example L5H3.pattern."
            )
        if self.verb == "mean" and self.over == "tokens" and KINDS[self.site.kind].axes[-1] == "key":
            raise EditError(f"Edit mean over tokens needs values that mean the same at every token, not {self.site}.")
        if self.verb == "project" and KINDS[self.site.kind].axes[-1] in ("key", "expert"):
            raise EditError(f"Edit project needs an activation with a direction, not {self.site}.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; fields at their defaults are left out. ``Edit.from_dict`` gives the same edit back."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        defaults = {f.name: f.default for f in fields(self)}
        return {
            k: (str(v) if k == "site" else v) for k, v in plain.items() if k in ("verb", "site") or v != defaults[k]
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Edit":
        """Raises EditError for a field that no edit has; the other mistakes are told as when the edit is made by hand."""
        known = {f.name for f in fields(Edit)}
        for key in data:
            if key not in known:
                raise UnknownName("edit field", key, known)
        if "verb" not in data or "site" not in data:
            raise EditError(f"An edit needs a verb and a site, and {data} lacks one of them.")
        values: dict[str, Any] = {**data, "site": site(data["site"])}
        for key in ("value", "basis"):
            if values.get(key) is not None:
                values[key] = numbers(values[key])
        return Edit(**values)

    def __str__(self) -> str:
        details = {
            k: v for k, v in asdict(self).items() if k in ("source", "strength", "low", "high", "state", "phase")
        }
        defaults = {"strength": 1.0, "phase": "all"}
        shown = [f"{k}={v}" for k, v in details.items() if v is not None and v != defaults.get(k)]
        return f"{self.verb} {self.site}{' (' + ', '.join(shown) + ')' if shown else ''}"


_WORDS: dict[str, tuple[str, ...]] = {
    "verb": VERBS,
    "phase": get_args(Phase),
    "over": ("prompts", "tokens"),
    "state": get_args(RouteState),
}
_NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    "value": {"must": ("add", "scale", "pattern"), "may": ("add", "scale", "pattern")},
    "low": {"must": (), "may": ("clamp",)},
    "high": {"must": (), "may": ("clamp",)},
    "basis": {"must": ("project",), "may": ("project",)},
    "source": {"must": _SOURCED, "may": (*_SOURCED, "project")},
    "source_pos": {"must": (), "may": (*_SOURCED, "project")},
    "state": {"must": ("route",), "may": ("route",)},
}


def numbers(values: "NumbersLike") -> "Numbers":
    """Plain, hashable numbers from a tensor, an array or nested lists."""
    plain: Any = values.detach().cpu().tolist() if isinstance(values, Tensor) else values
    tolist = getattr(plain, "tolist", None)
    plain = tolist() if tolist else plain
    if not isinstance(plain, Sequence):
        return float(plain)
    found = tuple(numbers(v) for v in plain)
    if len({len(v) if isinstance(v, tuple) else None for v in found}) > 1:
        raise EditError(f"Values with rows of unequal length cannot be used: {str(plain)[:80]}.")
    return found


def zero(at: str | Site, *, phase: Phase = "all") -> Edit:
    """``a := 0``."""
    return Edit("zero", site(at), phase=phase)


def mean(
    at: str | Site, source: str = "pool", *, over: Literal["prompts", "tokens"] = "prompts", phase: Phase = "all"
) -> Edit:
    """``a := mean of a over the prompts of the source run`` (at each position, or over all tokens)."""
    return Edit("mean", site(at), source=source, over=over, phase=phase)


def resample(at: str | Site, source: str = "pool", *, seed: int = 0, phase: Phase = "all") -> Edit:
    """``a := a of a randomly drawn prompt of the source run``, one draw per prompt."""
    return Edit("resample", site(at), source=source, seed=seed, phase=phase)


def patch(at: str | Site, source: str = "clean", *, source_pos: int | str | None = None, phase: Phase = "all") -> Edit:
    """``a := a of the same prompt in the source run`` (activation patching)."""
    return Edit("patch", site(at), source=source, source_pos=source_pos, phase=phase)


def add(at: str | Site, value: "NumbersLike", *, strength: float = 1.0, phase: Phase = "all") -> Edit:
    """``a := a + strength * value``."""
    return Edit("add", site(at), value=numbers(value), strength=float(strength), phase=phase)


def scale(at: str | Site, factor: float, *, phase: Phase = "all") -> Edit:
    """``a := factor * a``."""
    return Edit("scale", site(at), value=float(factor), phase=phase)


def clamp(at: str | Site, low: float | None = None, high: float | None = None, *, phase: Phase = "all") -> Edit:
    """``a := min(max(a, low), high)``; equal limits set a value."""
    return Edit("clamp", site(at), low=low, high=high, phase=phase)


def project(at: str | Site, basis: "NumbersLike", source: str | None = None, *, phase: Phase = "all") -> Edit:
    """Without a source, ``a := a - V V^T a`` (remove the subspace); with one, ``a := a + V V^T (a_source - a)`` (patch it).

    ``basis`` is one vector ``[d]`` or several ``[k, d]``; they are orthonormalised (QR) before use. Makelov et al., arXiv 2311.17030.
    """
    return Edit("project", site(at), basis=numbers(basis), source=source, phase=phase)


def pattern(at: str | Site, value: "NumbersLike", *, phase: Phase = "all") -> Edit:
    """Sets attention over keys: ``[key]`` for every edited query, or ``[query, key]``. Rows must sum to 1."""
    return Edit("pattern", site(at), value=numbers(value), phase=phase)


def route(at: str | Site, state: RouteState, *, phase: Phase = "all") -> Edit:
    """Switches one expert ``off``, ``drop``s its weight, or forces it ``on`` (see ``Edit.state``)."""
    return Edit("route", site(at), state=state, phase=phase)
