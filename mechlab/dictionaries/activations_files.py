"""A folder of activations and what it says of itself. Its files are there whole or not at all.

manifest.json   tokens.safetensors   pieces.json   shard-00000.safetensors ...
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mechlab.errors import StoreError

MANIFEST, TOKENS, PIECES = "manifest.json", "tokens.safetensors", "pieces.json"


class HarvestManifest(BaseModel):
    """What activations were harvested, from what.

    Attributes:
        model, fingerprint: of the model as it was loaded, before any change of precision.
        sites: text form -> number of values a token has there (heads and their dimensions laid end to end).
        dtype: in which the model ran and the activations are kept.
        texts_sha256, tokens_sha256: of the texts given and of the token ids they became.
        excluded: which rows do not count (they are kept all the same).
        shards: rows in each shard; a shard holds whole prompts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["mechlab activations 1"] = "mechlab activations 1"
    model: str
    fingerprint: str
    sites: dict[str, int]
    dtype: Literal["float32", "bfloat16", "float16"]
    texts_sha256: str
    tokens_sha256: str
    n_texts: int
    max_tokens: int
    excluded: str
    shards: tuple[int, ...]
    versions: dict[str, str]

    @property
    def n_rows(self) -> int:
        return sum(self.shards)


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def read_manifest(folder: Path) -> HarvestManifest:
    """Raises StoreError for a folder that holds no activations."""
    try:
        return HarvestManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise StoreError(
            f"{folder} holds no activations ({error.strerror or error}): name a folder that harvest wrote."
        ) from error
    except ValidationError as error:
        raise StoreError(
            f"{folder / MANIFEST} does not describe activations ({error.errors()[0]['msg']}): name a folder that harvest wrote."
        ) from error


def sweep_leftovers(folder: Path) -> None:
    """Deletes the hidden files that killed processes left."""
    for leftover in folder.glob(".*.tmp-*"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)
