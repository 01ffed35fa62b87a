"""Measurements of the transcoder study: contributions on discovery prompts, ablations and connections on evaluation prompts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from circuits.features.attribution import attribute
from circuits.features.explained import explain_run
from circuits.features.frozen import FrozenRun, freeze
from circuits.features.target import Target, feature_target, logit_target
from circuits.features.transcoder import Transcoder, shown
from circuits.features.weights import connections
from circuits.studies.transcoder_dictionaries import Neurons, permuted
from circuits.studies.transcoder_evidence import Ablation, Connections, Floats, Unit
from circuits.studies.transcoder_fits import ByLayer
from mechlab.dictionaries.dictionary import Dictionary
from mechlab.errors import MechlabError
from mechlab.lens.edit import Edit, patch, splice
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.patching.task import Task
from mechlab.results.metrics import logit_difference
from mechlab.results.study import Progress, named

Table = dict[int, Tensor]  # layer -> one number per feature or neuron


def important_layers(lens: Lens, task: Task, n: int, progress: Progress) -> tuple[list[int], pd.DataFrame]:
    """The layers whose MLP matters most: fall of the logit difference when its output is taken from the corrupted prompts."""
    if n > lens.model.n_layers:
        raise MechlabError(f"{n} layers were asked for and {lens.model.name} has {lens.model.n_layers}: ask for fewer.")
    edits = [patch(Site("mlp_out", layer), "corrupted") for layer in range(lens.model.n_layers)]
    frame = lens.effects(task, edits, base="clean", progress=named(progress, "which MLPs matter")).frame
    fall = (frame["before"] - frame["after"]).groupby(frame["layer"].astype(int)).mean()
    found = fall.sort_values(ascending=False, kind="stable").index[:n].tolist()
    return sorted(found), pd.DataFrame(
        {"layer": fall.index.to_numpy(), "fall": fall.to_numpy(), "chosen": fall.index.isin(found)}
    )


@dataclass(frozen=True, eq=False)
class Prompts:
    """A task's clean prompts, frozen, and how the logit difference of each reads what MLPs write: ``[layer, pos, d_model]`` per prompt."""

    task: Task
    runs: list[FrozenRun]
    read: list[Tensor]


def frozen(lens: Lens, task: Task, progress: Progress, label: str) -> Prompts:
    """Freezes every clean prompt and pulls the logit difference back through it, once."""
    runs, read = list[FrozenRun](), list[Tensor]()
    for i in range(len(task)):
        progress(label, i, len(task))
        run = freeze(lens, task.clean.select([i]))
        target = target_of(lens, task, i)
        runs.append(run)
        read.append(run.pull(target.place, [run.width - 1], target.vector[None]).mlp[0])
    progress(label, len(task), len(task))
    return Prompts(task, runs, read)


def target_of(lens: Lens, task: Task, i: int) -> Target:
    """The logit difference of a prompt."""
    return logit_target(lens, int(task.answers[i]), task.foils[i].reshape(-1).tolist())


@torch.no_grad()
def contributions(prompts: Prompts, dictionaries: ByLayer) -> tuple[Table, Table]:
    """Per prompt and feature, ``[n, features]``, summed over tokens but the first: contribution to the logit difference, and size of what
    the feature writes.
    """
    total, writes = Table(), Table()
    for layer, one in dictionaries.items():
        directions = one.directions.detach()
        codes = [one.encode(run.at["mlp_in", layer][1:]) for run in prompts.runs]
        read = [by_layer[layer, 1:] @ directions.T for by_layer in prompts.read]
        total[layer] = torch.stack([(z * w).sum(0) for z, w in zip(codes, read, strict=True)])
        writes[layer] = torch.stack([z.sum(0) * directions.norm(dim=1) for z in codes])
    return total, writes


def mean(table: Table) -> Table:
    """Over prompts."""
    return {layer: numbers.mean(0) for layer, numbers in table.items()}


def top(table: Mapping[int, Tensor], n: int) -> list[Unit]:
    """The ``n`` units with the largest numbers over all layers."""
    joined = torch.cat(list(table.values()))
    owners = [(layer, i) for layer, numbers in table.items() for i in range(len(numbers))]
    return [owners[i] for i in joined.topk(min(n, len(joined))).indices.tolist()]


