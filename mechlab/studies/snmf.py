"""The snmf study: groups of MLP neurons as features, on sentences about concepts.

What is claimed is written in ``snmf_claims`` before anything runs. Here the numbers are measured (``snmf_evidence``):

1. The neurons' activations on concept sentences and on passages; SNMF fitted on half of the sentences and the passages, and beside it a
  TopK autoencoder on the same tokens, difference in means, PCA, k-means, single neurons, random sparse directions, SNMF of shuffled
  activations.
2. For each concept the best direction of each method, chosen on those sentences, is judged on the others; also with shuffled labels,
  and in the random-weight twin.
3. The held-out error of SNMF beside that of features fitted on shuffled activations.
4. At one layer the chosen directions are added at equal KL while the model writes.
5. At that layer the loadings are factored again, twice, into features of features (``snmf_levels``); the same of shuffled activations.
6. At the last of the layers, features of the days of the week: the neurons that they share and those that each has for itself are
  amplified, beside random neurons, features of shuffled activations and the twin's (``snmf_family``).

Shafran, Geiger and Geva, arXiv 2506.10920.
"""

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mechlab.analyses.circumstances import study_report
from mechlab.dictionaries.concepts import Concepts, Readings, bundled_concepts, read_concepts
from mechlab.dictionaries.dictionary import DictionaryOrigin
from mechlab.dictionaries.harvest import harvest
from mechlab.dictionaries.scorecard_causal import Writing
from mechlab.dictionaries.snmf import Init, SnmfSettings
from mechlab.dictionaries.training import train
from mechlab.dictionaries.training_settings import SaeSettings
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models.twin import random_twin
from mechlab.results.report import Report
from mechlab.results.study import Progress, Study, named
from mechlab.studies import snmf_claims, snmf_tables
from mechlab.studies.snmf_evidence import Budget, Evidence, Layer, measure_layer, readable, steering
from mechlab.studies.snmf_family import DAYS, measure_family
from mechlab.studies.snmf_levels import measure_levels
from mechlab.texts.passage import passages


class Settings(BaseModel):
    """Settings of the snmf study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...] | None = Field(default=None, description="none: the first, the middle and the last but one")
    k: int = Field(default=50, ge=2, description="features")
    sparsity: float = Field(default=0.01, gt=0, le=1, description="share of neurons in a feature")
    init: Init = Field(default="random", description="how the factorisation starts")
    iterations: int = Field(default=200, ge=1, description="of the factorisation, at most")
    n_passages: int = Field(default=30, ge=2, description="passages of plain text fitted on beside the sentences")
    sae_tokens: int = Field(
        default=100_000, ge=20_000, description="tokens the autoencoder sees in training, again in later epochs"
    )
    draws: int = Field(default=10, ge=2, description="draws of random directions")
    n_steered: int = Field(default=5, ge=2, description="concepts steered to")
    kl: float = Field(default=0.25, gt=0, description="nats every steering direction may cost at the next token")
    samples: int = Field(default=4, ge=1, description="texts per direction")
    new_tokens: int = Field(default=12, ge=2, description="tokens per text")
    tuning: int = Field(default=100, ge=0, description="steps in which all levels of features are tuned together")
    family: tuple[str, ...] = Field(default=DAYS, description="words whose features may share neurons")
    family_sparsity: float = Field(default=0.05, gt=0, le=1, description="share of neurons in a feature of those words")
    seed: int = Field(default=0, description="of starts, draws, shuffles, texts and the twin")


def run(lens: Lens, settings: Settings, progress: Progress) -> Report:
    """Runs the study on one model. See the module's text for the steps.

    Raises:
        SiteError: a layer this model lacks, or one without MLP neurons.
    """
    started = datetime.now(UTC)
    concepts = bundled_concepts()
    names = concepts.names[: settings.n_steered]
    layers = settings.layers or _default_layers(lens)
    texts = passages(count=settings.n_passages, seed=settings.seed)
    twin = Lens(random_twin(lens.model, settings.seed), prepend_bos=lens.prepend_bos)
    steered = layers[len(layers) // 2]
    of_model, of_twin = dict[int, _Measured](), dict[int, _Measured]()
    for done, layer in enumerate(layers):
        progress("layers", done, len(layers))
        of_model[layer] = _layer(lens, layer, concepts, texts, settings, progress, with_others=True)
        of_twin[layer] = _layer(twin, layer, concepts, texts, settings, progress, with_others=False)
    progress("features of features", 0, 1)
    middle = of_model[steered]
    budget = _budget(settings)
    levels = measure_levels(
        lens, middle.layer.at, middle.readings, middle.extra, budget.snmf, settings.tuning, settings.draws
    )
    family = partial(
        measure_family, at=Site("mlp_post", layers[-1]), words=settings.family, settings=_of_family(settings)
    )
    progress("steering", 0, 1)
    writing = Writing(samples=settings.samples, tokens=settings.new_tokens)
    found = Evidence(
        layers={layer: one.layer for layer, one in of_model.items()},
        twin={layer: one.layer for layer, one in of_twin.items()},
        steered=steering(lens, middle.layer, concepts, names, settings.kl, writing),
        readable=readable(lens, middle.layer, concepts.names),
        levels=levels,
        family=family(lens, draws=settings.draws, progress=progress, shuffled=False),
        family_shuffled=family(lens, draws=0, progress=progress, shuffled=True),
        family_twin=family(twin, draws=0, progress=progress, shuffled=False),
        steered_layer=steered,
        family_layer=layers[-1],
        kl=settings.kl,
        tokens=middle.fitted,
        seed=settings.seed,
    )
    tables, figures = snmf_tables.tables_and_figures(found)
    return study_report(
        STUDY,
        lens,
        started,
        [lens.tokens(list(concepts.neutral)), lens.tokens(texts)],
        seed=settings.seed,
        config={**settings.model_dump(), "layers": list(layers)},
        summary=snmf_tables.summary(found),
        findings=snmf_claims.findings(found),
        tables=tables,
        figures=figures,
    )


def _default_layers(lens: Lens) -> tuple[int, ...]:
    last = lens.model.n_layers - 1
    return tuple(sorted({0, lens.model.n_layers // 2, max(0, last - 1)}))


@dataclass(frozen=True, eq=False)
class _Measured:
    """A layer's numbers, what they were measured on, and how many tokens were fitted on."""

    layer: Layer
    readings: Readings
    extra: Tensor
    fitted: int


