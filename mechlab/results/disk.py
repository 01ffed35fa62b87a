"""Files that are there whole or not at all, and JSON read with one sentence for what is wrong with it."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mechlab.errors import StoreError


def write_whole(path: str | Path, content: bytes) -> Path:
    """Writes beside the place and renames: a killed process leaves the old file, or none. Raises StoreError."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}): choose another place, or free some space."
        ) from error
    finally:
        if beside.is_file():
            beside.unlink()
    return path


def write_json(path: str | Path, record: object) -> Path:
    """As `write_whole`; numbers read back as the same numbers. NaN and infinities are a mistake of ours."""
    return write_whole(path, json.dumps(record, ensure_ascii=False, allow_nan=False).encode())


def read_bytes(path: str | Path) -> bytes:
    """Raises StoreError for a file that is missing or cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror or error}): check the path.") from error


def read_json(path: str | Path) -> Any:
    """Raises StoreError for a file that is missing or is no JSON."""
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is no valid JSON ({error}): is it the right file, and whole?") from error


def not_the_format(path: str | Path, format_name: str, error: ValidationError) -> StoreError:
    """The first thing that a check found, as one sentence."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the file"
    more = error.error_count() - 1
    others = f"; {more} more like that" if more else ""
    return StoreError(f"{path} is no {format_name} file: {place}: {first['msg']}{others}.")
