"""The emotion study's fit to one model: directions, contributions, influence, circuits and a probe, all from the fit scenarios."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.results.study import Progress
from steering.emotion import prompts
from steering.emotion.circuit import budgets, counts
from steering.emotion.contributions import Parts, check_sums, contributions, strongest
from steering.emotion.directions import HEADS, NEURONS, ByEmotion, check, differences, directions, sites
from steering.emotion.influence import influence, reference
from steering.emotion.last_token import LastTokenLens
from steering.emotion.plan import Plan, plan
from steering.emotion.prompts import EMOTIONS
from steering.emotion.scenarios import items
from steering.examples import Examples, read
from steering.studies.emotion_settings import Settings

Floats = NDArray[np.float64]
Probe = Callable[[Tensor], Floats]
"""``[n, d_model]`` at the readout -> ``[n, emotion]`` probabilities."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """What one labelling of the fit prompts gives: differences and directions at every site, contributions at every layer of a circuit."""

    differences: dict[Site, ByEmotion]
    directions: dict[Site, ByEmotion]
    contributions: dict[str, dict[Site, Tensor]]

    def values(self, emotion: str) -> dict[Site, Tensor]:
        """The emotion's difference at every site of units."""
        return {at: by[emotion] for at, by in self.differences.items() if at.kind in (NEURONS, HEADS)}

    def parts(self, emotion: str, given: Mapping[Site, int]) -> Parts:
        """The units that add most, as many at each site as given."""
        return strongest(self.contributions[emotion], given)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Everything made from the fit scenarios.

    Attributes:
        labelled: from the true labels. influence, counts: emotion -> site of units -> causal influence, and units in the circuit.
        uniform: site of units -> units when every layer gives alike.
    """

    lens: LastTokenLens
    plan: Plan
    examples: Examples
    activations: dict[Site, Tensor]
    labelled: Labelled
    influence: dict[str, dict[Site, float]]
    counts: dict[str, dict[Site, int]]
    uniform: dict[Site, int]
    probe: Probe

    def shuffled(self, seed: int) -> Labelled:
        """The same from labels dealt anew in each group."""
        return labelled(self.lens, self.plan, self.activations, self.examples.shuffled(seed))

    def top(self, kind: str, k: int, of: Labelled, emotion: str) -> Parts:
        """The top ``k`` units of each layer of the plan's circuit."""
        most = min(k, self.lens.layout.size(kind) or 0)
        return of.parts(emotion, {Site(kind, layer): most for layer in self.plan.circuit})


def fitted(lens: Lens, settings: Settings, progress: Progress) -> Fitted:
    """Fits one model.

    Raises:
        SiteError, ModelError: a model without the sites, or whose units do not add one by one.
    """
    check(lens)
    check_sums(lens)
    layers = plan(lens.model.n_layers)
    last = LastTokenLens(lens, also_read=[layers.readout.at(-1)])
    fit_items = items("fit", settings.n_fit)
    fit = prompts.examples(lens, fit_items, "noun")
    progress("reading the fit prompts", 0, 1)
    activations = _read(LastTokenLens(lens), fit, sites(range(lens.model.n_layers)), progress)
    found = labelled(lens, layers, activations, fit)
    pushed = prompts.neutral(lens, fit_items[:: max(1, len(fit_items) // settings.n_push)][: settings.n_push])
    arrives: dict[str, dict[Site, float]] = {}
    for emotion in EMOTIONS:
        towards = reference(found.directions, layers.reference, emotion)
        arrives[emotion] = influence(
            last, pushed, found.directions, layers.circuit, towards, emotion, settings.alphas, progress
        )
    budget_of = budgets(lens, layers.circuit)
    return Fitted(
        lens=last,
        plan=layers,
        examples=fit,
        activations=activations,
        labelled=found,
        influence=arrives,
        counts={emotion: counts(budget_of, of) for emotion, of in arrives.items()},
        uniform=counts(budget_of, dict.fromkeys(arrives[EMOTIONS[0]], 1.0)),
        probe=_probe(activations[layers.readout], fit),
    )


def labelled(lens: Lens, layers: Plan, activations: Mapping[Site, Tensor], examples: Examples) -> Labelled:
    """Differences, directions and contributions under these labels."""
    found = differences(activations, examples)
    by = directions(found)
    inside = {at: x for at, x in activations.items() if at.kind in (NEURONS, HEADS) and at.layer in layers.circuit}
    return Labelled(found, by, {e: contributions(lens, inside, examples, by, e) for e in EMOTIONS})


def _read(lens: LastTokenLens, examples: Examples, wanted: list[Site], progress: Progress) -> dict[Site, Tensor]:
    """As ``examples.read``, some prompts at a time, told to the progress."""
    at_once, n, parts = 36, len(examples), list[dict[Site, Tensor]]()
    for start in range(0, n, at_once):
        progress("reading the fit prompts", start, n)
        parts.append(read(lens, examples.prompts.select(range(start, min(start + at_once, n))), wanted))
    return {at: torch.cat([part[at] for part in parts]) for at in wanted}


def _probe(x: Tensor, examples: Examples) -> Probe:
    """Logistic regression of the six emotions on the stream at the readout."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    made = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    made.fit(x.double().numpy(), [EMOTIONS.index(one) for one in examples.classes])
    return lambda given: np.asarray(made.predict_proba(given.double().numpy()))
