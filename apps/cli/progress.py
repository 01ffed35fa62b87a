"""How far a long command is, on stderr: bars with the time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from apps.cli.output import console, tell

QUIET_SECONDS = 2.0
"""What is over sooner is not worth a line."""
LINE_SECONDS = 10.0
"""Between two plain lines."""


class Reporter(Protocol):
    """Told stages in words, and steps done of steps in all (it is a study's progress). Use it under ``with``."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def stage(self, text: str) -> None: ...
    def __call__(self, label: str, done: int, total: int) -> None: ...


def reporter() -> Reporter:
    """Bars if stderr is a terminal, else lines."""
    return Bars() if sys.stderr.isatty() else Lines()


class Bars:
    """One bar per label. A stage is a bar without an end, until the next stage or label."""

    def __init__(self) -> None:
        self._rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console(sys.stderr),
        )
        self._tasks: dict[str, TaskID] = {}
        self._stage: TaskID | None = None

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end_stage()
        self._rich.stop()

    def stage(self, text: str) -> None:
        self._end_stage()
        self._stage = self._rich.add_task(text, total=None)

    def __call__(self, label: str, done: int, total: int) -> None:
        self._end_stage()
        if not total:
            return
        if label not in self._tasks:
            self._tasks[label] = self._rich.add_task(label, total=total)
        self._rich.update(self._tasks[label], completed=done, total=total)

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._rich.update(self._stage, completed=1, total=1)
            self._stage = None


class Lines:
    """A line when a stage begins, and every few seconds one for the label at work.

    Args:
        write: takes a line.
        clock: seconds.
    """

    def __init__(self, write: Callable[[str], None] = tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._started: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def stage(self, text: str) -> None:
        self._write(f"{text} …")

    def __call__(self, label: str, done: int, total: int) -> None:
        now = self._clock()
        start = self._started.setdefault(label, now)
        elapsed = now - start
        if done >= total:
            if elapsed >= QUIET_SECONDS:
                self._write(f"{label}: {total} of {total}, done in {duration(elapsed)}")
            del self._started[label]  # the same label may begin anew
            self._told.pop(label, None)
        elif elapsed >= QUIET_SECONDS and now - self._told.get(label, start - LINE_SECONDS) >= LINE_SECONDS:
            self._told[label] = now
            left = f", about {duration(elapsed / done * (total - done))} left" if done else ""
            self._write(f"{label}: {done} of {total}{left}")


def duration(seconds: float) -> str:
    """``8 s``, ``3 min 20 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
