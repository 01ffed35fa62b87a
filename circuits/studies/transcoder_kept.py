"""The logit difference that is left when only some units of the MLPs are kept and all others are set to their means.

Kept are the features of the largest contributions on discovery prompts, as many random features of the same layers, or as many neurons
(gradient times activation). A transcoder stands in its MLP's place without its error, for neurons have none; once more with it. The paper
keeps features and neurons of one layer by their variance; here both are chosen for the task, over all layers with a transcoder.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from circuits.studies.transcoder_dictionaries import Neurons
from circuits.studies.transcoder_evidence import (
    FEATURES,
    KEPT_NEURONS,
    RANDOM_FEATURES,
    WITH_ERRORS,
    Floats,
    Kept,
    Unit,
)
from circuits.studies.transcoder_fits import ByLayer
from circuits.studies.transcoder_measures import Prompts, Table, contributions, mean, neuron_table, top
from mechlab.lens.edit import splice
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.patching.task import Task
from mechlab.results.metrics import logit_difference
from mechlab.results.study import Progress

SIZES = (8, 32, 128)


@dataclass(frozen=True, eq=False)
class Units:
    """Units of some layers, one dictionary each, and what those that are not kept are set to: ``[units]`` per layer."""

    dictionaries: ByLayer
    means: Mapping[int, Tensor]

    def count(self) -> int:
        return sum(len(one) for one in self.means.values())


def curves(
    lens: Lens, discovery: Prompts, evaluation: Task, transcoders: ByLayer, draws: int, seed: int, progress: Progress
) -> Kept:
    """Units chosen and means taken on discovery prompts; logit differences ``[n]`` on evaluation prompts, by name and number kept."""
    features = Units(transcoders, feature_means(discovery, transcoders))
    neurons = Units(
        {layer: Neurons(lens, layer) for layer in transcoders}, neuron_means(lens, discovery.task, transcoders)
    )
    scores, writes = (mean(table) for table in contributions(discovery, transcoders))
    rising, _ = neuron_table(lens, discovery.task, list(transcoders))
    most = min(features.count(), neurons.count())
    counts = [size for size in SIZES if size < most]
    found: dict[str, dict[int, Floats]] = {FEATURES: {}, WITH_ERRORS: {}, KEPT_NEURONS: {}}
    random: dict[int, list[Floats]] = {}
    for done, count in enumerate([0, *counts]):
        progress("keeping features alone", done, len(counts) + 1)
        chosen = top(scores, count)
        found[FEATURES][count] = kept(lens, evaluation, features, chosen)
        found[WITH_ERRORS][count] = kept(lens, evaluation, features, chosen, keep_error=True)
        found[KEPT_NEURONS][count] = kept(lens, evaluation, neurons, top(rising, count))
        if count:
            sets = drawn_like(chosen, writes, draws, seed)
            random[count] = [kept(lens, evaluation, features, some) for some in sets]
    progress("keeping features alone", len(counts) + 1, len(counts) + 1)
    everything = [(layer, unit) for layer, one in features.means.items() for unit in range(len(one))]
    found[FEATURES][features.count()] = kept(lens, evaluation, features, everything)
    return Kept(found, {RANDOM_FEATURES: {count: np.stack(rows) for count, rows in random.items()}}, features.count())


def kept(lens: Lens, task: Task, units: Units, some: Sequence[Unit], *, keep_error: bool = False) -> Floats:
    """``[n]`` logit differences with every other unit set to its mean, from the second token on."""
    edits = []
    for layer, means in units.means.items():
        left = {unit for own, unit in some if own == layer}
        changes = [(unit, "set", value) for unit, value in enumerate(means.tolist()) if unit not in left]
        target = units.dictionaries[layer].target
        edits.append(splice(target, str(layer), keep_error=keep_error, features=changes))  # pyright: ignore[reportArgumentType]
    named = {str(layer): one for layer, one in units.dictionaries.items()}
    logits = lens.run(task.clean, edits, dictionaries=named, logits="last").last_logits
    assert logits is not None
    return logit_difference(logits.cpu(), task.answers, task.foils).double().numpy()


@torch.no_grad()
def feature_means(prompts: Prompts, transcoders: ByLayer) -> Table:
    """Per layer ``[features]``: mean code over all tokens but each prompt's first."""
    return {
        layer: torch.cat([one.encode(run.at["mlp_in", layer][1:]) for run in prompts.runs]).mean(0).cpu()
        for layer, one in transcoders.items()
    }


def neuron_means(lens: Lens, task: Task, layers: Sequence[int] | ByLayer) -> Table:
    """Per layer ``[neurons]``: the same of neurons."""
    sites = {layer: Site("mlp_post", layer) for layer in layers}
    run = lens.run(task.clean, read=list(sites.values()), logits="none")
    counts = run.tokens.mask.clone()
    counts[:, 0] = False
    return {layer: run[at][counts].mean(0).float().cpu() for layer, at in sites.items()}


def drawn_like(chosen: Sequence[Unit], writes: Table, draws: int, seed: int) -> list[list[Unit]]:
    """Random sets with as many units per layer as ``chosen``, drawn among those that write anything; chosen ones may be among them."""
    generator, sets = torch.Generator().manual_seed(seed), list[list[Unit]]()
    for _ in range(draws):
        drawn: list[Unit] = []
        for layer, count in sorted(Counter(layer for layer, _ in chosen).items()):
            active = (writes[layer] > 0).nonzero().flatten()
            order = torch.randperm(len(active), generator=generator)[:count]
            drawn += [(layer, unit) for unit in active[order].tolist()]
        sets.append(drawn)
    return sets
