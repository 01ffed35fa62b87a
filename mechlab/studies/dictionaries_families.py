"""The dictionaries that the study compares, made on the spot from one site's activations, and their controls."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mechlab.dictionaries.activations import ActivationSource
from mechlab.dictionaries.baselines import difference_in_means, ica, kmeans, pca, random_units, top_neurons
from mechlab.dictionaries.concepts import Readings
from mechlab.dictionaries.dictionary import Dictionary, DictionaryOrigin
from mechlab.dictionaries.matching_pursuit import StopRules
from mechlab.dictionaries.matching_pursuit_dictionary import MpDictionary, from_sae_lens
from mechlab.dictionaries.sae import SaeDictionary
from mechlab.dictionaries.snmf import SnmfDictionary, SnmfSettings, factorise
from mechlab.dictionaries.training import train
from mechlab.dictionaries.training_settings import Architecture, SaeSettings
from mechlab.lens.site import Site
from mechlab.results.study import Progress, named
from mechlab.studies.dictionaries_evidence import (
    L1,
    MEANS,
    MP,
    NEURONS,
    RIVAL,
    SECOND,
    SHUFFLED,
    SUBJECT,
    UNTRAINED,
    Kind,
)
from mechlab.studies.dictionaries_settings import Settings

_SLOW_ROWS, _SNMF_FEATURES, _ICA_FEATURES = 6000, 100, 100
N_FAMILIES = 13
Maker = Callable[[str], Dictionary]


@dataclass(frozen=True, eq=False)
class Made:
    """A dictionary, what it is for (``trained``, ``baseline``, ``control``), and the seconds it took."""

    name: str
    kind: Kind
    dictionary: Dictionary
    seconds: float


class Shuffled(ActivationSource):
    """The same activations with every dimension shuffled over rows by itself: each keeps its values, none goes with another."""

    def __init__(self, source: ActivationSource, at: Site, seed: int) -> None:
        super().__init__(source.model, source.fingerprint, source.data, {at: source.width(at)}, source.table)
        generator = torch.Generator().manual_seed(seed)
        (values,) = source.read([at], source.rows)
        for column in range(values.shape[1]):
            values[:, column] = values[torch.randperm(len(values), generator=generator), column]
        self._values = torch.zeros(len(source), values.shape[1])
        self._values[source.rows] = values

    def read(self, sites: object, rows: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002 (there is one site)
        return (self._values[rows],)

    def _starts(self) -> Tensor:
        return torch.tensor([0, len(self)])


def families(
    activations: ActivationSource, at: Site, sentences: Readings, settings: Settings, place: Path, progress: Progress
) -> Iterator[Made]:
    """Every dictionary of the model's site, one after another."""
    groups: dict[Kind, dict[str, Maker]] = {
        "trained": _trained(activations, at, settings, place, progress),
        "baseline": _fitted(activations, at, sentences, settings, progress),
        "control": _controls(activations, at, settings, place, progress),
    }
    for kind, makers in groups.items():
        for name, make in makers.items():
            began = time.perf_counter()
            yield Made(name, kind, make(name), time.perf_counter() - began)


def _trained(
    activations: ActivationSource, at: Site, settings: Settings, place: Path, progress: Progress
) -> dict[str, Maker]:
    def sae(architecture: Architecture, seed: int = 0) -> Callable[[str], SaeDictionary]:
        asked = sae_settings(settings, architecture, settings.seed + seed)
        folder = place / f"{architecture}-{seed}"
        return lambda name: train(activations, at, asked, folder, progress=named(progress, f"training {name}"))

    pursuing = sae("matching_pursuit")
    return {
        SUBJECT: sae("topk"),
        SECOND: sae("topk", seed=1),
        L1: sae("standard"),
        MP: lambda name: with_fast_encoder(pursuing(name)),
    }


