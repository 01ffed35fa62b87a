"""The sinks study's claims on causes: what writes and removes the primary sink, and what interventions on sinks change.

As in ``sinks_claims``: written before the run, verdicts computed.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mechlab.analyses.sinks_interventions import Outcome
from mechlab.results.finding import Finding
from mechlab.results.rule import Control, Rule
from mechlab.results.stating import UNKNOWN, claim, control, drawn
from mechlab.studies.sinks_causes import removers_of, writers_of
from mechlab.studies.sinks_estimates import control_of, mean_of, ratio_of
from mechlab.studies.sinks_evidence import NOTHING, EpisodeEvidence, Evidence, TargetEvidence, Units
from mechlab.studies.sinks_targets import (
    ELSEWHERE,
    MOVED,
    OTHER_LAYERS,
    RANDOM_MOVED,
    RANDOM_REMOVED,
    REMOVED,
    rescaled,
)

Floats = NDArray[np.float64]
MIN_ATTENTION, MIN_NATS = 0.05, 0.05
"""Change of attention, and of the loss, that counts as one."""
HALF = 0.5
TWIN, RANDOM_UNITS, UNCHANGED = "random-weight twin", "random neurons, same layers", "nothing changed"


def findings_on_causes(evidence: Evidence) -> list[Finding]:
    """Episode by episode, then sink by sink."""
    episodes = [
        finding
        for index in range(len(evidence.causes.episodes))
        for finding in (
            _written(evidence, index),
            _fallen(evidence, index),
            *_neurons(evidence, index),
            *_switched_off(evidence, index),
        )
    ]
    return episodes + [finding for target in evidence.causes.targets for finding in _on_target(evidence, target)]


def _written(evidence: Evidence, index: int) -> Finding:
    one = evidence.causes.episodes[index]
    writer, peak = next(iter(one.parts.writers), None), one.writes.stream[:, one.episode.peak]
    before = [layer for layer in range(one.episode.peak + 1) if layer not in one.parts.writers]
    best = max(before, key=lambda at: one.writes.mlp[:, at].mean(), default=None)
    return claim(
        f"written_{index + 1}",
        f"{spelled(one, index)}: an MLP writes it{'' if writer is None else f', that of layer {writer}'}.",
        "share of the component at the peak that this MLP writes",
        UNKNOWN if writer is None else ratio_of(evidence, one.writes.mlp[:, writer], peak),
        [
            control(
                "attention, same layer",
                UNKNOWN if writer is None else ratio_of(evidence, one.writes.attention[:, writer], peak),
            ),
            control(
                "best MLP that was not chosen",
                UNKNOWN if best is None else ratio_of(evidence, one.writes.mlp[:, best], peak),
            ),
            control_of(evidence, TWIN, np.zeros(len(evidence.evaluation)), "no episode: nothing is written")
            if not evidence.twin.profile.episodes
            else control(TWIN, UNKNOWN, "it has a massive token too"),
        ],
        Rule(direction=">", threshold=HALF, beats=("attention, same layer", "best MLP that was not chosen")),
    )


def spelled(one: EpisodeEvidence, index: int) -> str:
    """``Episode 2 (after layers 11 to 29)``."""
    return f"Episode {index + 1} (after layers {one.episode.start} to {one.episode.stop})"


def _fallen(evidence: Evidence, index: int) -> Finding:
    one = evidence.causes.episodes[index]
    removers, found = list(one.parts.removers), one.writes
    lost = found.stream[:, one.episode.peak] - found.stream[:, max(removers)] if removers else None
    others = [at for at in range(one.episode.peak + 1, max(removers) + 1) if at not in removers] if removers else []
    return claim(
        f"removed_{index + 1}",
        f"{spelled(one, index)}: the fall is a negative write by MLPs"
        + (
            f", those of layers {', '.join(map(str, sorted(removers)))}."
            if removers
            else ". None takes enough away here."
        ),
        "share of the component lost after the peak that these MLPs take away",
        UNKNOWN if lost is None else ratio_of(evidence, -found.mlp[:, removers].sum(axis=1), lost),
        [
            control(
                "attention, all layers of the fall",
                UNKNOWN
                if lost is None
                else ratio_of(
                    evidence, -found.attention[:, one.episode.peak + 1 : max(removers) + 1].sum(axis=1), lost
                ),
            ),
            control(
                "the other MLPs of the fall",
                UNKNOWN if lost is None else ratio_of(evidence, -found.mlp[:, others].sum(axis=1), lost),
            ),
        ],
        Rule(direction=">", threshold=HALF),
    )


def _neurons(evidence: Evidence, index: int) -> list[Finding]:
    one = evidence.causes.episodes[index]
    roles = [("writer", one.parts.writers[:1], "write"), ("remover", one.parts.removers[:1], "remove")]
    return [
        _few_neurons(
            evidence,
            f"{role}_neurons_{index + 1}",
            f"{spelled(one, index)}: few neurons {verb} it",
            one.units[layers[0]],
        )
        for role, layers, verb in roles
        if layers
    ]


def _few_neurons(evidence: Evidence, key: str, statement: str, found: Units) -> Finding:
    shares = found.random.mean(axis=1) / found.whole.mean()
    return claim(
        key,
        f"{statement} ({named_units(found)}).",
        f"share of what MLP {found.layer} adds along the direction",
        ratio_of(evidence, found.evaluation.sum(axis=1), found.whole),
        [drawn(RANDOM_UNITS, shares, len(found.whole))],
        Rule(direction=">", threshold=HALF),
    )


def named_units(found: Units, most: int = 4) -> str:
    """``L11N604, L11N12 and 3 more``."""
    names = [f"L{found.layer}N{unit}" for unit in found.units]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _switched_off(evidence: Evidence, index: int) -> list[Finding]:
    """With the writers off there is no sink; with the removers off it stays."""
    chain, one = evidence.causes.chain, evidence.causes.episodes[index]
    if chain is None:
        return []
    peak, base = one.episode.peak, chain.outcomes[NOTHING].norms
    cases = [
        (f"off_{writers_of(index)}", writers_of(index), peak, "without the neurons that write it, the token is not massive", "<"),
        (f"off_{removers_of(index)}", removers_of(index), max(one.parts.removers, default=peak),
         "without the neurons that remove it, the token stays massive", ">"),
    ]  # fmt: skip
    found: list[Finding] = []
    for key, name, layer, words, direction in cases:
        if name not in chain.outcomes:
            continue
        shares = [
            outcome.norms[:, layer] / base[:, peak] for outcome in (chain.outcomes[name], chain.outcomes[NOTHING])
        ]
        random = np.array([(outcome.norms[:, layer] / base[:, peak]).mean() for outcome in chain.random])
        found.append(
            claim(
                key.replace(" ", "_"),
                f"{spelled(one, index)}: {words}.",
                f"its norm after layer {layer} over its norm at the peak with nothing changed",
                mean_of(evidence, shares[0]),
                [
                    control_of(evidence, UNCHANGED, shares[1]),
                    drawn(RANDOM_UNITS, random, len(base), "as many, all sets at once"),
                ],
                Rule(direction="<" if direction == "<" else ">", threshold=HALF),
            )
        )
    return found


def _on_target(evidence: Evidence, target: TargetEvidence) -> list[Finding]:
    whose, key = (
        f"{target.name[0].upper()}{target.name[1:]}",
        target.name.split()[-2 if "primary" in target.name else 0],
    )

    def effect(
        name: str,
        statement: str,
        quantity: str,
        of: Callable[[Outcome], Floats],
        change: str,
        rivals: Sequence[str],
        threshold: float,
    ) -> Finding:
        sign = 1 if quantity.startswith("rise") else -1
        controls: list[Control] = []
        for rival in rivals:
            if rival in target.draws:
                means = [float((sign * (of(one) - of(target.base))).mean()) for one in target.draws[rival]]
                controls.append(drawn(rival, means, len(of(target.base))))
            else:
                controls.append(control_of(evidence, rival, sign * (of(target.changed[rival]) - of(target.base))))
        return claim(
            f"{name}_{key}",
            f"{whose}: {statement}",
            quantity,
            mean_of(evidence, sign * (of(target.changed[change]) - of(target.base))),
            controls,
            Rule(direction=">", threshold=threshold),
        )

    mlp, attention = f"MLP {target.layer}", "attention to the token, mean over heads of the layers that read it"
    cases = [
        effect("rescaled", f"without the output of {mlp}, less attention is drawn.", f"drop of {attention}",
               lambda one: one.received, rescaled(0.0), (OTHER_LAYERS, ELSEWHERE), MIN_ATTENTION),
        effect("lifetime", f"a quarter of the output of {mlp} makes for a shorter life.", "drop of its lifetime, layers",
               lambda one: one.lifetime, rescaled(0.25), (OTHER_LAYERS, ELSEWHERE), 1.0),
        effect("removed_direction", "without the direction, less attention is drawn.", f"drop of {attention}",
               lambda one: one.received, REMOVED, (RANDOM_REMOVED,), MIN_ATTENTION),
        effect("loss", "without the direction, the next tokens are predicted worse.", "rise of the mean loss of the tokens after it, nats",
               lambda one: one.loss, REMOVED, (RANDOM_REMOVED, OTHER_LAYERS, ELSEWHERE), MIN_NATS),
    ]  # fmt: skip
    if MOVED in target.changed:
        cases.append(
            effect("moved", "the direction, put on another token, moves the attention there.",
                   "rise of attention to the other token, mean over heads of the layers that read it",
                   lambda one: one.target_received, MOVED, (RANDOM_MOVED, REMOVED), MIN_ATTENTION)
        )  # fmt: skip
    return cases
