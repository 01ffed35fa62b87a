"""Where models are kept on this machine. Imports neither torch nor transformers."""

import contextlib
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

SOURCE_FILE = "mechlab-source.json"
"""Written last into a model folder of our cache: says where the weights came from."""


@dataclass(frozen=True)
class CachedModel:
    """One model on disk."""

    name: str
    """What to type to load it."""
    source: str
    """'default' (our cache) or 'hub' (the Hugging Face cache)."""
    size_bytes: int
    path: Path


def cache_root() -> Path:
    """Our cache folder: $MECHLAB_CACHE, or the user's cache folder of this system. Not created."""
    chosen = os.environ.get("MECHLAB_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("mechlab"))


def cached_models() -> list[CachedModel]:
    """Models that load without a network: ours first, then those of the Hugging Face cache; each group by name."""
    return _ours() + _of_the_hub()


@contextlib.contextmanager
def alone(lock_file: Path, doing: str, tell: Callable[[str], None]) -> Generator[None]:
    """Hold the lock; say so when another process that is ``doing`` the same has it. The system frees it if that process dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for another process that is {doing}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _ours() -> list[CachedModel]:
    marks = sorted((cache_root() / "models").glob(f"[!.]*/{SOURCE_FILE}"))  # folders with a dot are unfinished
    return [CachedModel(mark.parent.name, "default", _size_bytes(mark.parent), mark.parent) for mark in marks]


def _of_the_hub() -> list[CachedModel]:
    from huggingface_hub import constants, scan_cache_dir

    if not Path(constants.HF_HUB_CACHE).is_dir():
        return []
    repos = [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    return [
        CachedModel(repo.repo_id, "hub", repo.size_on_disk, repo.repo_path)
        for repo in sorted(repos, key=lambda repo: repo.repo_id)
    ]


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
