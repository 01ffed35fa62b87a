"""Splicing a dictionary into a model: the activation at a site becomes what the dictionary makes of its code.

A dictionary reads one site and writes another (the same one, except for transcoders). With the error term kept, the activation moves
only by what a change of the code decodes to, so nothing changes when no feature does; without it, the activation is the decoded code.
Marks et al., arXiv 2403.19647 (error terms); Templeton et al. 2024 (features set to a value).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from mechlab.errors import EditError
from mechlab.lens.edit import Edit
from mechlab.lens.site import KINDS, Site
from mechlab.models.model import Model

_NO_VECTOR = ("key", "expert")


class Spliceable(Protocol):
    """What a dictionary must be to be spliced in; ``mechlab.dictionaries.dictionary.Dictionary`` is one.

    It takes and gives activations as rows, ``[rows, d_in]`` and ``[rows, d_out]``; heads without an index are laid end to end.
    """

    @property
    def site(self) -> Site: ...
    @property
    def target(self) -> Site: ...
    @property
    def d_in(self) -> int: ...
    @property
    def d_out(self) -> int: ...
    @property
    def n_features(self) -> int: ...
    def check_model(self, model: Model) -> None: ...
    def encode(self, activations: Tensor) -> Tensor: ...
    def reconstruct(self, activations: Tensor, codes: Tensor | None = None) -> Tensor: ...


def check_splices(edits: Iterable[Edit], dictionaries: Mapping[str, Spliceable], model: Model) -> None:
    """Refuses a splice whose dictionary is not there, is another model's or another site's, or lacks a feature named.

    Raises:
        EditError: for the edit. MechlabError: from the dictionary, for another model.
    """
    for edit in edits:
        if edit.verb != "splice":
            continue
        dictionary = dictionaries.get(edit.dictionary or "")
        if dictionary is None:
            raise EditError(
                f"Dictionary {edit.dictionary!r} is named by an edit but was not given: pass "
                f"dictionaries={{{edit.dictionary!r}: dictionary}}."
            )
        dictionary.check_model(model)
        _check_sites(edit, dictionary)
        for feature, _, _ in edit.features or ():
            if feature >= dictionary.n_features:
                raise EditError(
                    f"Edit {edit} changes feature {feature} and the dictionary has {dictionary.n_features}: use 0 to "
                    f"{dictionary.n_features - 1}."
                )


def _check_sites(edit: Edit, dictionary: Spliceable) -> None:
    target, read = dictionary.target.at(None), dictionary.site.at(None)
    if edit.site.at(None) != target:
        raise EditError(
            f"Dictionary {edit.dictionary!r} writes {target} and the edit is at {edit.site}: splice it in at its own site."
        )
    if read != target and not read.sort_key < target.sort_key:
        raise EditError(f"Dictionary {edit.dictionary!r} reads {read}, which comes after {target}: it cannot feed it.")
    for at in (read, target):
        if KINDS[at.kind].axes[-1] in _NO_VECTOR:
            raise EditError(f"Edit splice needs an activation with a direction, not {at}.")


def spliced(edit: Edit, part: Tensor, read: Tensor, dictionary: Spliceable) -> Tensor:
    """The activations ``part [n, ...]`` with the dictionary in their place.

    Args:
        read: ``[n, ...]`` what the dictionary encodes: ``part`` itself, or for a transcoder the activations at its own site.

    Raises:
        EditError: activations of another width than the dictionary's.
    """
    rows, flat = read.flatten(1), part.flatten(1)
    for width, wanted, at in (
        (rows.shape[1], dictionary.d_in, dictionary.site),
        (flat.shape[1], dictionary.d_out, edit.site),
    ):
        if width != wanted:
            raise EditError(
                f"Dictionary {edit.dictionary!r} is made for activations of size {wanted} and {at} has size {width}: use one of that size."
            )
    codes = dictionary.encode(rows)
    decoded = dictionary.reconstruct(rows, _changed(edit, codes))
    if edit.keep_error:
        # Exact where nothing changed: an error term computed first and added back would round.
        decoded = flat + (decoded - dictionary.reconstruct(rows, codes)).to(flat)
    return decoded.to(flat).reshape(part.shape)


def _changed(edit: Edit, codes: Tensor) -> Tensor:
    if not edit.features:
        return codes
    changed = codes.clone()
    for feature, how, amount in edit.features:
        if how == "set":
            changed[:, feature] = amount
        else:
            changed[:, feature] = codes[:, feature] * amount if how == "scale" else codes[:, feature] + amount
    return changed


def reads_elsewhere(edit: Edit, dictionaries: Mapping[str, Spliceable]) -> Site | None:
    """The site a splice reads besides the one it writes; None where they are one, and for other edits."""
    if edit.verb != "splice":
        return None
    read = dictionaries[edit.dictionary or ""].site.at(None)
    return None if read == replace(edit.site, pos=None) else read
