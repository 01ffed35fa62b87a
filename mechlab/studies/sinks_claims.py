"""The sinks study's claims and their rules, written before the run; the verdicts are computed. Those on causes: ``sinks_claims_causes``.

Attention is a share, losses are in nats. What stands for a paper's claim bears the paper's threshold where it has one; elsewhere a share of
a half, or an effect below which nothing is of interest.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mechlab.analyses.sinks_levels import SECONDARY
from mechlab.analyses.sinks_links import over_prompts, shuffled
from mechlab.results.finding import Finding
from mechlab.results.rule import Rule
from mechlab.results.stating import UNKNOWN, claim, control, drawn
from mechlab.results.statistics import Interval
from mechlab.studies.sinks_claims_causes import HALF, TWIN, findings_on_causes
from mechlab.studies.sinks_estimates import control_of, mean_of, seed_of
from mechlab.studies.sinks_evidence import Evidence, Side

Floats = NDArray[np.float64]
MIN_RATE, MIN_PROMPTS = 0.1, 0.05
"""Share of heads, and of prompts, that counts as one."""
MIN_CORRELATION = 0.3
OTHER_POSITION, RANDOM_DIRECTION, SHUFFLED = "best other position", "random direction", "norms dealt out anew"


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [
        _rate(evidence, "natural", "natural text"),
        _rate(evidence, "random", "random tokens"),
        _repeated(evidence),
        _massive(evidence),
        _values(evidence),
        _secondary(evidence),
        _link(evidence, "received", "draw more attention"),
        _link(evidence, "lifetime", "live longer"),
        _mapped(evidence),
        *findings_on_causes(evidence),
    ]


def _rate(evidence: Evidence, kind: str, words: str) -> Finding:
    rates, twin = evidence.model.rates[kind], evidence.twin.rates[kind]
    return claim(
        f"rate_{kind}",
        f"On {words}, the first token is an attention sink in many heads.",
        f"Sink_1 on {words}: share of heads that give the first token more than {evidence.settings['epsilon']} of their attention",
        mean_of(evidence, rates.first),
        [control_of(evidence, OTHER_POSITION, rates.other), control_of(evidence, TWIN, twin.first)],
        Rule(direction=">", threshold=MIN_RATE),
    )


def _repeated(evidence: Evidence) -> Finding:
    """What is expected hangs on whether positions can be told apart before any attention."""
    rates, twin = evidence.model.rates, evidence.twin.rates
    if evidence.knows_positions:
        own, on_twin, before = rates["repeated"].first, twin["repeated"].first, OTHER_POSITION
        statement = "The model has absolute positions: on one token repeated, the first is a sink all the same."
        quantity, other = "Sink_1 on one token repeated", rates["repeated"].other
    else:
        own, on_twin = (given["natural"].first - given["repeated"].first for given in (rates, twin))
        statement = "The model has no absolute positions: on one token repeated, the sink vanishes."
        quantity, before = "Sink_1 on natural text minus Sink_1 on one token repeated", "random tokens instead"
        other = rates["natural"].first - rates["random"].first
    return claim(
        "rate_repeated",
        statement,
        quantity,
        mean_of(evidence, own),
        [control_of(evidence, before, other), control_of(evidence, TWIN, on_twin)],
        Rule(direction=">", threshold=MIN_RATE),
    )


def _massive(evidence: Evidence) -> Finding:
    strongest, of = evidence.strongest, evidence.model.profile
    at = strongest.episode.peak if strongest else int(of.ratios.mean(axis=0).argmax())
    twin = evidence.twin
    return claim(
        "massive",
        f"The token at position {of.position} becomes massive.",
        f"its residual norm after layer {at} over the median norm of the other tokens",
        mean_of(evidence, evidence.model.ratios[:, at]),
        [
            control_of(evidence, OTHER_POSITION, of.other_ratios[:, at], "the highest on discovery text"),
            control_of(
                evidence, TWIN, twin.ratios[:, int(twin.profile.ratios.mean(axis=0).argmax())], "at its own best layer"
            ),
        ],
        Rule(direction=">", threshold=evidence.limits.massive),
    )


def _values(evidence: Evidence) -> Finding:
    inside = reading_layers(evidence.model, evidence.n_layers)
    outside = [layer for layer in range(evidence.n_layers) if layer not in inside]
    ratios, twin = value_ratios(evidence.model), value_ratios(evidence.twin)
    return claim(
        "values",
        "The massive token has small value vectors: heads that attend to it write little.",
        "norm of its value vectors over the median of the other tokens, in layers that read it while it is massive",
        mean_of(evidence, ratios[:, inside].mean(axis=1)) if inside else UNKNOWN,
        [
            control_of(evidence, "layers that read it when it is not massive", ratios[:, outside].mean(axis=1))
            if outside
            else control("layers that read it when it is not massive", UNKNOWN),
            control_of(evidence, TWIN, twin.mean(axis=1), "all layers"),
        ],
        Rule(direction="<", threshold=1.0),
    )


def reading_layers(side: Side, n_layers: int) -> list[int]:
    """Layers whose attention reads the first token while it is massive."""
    return sorted({layer for episode in side.profile.episodes for layer in episode.reading(n_layers)})


def value_ratios(side: Side) -> Floats:
    """``[n, layer]``: norm of the first token's value vectors over the others' median; 1 in a layer that has no values at all."""
    norms, at = side.found.value_norms + np.finfo(np.float64).tiny, side.profile.position
    return norms[:, :, at] / np.median(np.delete(norms, at, axis=-1), axis=-1)


def _secondary(evidence: Evidence) -> Finding:
    return claim(
        "secondary",
        "Tokens other than the first are turned into its direction for a part of the layers: there are secondary sinks.",
        "share of held-out prompts with a secondary sink",
        mean_of(evidence, with_secondary(evidence.model)),
        [
            drawn(RANDOM_DIRECTION, evidence.along_random, len(evidence.evaluation), "any token, any lifetime"),
            control_of(evidence, TWIN, with_secondary(evidence.twin), _no_episode(evidence.twin)),
        ],
        Rule(direction=">", threshold=MIN_PROMPTS),
    )


def with_secondary(side: Side) -> Floats:
    """``[n]``: 1 for a prompt with a secondary sink."""
    hit = {sink.prompt for sink in side.of_kind(SECONDARY)}
    return np.array([float(row in hit) for row in range(len(side.found))])


def _no_episode(side: Side) -> str:
    return "" if side.profile.episodes else "its first token is never massive"


def _link(evidence: Evidence, what: str, words: str) -> Finding:
    """Among secondary sinks of one creation layer, with position held fixed; the control is the same among tokens that are no sinks."""
    frame = evidence.causes.at_level
    seed, level = seed_of(evidence), evidence.model.level
    made, ordinary = frame[frame["sink"].astype(bool)], frame[~frame["sink"].astype(bool)]
    aspect = "attention received" if what == "received" else "lifetime"
    anew = shuffled(made["norm"], made[what], made["position"], draws=int(str(evidence.settings["draws"])), seed=seed)
    controls = [drawn(SHUFFLED, anew, made["prompt"].nunique())]
    if what == "received":
        controls.append(control("tokens that are no sinks", _linked(ordinary, what, seed)))
    return claim(
        f"norm_{what}",
        f"Secondary sinks that the MLP{f' of layer {level[1]}' if level else ''} gives a larger output {words}.",
        f"rank correlation of the norm of that MLP's output with {aspect}, position held fixed",
        _linked(made, what, seed),
        controls,
        Rule(direction=">", threshold=MIN_CORRELATION),
    )


def _linked(frame: pd.DataFrame, what: str, seed: int) -> Interval:
    if not len(frame):
        return UNKNOWN
    return over_prompts(frame["norm"], frame[what], frame["position"], frame["prompt"], seed=seed)


def _mapped(evidence: Evidence) -> Finding:
    found, bound = evidence.causes.mapped, float(str(evidence.settings["mapped_cosine"]))
    statement = "The MLP that makes a sink turns many orthogonal inputs into one direction"
    if found is None:
        values, random, other = UNKNOWN, None, UNKNOWN
    else:
        statement += f" (layer {found.layer}, {found.whose})"
        values = mean_of(evidence, (found.found.strongest > bound).astype(float))
        random = (found.found.random > bound).mean(axis=1)
        other = mean_of(evidence, (found.found.other > bound).astype(float))
    return claim(
        "mapped",
        f"{statement}.",
        f"share of the principal components of its inputs that it alone turns into the sink direction, |cos| above {bound}",
        values,
        [drawn("random orthogonal directions", random, values.n), control("MLP of another layer", other)],
        Rule(direction=">", threshold=HALF),
    )
