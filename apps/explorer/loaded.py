"""Which model the session looks at, and how a page gets a Lens over it.

Weights are loaded once for the whole server. Every session, and every background job, has a tree of modules of its own over the very
same weights (``beside``: nothing is copied, 0.1 s). Hooks live on modules, so two tabs, or a tab and its jobs, cannot disturb
one another, and nobody waits for a lock.
"""

import gc
import os
import time
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

import streamlit as st

from apps.explorer.state import SHARED
from mechlab.errors import UnknownName
from mechlab.models.default import DEFAULT_MODEL

if TYPE_CHECKING:
    from mechlab.lens.lens import Lens
    from mechlab.models.model import Model

MODEL, STORE = "MECHLAB_UI_MODEL", "MECHLAB_UI_STORE"
"""Environment variables in which ``mechlab ui`` says what it was started with."""
_MODELS: dict[str, "Model"] = {}
_LOADING = Lock()
_SEEN: dict[str, Any] = {"until": 0.0, "names": []}


def first_model() -> str:
    """The model that the explorer was started with."""
    return os.environ.get(MODEL) or DEFAULT_MODEL


def store_folder() -> Path:
    """The store that the explorer was started with: the folder of runs."""
    return Path(os.environ.get(STORE) or "runs").expanduser()


def choices() -> list[str]:
    """Models that a session may choose: the one it was started with, and those on this machine.

    A link can name a model, so only these load: a link shall not fetch anything.
    """
    return list(dict.fromkeys([first_model(), DEFAULT_MODEL, *_on_this_machine()]))


def _on_this_machine() -> list[str]:
    """Looked up twice a minute at most: it walks through the caches."""
    from mechlab.models.cache import cached_models

    if time.monotonic() > _SEEN["until"]:
        _SEEN.update(until=time.monotonic() + 30, names=[one.name for one in cached_models()])
    return _SEEN["names"]


def choose_model() -> None:
    """The box in the side bar."""
    st.selectbox("Model", choices(), key="model", help="Others: start with `mechlab ui --model NAME`.", **SHARED)


def model_name() -> str:
    """The model that this session looks at."""
    return str(st.session_state.get("model") or first_model())


def lens() -> "Lens":
    """This session's lens over the chosen model. Call it from pages, not from jobs.

    Raises:
        ModelError: the model cannot be loaded. UnknownName: it is not among the choices.
    """
    name = model_name()
    held: tuple[str, Lens] | None = st.session_state.get("_lens")
    if held is None or held[0] != name:
        ready = name in _MODELS
        with st.spinner(f"Loading {name} …") if not ready else st.empty():
            held = (name, another_lens(name))
        st.session_state["_lens"] = held
    return held[1]


def another_lens(name: str) -> "Lens":
    """A lens of its own over the same weights: for a job in the background. Safe in any thread.

    Raises:
        ModelError: the model cannot be loaded. UnknownName: it is not among the choices.
    """
    from mechlab.lens.lens import Lens
    from mechlab.models.twin import beside

    return Lens(beside(model(name)))


def model(name: str) -> "Model":
    """The loaded model: once per server, whoever asks first. Do not put hooks on it; use ``lens`` or ``another_lens``."""
    with _LOADING:
        if name not in _MODELS:
            if name not in choices():
                raise UnknownName("model", name, choices(), "Others: start with `mechlab ui --model NAME`.")
            from mechlab.models.loading import load

            _MODELS[name] = load(name)
            keep_for_good()
        return _MODELS[name]


def keep_for_good() -> None:
    """Spares what is loaded now from garbage collection.

    Streamlit collects after every run of a script, and jobs ask for one each second. With torch loaded that stops all threads for half
    a second each time: a sweep takes three times as long.
    """
    gc.freeze()


def load_ahead() -> Thread:
    """Begins to load the first model in the background, so that the first page need not wait for all of it."""
    thread = Thread(target=_load_quietly, name="first model", daemon=True)
    thread.start()
    return thread


def _load_quietly() -> None:
    from mechlab.errors import MechlabError

    try:
        another_lens(first_model())
        keep_for_good()
    except MechlabError:
        return  # the page that needs the model says so
