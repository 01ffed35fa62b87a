"""Eyes and hands on a model: tokens, sites, edits, and the Lens that runs them."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechlab.lens.edit import Edit as Edit
    from mechlab.lens.lens import Lens as Lens
    from mechlab.lens.lens import Run as Run
    from mechlab.lens.site import Site as Site
    from mechlab.lens.tokens import Tokens as Tokens
    from mechlab.lens.tokens import tokenize as tokenize

_HOME = {
    "Edit": "edit",
    "Lens": "lens",
    "Run": "lens",
    "Site": "site",
    "Tokens": "tokens",
    "tokenize": "tokens",
}
# the parser is mechlab.lens.site.site: a package cannot export a function of its file's name
__all__ = ["Edit", "Lens", "Run", "Site", "Tokens", "tokenize"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"mechlab.lens.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
