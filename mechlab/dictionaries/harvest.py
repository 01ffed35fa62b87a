"""Harvest: runs a model over texts and keeps what it computes at chosen sites, shard by shard, in a folder.

activations = harvest(lens, passages(count=4000), ["L15.resid_post"], "activations/L15", dtype="bfloat16")
"""

import hashlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from torch import Tensor

from mechlab.dictionaries.activations import Activations, TokenTable
from mechlab.dictionaries.activations_files import (
    MANIFEST,
    PIECES,
    TOKENS,
    HarvestManifest,
    read_manifest,
    shard_path,
    sweep_leftovers,
)
from mechlab.dictionaries.harvest_run import (
    Prompt,
    in_precision,
    longest_prompt,
    prompts_of,
    run_prompts,
    table_of,
    widths_of,
)
from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.lens.site import BY_HEAD, Site, site
from mechlab.results.disk import write_json, write_whole
from mechlab.results.study import Progress

__all__ = ["harvest"]

Precision = Literal["float32", "bfloat16", "float16"]
_SHARD_ROWS = 16_384
_SHARD_BYTES = 128 * 2**20
_VERSIONS = ("torch", "transformers", "transformer-lens")  # that can change a number


def harvest(
    lens: Lens,
    texts: Sequence[str] | Sequence[Sequence[int]],
    sites: Sequence[str | Site],
    folder: str | Path,
    *,
    dtype: Precision | None = None,
    max_tokens: int | None = None,
    batch_tokens: int = 2048,
    shard_rows: int | None = None,
    progress: Progress | None = None,
) -> Activations:
    """Keeps the activations of every token of ``texts`` at ``sites`` (any kind with one vector a token: streams, heads, neurons).

    A shard is in the folder whole or not at all: a harvest that was stopped, even by ``kill -9``, goes on where it was when called
    again with the same arguments. Memory holds one shard, and the token ids of all texts. Layers above the last site are not run.
    First positions and special tokens are kept but do not count (``Activations.rows``): their activations are unlike all others.

    Args:
        texts: texts, or lists of token ids.
        max_tokens: a longer text becomes several prompts; None is 256, or what the model reads if that is less.
        dtype: in which the model runs and the activations are kept; None is the model's own. Where the processor multiplies bfloat16
            natively (AMX, tensor cores) it is several times faster; a copy of the model's weights is made for it.
        batch_tokens: tokens in one forward pass; changes speed and memory, and activations by rounding alone.
        shard_rows: rows in a shard; by default as many as fit 128 MiB, at most 16,384.
        progress: told the rows done after each shard.

    Raises:
        MechlabError: no site, a site without one vector a token, a folder with activations of another model, other texts or sites.
        SiteError: a site this model lacks. PromptError: texts the model cannot read. StoreError: a folder that cannot be written.
    """
    folder = Path(folder)
    wanted = checked_sites(lens, sites)
    prompts = prompts_of(lens, texts, max_tokens)
    runner = in_precision(lens, dtype)
    table = table_of(lens, prompts)
    manifest = _manifest(lens, runner, texts, wanted, prompts, table, max_tokens, shard_rows)
    if (folder / MANIFEST).is_file():
        manifest = _same(read_manifest(folder), manifest, folder)
        sweep_leftovers(folder)
    elif any(folder.glob("shard-*")):
        raise MechlabError(f"{folder} holds shards that no manifest describes: harvest into another folder.")
    else:
        _write_tokens(folder, table)
        write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    _fill(folder, manifest, runner, prompts, wanted, batch_tokens, progress)
    return Activations(folder)


def checked_sites(lens: Lens, sites: Sequence[str | Site]) -> tuple[Site, ...]:
    """Sites with one vector a token, each once. Raises MechlabError and SiteError for others."""
    wanted = tuple(dict.fromkeys(site(at) for at in sites))
    if not wanted:
        raise MechlabError("No site was given to harvest: name at least one, for example L5.resid_post.")
    for at in wanted:
        lens.layout.check(at)
        if at.kind in BY_HEAD:
            raise MechlabError(
                f"Site {at} has a value for each pair of tokens: harvest a site with one vector a token."
            )
        if at.pos is not None:
            raise MechlabError(f"Site {at} names a position and harvest keeps all: write {at.at(None)}.")
    return wanted


