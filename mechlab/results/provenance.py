"""Provenance: what it takes to know where a number came from and to make it again."""

import hashlib
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

# Distributions whose version can change a number. Read from installed metadata: asking torch itself would import it.
DISTRIBUTIONS = {
    "mechlab": "mechlab-workbench",
    "torch": "torch",
    "transformers": "transformers",
    "transformer-lens": "transformer-lens",
}


class ModelInfo(BaseModel):
    """The model of a run.

    Attributes:
        name: as the user would type it.
        source: hub id, folder or file it came from.
        fingerprint: hash of config, weights and tokenizer.
        n_layers, n_heads, n_kv_heads, d_model: its shape.
        dtype, device, attention: how it ran ("float32", "cpu", "mechlab").
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    fingerprint: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    dtype: str
    device: str
    attention: str


class Provenance(BaseModel):
    """Circumstances of a run.

    Attributes:
        seed: of prompts, draws and intervals.
        versions: of mechlab, python, torch, transformers and transformer-lens; "absent" where not installed.
        platform: operating system and machine.
        cpu: processor name.
        started: UTC, ISO 8601.
        wall_seconds: from start to report.
        prompts_sha256: hash of the tokenised prompts, see `hash_prompts`.
        command: command line that ran.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    versions: dict[str, str]
    platform: str
    cpu: str
    started: str
    wall_seconds: float
    prompts_sha256: str
    command: str

    @classmethod
    def gather(
        cls, *, seed: int, started: datetime, prompt_ids: Iterable[Sequence[int]], command: str | None = None
    ) -> "Provenance":
        """Reads the machine and the clock at the end of a run.

        Args:
            seed: the run's seed.
            started: aware time at which the run began, ``datetime.now(UTC)``.
            prompt_ids: the token ids of every prompt, without padding.
            command: default: this process's command line.
        """
        assert started.tzinfo is not None, f"The start {started} has no time zone: use datetime.now(UTC)."
        return cls(
            seed=seed,
            versions={"python": platform.python_version()}
            | {key: _version(name) for key, name in DISTRIBUTIONS.items()},
            platform=platform.platform(),
            cpu=cpu_name(),
            started=started.astimezone(UTC).isoformat(timespec="seconds"),
            wall_seconds=round((datetime.now(UTC) - started).total_seconds(), 3),
            prompts_sha256=hash_prompts(prompt_ids),
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if command is None else command,
        )


def hash_prompts(prompt_ids: Iterable[Sequence[int]]) -> str:
    """SHA-256 of the prompts as the model sees them: order, lengths and ids all count."""
    digest = hashlib.sha256()
    for ids in prompt_ids:
        digest.update((" ".join(str(int(token)) for token in ids) + "\n").encode())
    return digest.hexdigest()


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"
