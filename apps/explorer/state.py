"""What a link holds, and what a session keeps.

Widgets whose value matters are bound to the address by Streamlit itself: give them a ``key`` and ``**SHARED``. The key is the name in the
address (``?patch_clean=...``). A value at its default is left out; a value that the widget does not take falls back to the default.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypedDict, TypeVar

import streamlit as st

T = TypeVar("T")
MOST_KEPT = 32


class Shared(TypedDict):
    """Options of a widget whose value is in the address."""

    bind: Literal["query-params"]
    persist_state: Literal["session"]


SHARED: Shared = {"bind": "query-params", "persist_state": "session"}


def put(key: str, value: Any) -> None:
    """Sets a widget from a callback (a click on a figure): it shows the value in the same run."""
    st.session_state[key] = value


def offer(pages: dict[str, Any]) -> None:
    """Tells the session its pages (Streamlit's), by name."""
    st.session_state["_pages"] = pages


def go_to(page: str) -> None:
    """Opens another page, with what was ``put`` there. The script ends here. (A page drawn alone, in a test, stays.)"""
    if page in st.session_state.get("_pages", {}):
        # without query_params={} it refuses while a widget of this page holds a value in the address
        st.switch_page(st.session_state["_pages"][page], query_params={})


def drop_unless(key: str, options: Sequence[object]) -> None:
    """Forgets a widget's value that its new options no longer hold. Call it just before the widget."""
    if key in st.session_state and st.session_state[key] not in options:
        del st.session_state[key]


def remembered(inputs: Hashable, make: Callable[[], T]) -> T:
    """``make()``, once per session and inputs: scripts run anew at every interaction. Of quick things; slow ones are jobs.

    Args:
        inputs: all that decides the result, a name of the thing first: ``("logit lens", model, prompt)``.
    """
    kept: OrderedDict[Hashable, Any] = st.session_state.setdefault("_kept", OrderedDict())
    if inputs not in kept:
        kept[inputs] = make()
    kept.move_to_end(inputs)
    while len(kept) > MOST_KEPT:
        kept.popitem(last=False)
    return kept[inputs]