def _manifest(
    lens: Lens,
    runner: Lens,
    texts: Sequence[str] | Sequence[Sequence[int]],
    sites: tuple[Site, ...],
    prompts: Sequence[Prompt],
    table: TokenTable,
    max_tokens: int | None,
    shard_rows: int | None,
) -> HarvestManifest:
    widths = widths_of(runner, sites)
    row_bytes = sum(widths.values()) * runner.model.dtype.itemsize
    rows = shard_rows or max(1, min(_SHARD_ROWS, _SHARD_BYTES // row_bytes))
    return HarvestManifest(
        model=lens.model.name,
        fingerprint=lens.model.fingerprint,
        sites={str(at): width for at, width in widths.items()},
        dtype=str(runner.model.dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
        texts_sha256=hashlib.sha256(repr(list(texts)).encode()).hexdigest(),
        tokens_sha256=tokens_hash(table),
        n_texts=len(texts),
        max_tokens=longest_prompt(lens, max_tokens),
        excluded="first position of each prompt, special tokens",
        shards=tuple(_shards([len(prompt.ids) for prompt in prompts], rows)),
        versions={name: version(name) for name in _VERSIONS},
    )


def tokens_hash(table: TokenTable) -> str:
    """Of the ids of all tokens and where prompts begin."""
    digest = hashlib.sha256(table.ids.numpy().tobytes())
    digest.update(table.positions.numpy().tobytes())
    return digest.hexdigest()


def _shards(lengths: Sequence[int], rows: int) -> Iterator[int]:
    """Rows of each shard: whole prompts until there are ``rows``."""
    filled = 0
    for length in lengths:
        filled += length
        if filled >= rows:
            yield filled
            filled = 0
    if filled:
        yield filled


def _same(there: HarvestManifest, new: HarvestManifest, folder: Path) -> HarvestManifest:
    """What the folder says of itself, if that is what is asked for now; how it was cut into shards is the folder's."""
    if there.fingerprint != new.fingerprint:
        raise MechlabError(
            f"{folder} holds activations of {there.model} ({there.fingerprint[:12]}) and the model loaded is {new.model} "
            f"({new.fingerprint[:12]}): harvest into another folder."
        )
    if there.sites != new.sites:
        raise MechlabError(
            f"{folder} holds activations at {', '.join(there.sites)} and {', '.join(new.sites)} were asked for: "
            "harvest into another folder."
        )
    if there.dtype != new.dtype:
        raise MechlabError(
            f"{folder} holds activations in {there.dtype} and {new.dtype} was asked for: harvest into another folder."
        )
    if there.tokens_sha256 != new.tokens_sha256:
        raise MechlabError(
            f"{folder} holds activations of {there.n_texts} texts (tokens {there.tokens_sha256[:12]}) and {new.n_texts} others "
            f"(tokens {new.tokens_sha256[:12]}) were given: harvest into another folder."
        )
    return there


def _write_tokens(folder: Path, table: TokenTable) -> None:
    from safetensors.torch import save

    columns = {name: getattr(table, name).contiguous() for name in ("ids", "prompts", "positions", "kept", "texts")}
    write_whole(folder / TOKENS, save(columns))
    write_json(folder / PIECES, table.pieces)


def _fill(
    folder: Path,
    manifest: HarvestManifest,
    runner: Lens,
    prompts: Sequence[Prompt],
    sites: tuple[Site, ...],
    batch_tokens: int,
    progress: Progress | None,
) -> None:
    """Computes the shards that are not there."""
    first = done = 0
    for shard, rows in enumerate(manifest.shards):
        last, filled = first, 0
        while filled < rows:
            filled += len(prompts[last].ids)
            last += 1
        path = shard_path(folder, shard)
        if not path.is_file():
            values = run_prompts(runner, [prompt.ids for prompt in prompts[first:last]], sites, batch_tokens)
            _write_shard(path, {str(at): tensor for at, tensor in values.items()})
        first, done = last, done + rows
        if progress:
            progress("activations", done, manifest.n_rows)


def _write_shard(path: Path, values: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    write_whole(path, save({name: value.contiguous() for name, value in values.items()}))
