"""The store: reports on disk. A run is there whole or not at all.

1. Everything is written to a hidden folder ``.<name>.tmp-…`` inside the store, each file flushed to the disk.
2. The folder is renamed to ``<name>``: one step for the file system, so a killed process leaves at most a hidden
   folder.
3. Saving holds the store's lock; whatever hidden folder is found under the lock is of a killed save, and is deleted.

Tables are Parquet, figures plotly JSON, the rest JSON and one HTML page. No pickle is ever written or read.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mechlab.errors import StoreError, UnknownName
from mechlab.results.manifest import Manifest, read_manifest
from mechlab.results.run_files import read_report, run_files

if TYPE_CHECKING:
    from mechlab.results.report import Report

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_LOCK_SECONDS = 60


class Store:
    """Reports in one folder, one sub-folder each.

    Args:
        root: the folder; made by the first save. Nothing is touched before.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def save(self, report: "Report", name: str | None = None) -> Path:
        """Writes a report and returns its folder.

        Args:
            report: what to keep.
            name: folder name; default ``{study}-{model}-{UTC time}``, with ``-2``, ``-3``, … where that is taken.

        Raises:
            StoreError: a name that is taken or no plain folder name, a store that cannot be written, a full disk.
        """
        if name is not None:
            self._inside(name)
        with self._writing():
            name = self._free_name(report) if name is None else self._unused(name)
            folder = self.root / f".{name}.tmp-{secrets.token_hex(4)}"
            try:
                for path, content in run_files(report, name):
                    _write(folder / path, content)
                for directory in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
                    _flush_directory(directory)
                folder.replace(self.root / name)
            except BaseException:  # also a keyboard interrupt: leave nothing half-written behind
                shutil.rmtree(folder, ignore_errors=True)
                raise
            _flush_directory(self.root)
        return self.root / name

    def check(self, name: str | None = None) -> None:
        """Raises what `save` would raise now for this folder and this name, without writing: ask before a long run.

        Raises:
            StoreError: as `save`, save for a disk that fills up meanwhile.
        """
        if name is not None:
            self._unused(self._inside(name).name)
        try:
            there = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
            if not there.is_dir():
                raise NotADirectoryError
            if not os.access(there, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise self._refusal(error) from error

    def runs(self) -> list[Manifest]:
        """Manifests of all whole runs, newest first. What cannot be read is left out and told by `problems`."""
        found = [result for result in self._scan().values() if isinstance(result, Manifest)]
        return sorted(found, key=lambda manifest: (manifest.created, manifest.name), reverse=True)

    def problems(self) -> list[str]:
        """One sentence for each folder in the store that is no readable run."""
        return [str(result) for result in self._scan().values() if isinstance(result, StoreError)]

    def load(self, name: str) -> "Report":
        """The report of that run, its verdicts computed anew.

        Raises:
            UnknownName: no run of that name.
            StoreError: a name that leaves the store, a run from a newer schema, a missing or damaged file.
        """
        folder = self._inside(name)
        if not folder.is_dir():
            names = [manifest.name for manifest in self.runs()]
            if not names:
                raise StoreError(f"There is no run {name!r}: the store {self.root} has none yet.")
            raise UnknownName("run", name, names)
        return read_report(folder, read_manifest(folder))

    def _scan(self) -> dict[str, Manifest | StoreError]:
        if self.root.exists() and not self.root.is_dir():
            raise StoreError(f"The store {self.root} is a file: name a folder.")
        return {folder.name: _manifest_or_problem(folder) for folder in sorted(self._folders())}

    def _folders(self) -> Iterator[Path]:
        if self.root.is_dir():
            yield from (path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))

    def _inside(self, name: str) -> Path:
        folder = self.root / name
        if not RUN_NAME.fullmatch(name) or folder.resolve().parent != self.root.resolve():
            raise StoreError(
                f"Run name {name!r} is not allowed: use letters, digits, '.', '_' and '-', starting with a letter or digit."
            )
        return folder

    def _unused(self, name: str) -> str:
        if (self.root / name).exists():
            raise StoreError(
                f"The store {self.root} already has a run {name!r}: choose another name or delete that run."
            )
        return name

    def _free_name(self, report: "Report") -> str:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        base = f"{_slug(report.study)}-{_slug(report.model.name.rpartition('/')[2])}-{stamp}"
        name, count = base, 1
        while (self.root / name).exists():
            count += 1
            name = f"{base}-{count}"
        return name

    @contextmanager
    def _writing(self) -> Generator[None, None, None]:
        """Holds the store's lock, cleans up after killed saves, and tells what the disk refuses in one sentence."""
        from filelock import FileLock, Timeout

        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".lock", timeout=_LOCK_SECONDS):
                for leftover in self.root.glob(".*.tmp-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                yield
        except Timeout as error:
            raise StoreError(
                f"The store {self.root} has been busy for {_LOCK_SECONDS} seconds: wait for the other save, then try again."
            ) from error
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> StoreError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreError(f"The disk of {self.root} is full: free some space, or choose another store.")
        if isinstance(error, FileExistsError | NotADirectoryError):
            return StoreError(f"The store {self.root} is a file or lies under one: name a folder.")
        return StoreError(
            f"The store {self.root} cannot be written ({error.strerror or error}): choose another folder."
        )


def _manifest_or_problem(folder: Path) -> Manifest | StoreError:
    try:
        if folder.is_symlink():
            return StoreError(f"{folder} is a link: a run is a folder of its own.")
        return read_manifest(folder)
    except StoreError as problem:
        return problem


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_directory(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder for this
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "run"