def _layer(
    lens: Lens,
    layer: int,
    concepts: Concepts,
    texts: list[str],
    settings: Settings,
    progress: Progress,
    *,
    with_others: bool,
) -> _Measured:
    at = Site("mlp_post", layer)
    readings = read_concepts(lens, concepts, at)
    sentences = [text for group in (*concepts.sentences.values(), concepts.neutral) for text in group[::2]]
    with tempfile.TemporaryDirectory() as place:
        kept = harvest(lens, [*sentences, *texts], [at], Path(place) / "activations")
        rows = kept.rows[kept.table.texts[kept.table.prompts.long()][kept.rows] >= len(sentences)]
        extra = kept.read([at], rows)[0]
        sae: Tensor | None = None
        if with_others:
            label = named(progress, f"training an autoencoder, layer {layer}")
            sae = train(kept, at, _sae(settings), Path(place) / "sae", progress=label).directions
    origin = DictionaryOrigin(
        method="snmf", model=lens.model.name, fingerprint=lens.model.fingerprint, site=str(at), seed=settings.seed
    )
    fitted = len(extra) + int((~readings.judging[readings.sentence]).sum())
    found = measure_layer(at, readings, extra, None if sae is None else torch.as_tensor(sae), _budget(settings), origin)
    return _Measured(found, readings, extra, fitted)


def _budget(settings: Settings) -> Budget:
    return Budget(settings.k, settings.sparsity, settings.init, settings.iterations, settings.draws, settings.seed)


def _of_family(settings: Settings) -> SnmfSettings:
    return _budget(settings).snmf.model_copy(update={"sparsity": settings.family_sparsity})


def _sae(settings: Settings) -> SaeSettings:
    """As many features as SNMF has, an eighth of them in each token."""
    return SaeSettings.model_validate(
        {
            "architecture": "topk",
            "n_features": settings.k,
            "k": max(1, settings.k // 8),
            "tokens": settings.sae_tokens,
            "batch": 256,
            "lr": 1e-3,
            "seed": settings.seed,
        }
    )


STUDY = Study(
    name="snmf",
    title="SNMF: groups of neurons as features",
    paper="Shafran, Geiger and Geva 2025, arXiv 2506.10920",
    line="MLP neurons in sparse groups: concepts they detect, neurons that fire together, steering at equal KL, beside rivals.",
    settings=Settings,
    run=run,
)
