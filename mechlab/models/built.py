"""Models that mechlab makes itself, once, and keeps in its cache: whole or absent, made under a lock, known by the hash of their recipe.

A folder holds Hugging Face files and, written last, `mechlab-source.json` with the recipe's hash and what was measured when it was made.
A folder of another recipe is made anew.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

from mechlab.errors import ModelError
from mechlab.models.cache import SOURCE_FILE, alone, cache_root

if TYPE_CHECKING:
    from mechlab.models.model import Model

Tell = Callable[[str], None]
Measured = dict[str, float]


def built_folder(
    name: str, recipe_sha256: str, make: Callable[[Tell], tuple[Model, Measured]], tell: Tell | None = None
) -> Path:
    """The folder of the model `name`, made by `make` if it is not there as this recipe gives it.

    Safe with several processes at once: the others wait. A folder that is not whole, or of another recipe, is replaced.
    Raises ModelError when the cache folder cannot be written; whatever `make` raises.
    """
    tell = tell or (lambda _: None)
    folder = cache_root() / "models" / name
    if is_built(folder, recipe_sha256):
        return folder
    with _writable(folder.parent), alone(folder.parent / f".{name}-lock", f"making {name}", tell):
        if not is_built(folder, recipe_sha256):  # another process may have made it while we waited
            for stale in folder.parent.glob(f".{name}-*/"):
                shutil.rmtree(stale)  # of a killed process: the lock is ours
            model, measured = make(tell)
            save_built(model, name, recipe_sha256, measured)
    return folder


def save_built(model: Model, name: str, recipe_sha256: str, measured: Measured) -> Path:
    """Writes a model into the cache under `name`, in one step at the end; what stood there is replaced."""
    from mechlab.models.quiet import quiet

    folder = cache_root() / "models" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as temporary:
        made = Path(temporary) / "model"
        with quiet():
            model.hf.save_pretrained(made, max_shard_size="4GB")  # one file  # pyright: ignore[reportArgumentType]
            model.tokenizer.save_pretrained(made)
        record = {
            "model": name,
            "source": "made on this machine",
            "recipe_sha256": recipe_sha256,
            "safetensors_bytes": (made / "model.safetensors").stat().st_size,
            "measured": measured,
            "versions": {package: importlib.metadata.version(package) for package in ("torch", "transformers")},
        }
        (made / SOURCE_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(Path(temporary) / "before")
        made.rename(folder)
    return folder


def is_built(folder: Path, recipe_sha256: str | None = None) -> bool:
    """Whether the folder is whole and, if a hash is given, of that recipe."""
    mark, weights = folder / SOURCE_FILE, folder / "model.safetensors"
    if not (mark.is_file() and weights.is_file()):
        return False
    record = json.loads(mark.read_text(encoding="utf-8"))
    whole = weights.stat().st_size == record["safetensors_bytes"]
    return whole and recipe_sha256 in (None, record.get("recipe_sha256"))


@contextlib.contextmanager
def _writable(folder: Path) -> Generator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ModelError(
            f"The cache folder {str(folder)!r} cannot be written ({error.strerror}): set MECHLAB_CACHE to a folder of your own with "
            "100 MB free."
        ) from error