def neuron_table(lens: Lens, task: Task, layers: Sequence[int]) -> tuple[Table, Table]:
    """Per neuron, summed over tokens but the first and averaged over prompts: gradient times activation, and size of activation."""
    sites = [Site("mlp_post", layer) for layer in layers]
    slopes = lens.gradients(task.clean, lambda logits: logit_difference(logits, task.answers, task.foils), sites)
    run = lens.run(task.clean, read=sites, logits="none")
    by_site = {at: (slopes[at] * run[at])[:, 1:].sum(1).mean(0).float().cpu() for at in sites}
    sizes = {at: run[at][:, 1:].abs().sum(1).mean(0).float().cpu() for at in sites}
    return {int(at.layer or 0): by_site[at] for at in sites}, {int(at.layer or 0): sizes[at] for at in sites}


def matched(chosen: Sequence[Unit], weights: Table, draws: int, seed: int) -> list[list[Unit]]:
    """Random sets with as many units per layer as ``chosen`` and none of them, drawn in proportion to ``weights``.

    Raises:
        MechlabError: a layer with too few other units of any weight.
    """
    generator, sets = torch.Generator().manual_seed(seed), list[list[Unit]]()
    for _ in range(draws):
        drawn: list[Unit] = []
        for layer, count in sorted(Counter(layer for layer, _ in chosen).items()):
            chances = weights[layer].clone()
            chances[[unit for own, unit in chosen if own == layer]] = 0
            if int((chances > 0).sum()) < count:
                raise MechlabError(
                    f"Layer {layer} has {int((chances > 0).sum())} other active units for a random control of {count}: choose "
                    f"fewer, or use "
                    "more prompts."
                )
            drawn += [(layer, unit) for unit in torch.multinomial(chances, count, generator=generator).tolist()]
        sets.append(drawn)
    return sets


def ablated(units: Sequence[Unit], dictionaries: ByLayer) -> tuple[list[Edit], dict[str, Dictionary]]:
    """Edits that take units out and keep everything else, errors included; from the second token on."""
    edits = [
        splice(
            dictionaries[layer].target,
            str(layer),
            keep_error=True,
            features=[(i, "scale", 0.0) for own, i in units if own == layer],
        )
        for layer in sorted({layer for layer, _ in units})
    ]
    return edits, {str(layer): one for layer, one in dictionaries.items()}


def differences(lens: Lens, task: Task, units: Sequence[Unit] = (), dictionaries: ByLayer | None = None) -> Floats:
    """``[n]`` logit differences, with units ablated."""
    edits, named_ones = ablated(units, dictionaries or {})
    logits = lens.run(task.clean, edits, dictionaries=named_ones, logits="last").last_logits
    assert logits is not None
    return logit_difference(logits.cpu(), task.answers, task.foils).double().numpy()


@dataclass(frozen=True)
class Counts:
    """How many units are chosen, and how often controls are drawn."""

    units: int
    draws: int
    seed: int


def ablation(
    lens: Lens, discovery: Prompts, evaluation: Task, sets: Mapping[str, ByLayer], counts: Counts, progress: Progress
) -> Ablation:
    """Features chosen on the discovery prompts, ablated on the evaluation prompts, and everything compared with that.

    Args:
        sets: ``transcoders``, and others whose own choice is ablated as well.
    """
    transcoders, n = sets["transcoders"], counts.units
    base, seed = differences(lens, evaluation), counts.seed

    def fall(units: Sequence[Unit], dictionaries: ByLayer) -> Floats:
        return base - differences(lens, evaluation, units, dictionaries)

    own = {name: top(mean(contributions(discovery, some)[0]), n) for name, some in sets.items()}
    falls = {name: fall(units, sets[name]) for name, units in own.items()}
    neurons: ByLayer = {layer: Neurons(lens, layer) for layer in transcoders}
    scores, sizes = neuron_table(lens, discovery.task, list(transcoders))
    best = top(scores, n)
    falls["neurons"] = fall(best, neurons)
    random = matched(own["transcoders"], mean(contributions(discovery, transcoders)[1]), counts.draws, seed)
    others, drawn = matched(best, sizes, counts.draws, seed), dict[str, list[Floats]]()
    for i in range(counts.draws):
        progress("ablating features and controls", i, counts.draws)
        shuffled: ByLayer = {layer: permuted(one, seed + i) for layer, one in transcoders.items()}
        misled = top(mean(contributions(discovery, shuffled)[0]), n)
        cases = {
            "random": (random[i], transcoders),
            "permuted": (misled, transcoders),
            "random neurons": (others[i], neurons),
        }
        for name, (units, dictionaries) in cases.items():
            drawn.setdefault(name, []).append(fall(units, dictionaries))
    progress("ablating features and controls", counts.draws, counts.draws)
    return Ablation(base, own["transcoders"], falls, {name: np.stack(one) for name, one in drawn.items()})


