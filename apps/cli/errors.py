"""What went wrong, as an exit code and one plain sentence.

0   it ran, whatever the verdicts            3     our fault: a traceback is written to a file, and named
2   the user's input                         130   interrupted: what is done is kept
"""

import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Never

from typer.exceptions import TyperException

from mechlab.errors import MechlabError

OK, USER, OURS, INTERRUPTED = 0, 2, 3, 130
DEBUG = "MECHLAB_DEBUG"


class Failure(NamedTuple):
    """How a command ended that gave no answer."""

    code: int
    kind: str
    """"Usage", the name of a MechlabError, "Bug" or "Interrupted"."""
    message: str

    @property
    def document(self) -> dict[str, object]:
        """For ``--json``."""
        return {"error": {"kind": self.kind, "message": self.message}}


class Signals:
    """Whether the user asked to stop: an interrupt inside foreign code can come out as another error."""

    def __init__(self) -> None:
        self.stopped = False

    def stop(self, _number: int, _frame: FrameType | None) -> Never:
        self.stopped = True
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Generator[Signals]:
    """SIGINT and SIGTERM raise KeyboardInterrupt inside; outside they do what they did. A signal that is ignored stays so."""
    signals, before = Signals(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, signals.stop)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def failure(error: BaseException, signals: Signals) -> Failure:
    """The end that this error makes."""
    if signals.stopped or isinstance(error, KeyboardInterrupt):
        return interrupted()
    if isinstance(error, TyperException):
        message = " ".join(error.format_message().split())
        return Failure(USER, "Usage", f"{message} Add --help to see what the command takes.")
    if isinstance(error, MechlabError):
        return Failure(USER, type(error).__name__, str(error))
    return Failure(OURS, "Bug", _our_fault(error))


def interrupted() -> Failure:
    """Ctrl-C, or a request to end."""
    return Failure(
        INTERRUPTED, "Interrupted", "Interrupted: what was saved before is kept, and nothing half-written is left."
    )


def _our_fault(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    what = f"This is a fault in mechlab, not in your input ({type(error).__name__}: {_first_line(error)})"
    if os.environ.get(DEBUG):
        return f"{what}:\n{text}"
    return f"{what}: please report it with {_kept(text)}; {DEBUG}=1 shows it here."


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "no message").rstrip(".")


def _kept(text: str) -> Path:
    descriptor, name = tempfile.mkstemp(prefix="mechlab-error-", suffix=".txt")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)
