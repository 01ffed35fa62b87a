"""Transformers without its bars and remarks, within one call."""

import contextlib
import io
import logging
import warnings
from collections.abc import Generator


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Silence the log lines, bars and warnings of transformers and huggingface_hub; put back what was set before.

    Standard error is diverted too: the GGUF reader shows a bar that no switch turns off. Errors still raise.
    """
    from huggingface_hub import utils as hub
    from transformers.utils import logging as chatter

    verbosity, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    hub_verbosity, hub_silent = hub.logging.get_verbosity(), hub.are_progress_bars_disabled()
    chatter.set_verbosity_error()
    hub.logging.set_verbosity(logging.CRITICAL)  # it reports each retry as a warning
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(verbosity)
        hub.logging.set_verbosity(hub_verbosity)
        if bars:
            chatter.enable_progress_bar()  # this also turns on the hub's bars
        if hub_silent:
            hub.disable_progress_bars()
        else:
            hub.enable_progress_bars()