def ablation_alone(lens: Lens, discovery: Prompts, evaluation: Task, transcoders: ByLayer, n: int) -> Ablation:
    """Choice and ablation without the controls (of the twin, which is one itself)."""
    chosen, base = top(mean(contributions(discovery, transcoders)[0]), n), differences(lens, evaluation)
    return Ablation(base, chosen, {"transcoders": base - differences(lens, evaluation, chosen, transcoders)})


def gaps(lens: Lens, prompts: Prompts, transcoders: ByLayer) -> tuple[Floats, Floats]:
    """Per prompt, the largest difference between a target and the sum of its terms, and the same with errors left out.

    Targets: the logit difference, and the most active feature of each layer at the last token.
    """
    rows: list[tuple[float, float]] = []
    for i, run in enumerate(prompts.runs):
        told = explain_run(run, transcoders.values())
        targets = [target_of(lens, prompts.task, i)]
        for layer in transcoders:
            here = ((told.active.layer == layer) & (told.active.pos == run.width - 1)).nonzero().flatten()
            targets += [told.target_of(int(here[told.active.value[here].argmax()]))] if len(here) else []
        terms = attribute(told, targets)
        gap = terms.totals() - terms.values
        without = gap - terms.rest.flatten(1).double().sum(1)
        rows.append((float(gap.abs().max()), float(without.abs().max())))
    table = np.array(rows)
    return table[:, 0], table[:, 1]


def fed_by_weights(
    discovery: Prompts, evaluation: Prompts, transcoders: ByLayer, counts: Counts, n_targets: int
) -> Connections:
    """Lower features picked by weights alone for targets of the highest layer, and how much they feed those on other prompts.

    Only lower features that are active on discovery prompts at the last token can be picked; targets are the strongest contributors there.
    """
    lower, upper = sorted(transcoders)[-2:]
    low, high = shown(transcoders[lower]), shown(transcoders[upper])
    strongest = contributions(discovery, {upper: transcoders[upper]})[0][upper].mean(0)
    targets = strongest.topk(min(n_targets, high.n_features)).indices.tolist()
    with torch.no_grad():
        ends = torch.stack([low.encode(run.at["mlp_in", lower][-1:])[0] for run in discovery.runs])
    eligible = (ends != 0).any(0).nonzero().flatten()
    size, lens = min(counts.units, len(eligible)), discovery.runs[0].lens
    generator = torch.Generator().manual_seed(counts.seed)

    def by_weights(one: Transcoder) -> Tensor:
        """``[targets, picked]``"""
        return eligible[connections(lens, one, high, features=targets)[eligible].topk(size, dim=0).indices.T]

    picks = [by_weights(low), *(by_weights(permuted(low, counts.seed + i)) for i in range(counts.draws))]
    for _ in range(counts.draws):
        picks.append(
            torch.stack([eligible[torch.randperm(len(eligible), generator=generator)[:size]] for _ in targets])
        )
    shares = np.stack([_shares(run, transcoders, (lower, high), targets, picks) for run in evaluation.runs], axis=1)
    split = 1 + counts.draws
    return Connections(lower, upper, targets, shares[0], shares[1:split], shares[split:])


def _shares(
    run: FrozenRun,
    transcoders: ByLayer,
    between: tuple[int, Transcoder],
    targets: Sequence[int],
    picks: Sequence[Tensor],
) -> Floats:
    """Per pick, what the picked features contribute as a share of the sizes of all of that layer, mean over targets."""
    lower, high = between
    told = explain_run(run, transcoders.values())
    terms = attribute(told, [feature_target(high, feature, run.width - 1) for feature in targets]).features
    here = told.active.layer == lower
    width = transcoders[lower].n_features
    by_feature = torch.zeros(len(targets), width).index_add_(1, told.active.feature[here], terms[:, here])
    sizes = terms[:, here].abs().sum(1).clamp_min(1e-12)
    return np.array([float((by_feature.gather(1, pick).sum(1) / sizes).mean()) for pick in picks])