def _fitted(
    activations: ActivationSource, at: Site, sentences: Readings, settings: Settings, progress: Progress
) -> dict[str, Maker]:
    """Baselines that no gradient trains; those that are slow see some of the rows, evenly spread."""
    rows = activations.rows
    (x,) = activations.read([at], rows)
    few = x[torch.linspace(0, len(x) - 1, min(len(x), _SLOW_ROWS)).long()]
    width, k, own = x.shape[1], settings.k, origin(activations, at, "")
    snmf = SnmfSettings(
        k=min(_SNMF_FEATURES, width), iterations=100, sparsity=settings.snmf_sparsity, seed=settings.seed
    )
    fitting = ~sentences.judging[sentences.sentence]
    return {
        "SNMF": lambda name: SnmfDictionary(
            origin(activations, at, "snmf"), factorise(few, snmf, progress=named(progress, f"fitting {name}")).features
        ),
        "PCA": lambda _: pca(x, min(settings.n_features, width), own, top=k),
        "ICA": lambda _: ica(few, min(_ICA_FEATURES, width), own, top=k, seed=settings.seed),
        "k-means": lambda _: kmeans(x, min(settings.n_features, len(x)), own, seed=settings.seed),
        NEURONS: lambda _: top_neurons(x, min(settings.n_features, width), own),
        MEANS: lambda _: difference_in_means(
            sentences.activations[fitting], sentences.labels[sentences.sentence][fitting], sentences.names, own
        ),
    }


def _controls(
    activations: ActivationSource, at: Site, settings: Settings, place: Path, progress: Progress
) -> dict[str, Maker]:
    def shuffled(name: str) -> Dictionary:
        source, asked = Shuffled(activations, at, settings.seed), sae_settings(settings, "topk", settings.seed)
        return train(source, at, asked, place / "shuffled", progress=named(progress, f"training {name}"))

    return {
        RIVAL: lambda _: random_pursuit(activations, at, settings),
        UNTRAINED: lambda _: untrained(activations, at, settings, settings.seed),
        SHUFFLED: shuffled,
    }


def sae_settings(settings: Settings, architecture: Architecture, seed: int) -> SaeSettings:
    """The training settings of one family; they differ in nothing else."""
    steps = settings.training_tokens // settings.batch
    return SaeSettings(  # pyright: ignore[reportCallIssue]
        architecture=architecture,
        n_features=settings.n_features,
        tokens=settings.training_tokens,
        batch=settings.batch,
        lr=settings.learning_rate,
        warm_up=max(1, steps // 20),
        k=settings.k,
        sparsity=settings.sparsity,
        seed=seed,
    )


def with_fast_encoder(trained: SaeDictionary) -> MpDictionary:
    """A matching-pursuit SAE with the fast encoder."""
    return from_sae_lens(trained.sae, trained.origin)  # pyright: ignore[reportArgumentType]


def random_pursuit(activations: ActivationSource, at: Site, settings: Settings) -> MpDictionary:
    """Random unit atoms around the mean, read by as many steps of matching pursuit as the SAEs have active features."""
    found = activations.statistics(at)
    atoms = random_directions(settings.n_features, activations.width(at), settings.seed + 50)
    rules = StopRules(steps=settings.k)  # pyright: ignore[reportCallIssue]
    return MpDictionary(origin(activations, at, "random atoms"), atoms, found.mean, rules)


def random_directions(n: int, width: int, seed: int) -> Tensor:
    """``[n, width]`` unit vectors, uniform on the sphere."""
    return random_units(n, width, seed=seed)


def untrained(activations: ActivationSource, at: Site, settings: Settings, seed: int) -> SaeDictionary:
    """The TopK SAE as training begins it: tied random weights, the decoder's bias at the mean, the scale folded in."""
    from sae_lens import TopKSAE, TopKSAEConfig

    width, found = activations.width(at), activations.statistics(at)
    sae = TopKSAE(TopKSAEConfig(d_in=width, d_sae=settings.n_features, k=settings.k))
    atoms = random_directions(settings.n_features, width, seed)
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(atoms.T)
        sae.b_enc.zero_()
        sae.b_dec.copy_(found.mean)
    return SaeDictionary(sae, origin(activations, at, "untrained topk"))


def origin(activations: ActivationSource, at: Site, method: str) -> DictionaryOrigin:
    """Of a dictionary that was not trained."""
    return DictionaryOrigin(
        method=method, model=activations.model, fingerprint=activations.fingerprint, site=str(at), data=activations.data
    )
