"""Transcoders for the study, trained on the spot, and what is compared with them: one set of each, by layer."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from circuits.studies.transcoder_claims import LINEAR, UNTRAINED
from circuits.studies.transcoder_dictionaries import linear_map, untrained, zeroed
from circuits.studies.transcoder_evidence import Floats
from mechlab.dictionaries.activations import ActivationSource
from mechlab.dictionaries.dictionary import Dictionary
from mechlab.dictionaries.harvest import harvest
from mechlab.dictionaries.training_settings import TranscoderSettings
from mechlab.dictionaries.transcoder_training import train_transcoder
from mechlab.lens.edit import splice
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens
from mechlab.results.study import Progress, named
from mechlab.texts import passages

ByLayer = Mapping[int, Dictionary]
_PASSAGE = 400
_TOKENS_A_PASSAGE = 70  # at least, of English
_FEWEST = 20  # passages, so that a tenth can be held out
_BATCH = 512


@dataclass(frozen=True)
class Budget:
    """How the transcoders are trained: ``tokens`` of text seen ``epochs`` times, ``features`` wide, ``k`` active per token."""

    tokens: int
    epochs: int
    features: int
    k: int
    seed: int


def fitted(
    lens: Lens, layers: Iterable[int], budget: Budget, progress: Progress
) -> tuple[dict[str, ByLayer], pd.DataFrame]:
    """Stand-ins for the MLPs of some layers, by name: ``transcoders``, untrained ones, linear maps, and nothing (``zeroed``).

    Returns:
        with them a table of fits: ``layer``, ``stand_in``, ``fvu`` (on texts not trained on), ``active`` features per token,
        ``dead`` features.
    """
    layers = list(layers)
    texts = passages(count=max(_FEWEST, -(-budget.tokens // _TOKENS_A_PASSAGE)), seed=budget.seed, characters=_PASSAGE)
    sites = [Site(kind, layer) for layer in layers for kind in ("mlp_in", "mlp_out")]
    with tempfile.TemporaryDirectory(prefix="mechlab-transcoder-") as place:
        found = harvest(
            lens, texts, sites, Path(place) / "activations", dtype="bfloat16", progress=named(progress, "activations")
        )
        train, held_out = found.split(0.1)
        settings = _settings(budget, len(train.rows))
        made: dict[int, Dictionary] = {}
        for done, layer in enumerate(layers):
            progress("training transcoders", done, len(layers))
            sites_of = Site("mlp_in", layer), Site("mlp_out", layer)
            made[layer] = train_transcoder(train, *sites_of, settings, Path(place) / f"L{layer}", held_out=held_out)
        progress("training transcoders", len(layers), len(layers))
        sets: dict[str, ByLayer] = {
            "transcoders": made,
            UNTRAINED: {layer: untrained(one, budget.k, budget.seed) for layer, one in made.items()},
            LINEAR: {layer: linear_map(lens, layer, train) for layer in layers},
            "zeroed": {layer: zeroed(lens, layer) for layer in layers},
        }
        return sets, _fits(sets, held_out)


def _settings(budget: Budget, rows: int) -> TranscoderSettings:
    return TranscoderSettings(
        kind="topk",
        k=budget.k,
        n_features=budget.features,
        tokens=max(rows * budget.epochs, 20 * _BATCH),
        batch=min(_BATCH, rows),
        lr=1e-3,
        warm_up=10,
        decay=0.2,
        sparsity=0.0,
        revive=1 / 32,
        dead_after=40,
        seed=budget.seed,
    )


def _fits(sets: Mapping[str, ByLayer], held_out: ActivationSource) -> pd.DataFrame:
    rows: list[tuple[object, ...]] = []
    for name, by_layer in sets.items():
        for layer, one in by_layer.items():
            read, written = held_out.read([one.site, one.target], held_out.rows)
            fvu = float((written - _made(one, read)).square().sum() / (written - written.mean(0)).square().sum())
            codes = one.encode(read)
            active = float((codes != 0).float().sum(1).mean()) if name in ("transcoders", UNTRAINED) else float("nan")
            dead = float((~(codes != 0).any(0)).sum()) if name in ("transcoders", UNTRAINED) else float("nan")
            rows.append((layer, name, fvu, active, dead))
    return pd.DataFrame(rows, columns=["layer", "stand_in", "fvu", "active", "dead"]).sort_values(
        "layer", kind="stable"
    )


@torch.no_grad()
def _made(one: Dictionary, read: Tensor) -> Tensor:
    return one.reconstruct(read)


def held_out_texts(n: int, seed: int) -> list[str]:
    """Passages that no transcoder was trained on."""
    return passages(count=n, seed=seed, part="held-out", characters=_PASSAGE)


def losses(
    lens: Lens, sets: Mapping[str, ByLayer], n_passages: int, seed: int, progress: Progress
) -> dict[str, Floats]:
    """Mean next-token loss in nats of each held-out passage: of the model, and with each set in the place of its MLPs."""
    tokens = lens.tokens(held_out_texts(n_passages, seed))
    found: dict[str, Floats] = {}
    for done, (name, by_layer) in enumerate({"model": {}, **sets}.items()):
        progress("loss on held-out text", done, len(sets) + 1)
        found[name] = _losses(lens, tokens, by_layer)
    progress("loss on held-out text", len(sets) + 1, len(sets) + 1)
    return found


def _losses(lens: Lens, tokens: Tokens, by_layer: ByLayer) -> Floats:
    edits = [splice(one.target, str(layer), keep_error=False) for layer, one in by_layer.items()]
    spliced = {str(layer): one for layer, one in by_layer.items()}
    found: list[float] = []
    for first in range(0, len(tokens), 4):  # few at a time: the logits of a batch are large
        batch = tokens.select(range(first, min(first + 4, len(tokens))))
        logits = lens.run(batch, edits, dictionaries=spliced).logits
        assert logits is not None
        logs = logits[:, :-1].float().log_softmax(-1).gather(2, batch.ids[:, 1:, None].to(logits.device))[..., 0]
        found += [-float(row[: length - 1].mean()) for row, length in zip(logs, batch.lengths, strict=True)]
    return np.array(found)
