"""The massive-activations study's claims and their rules, written before the run; the verdicts are computed. Losses are in nats."""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mechlab.results.finding import Finding
from mechlab.results.rule import Rule
from mechlab.results.stating import UNKNOWN, claim, control, drawn
from mechlab.results.statistics import Interval, bootstrap_mean, bootstrap_ratio
from mechlab.studies.massive_evidence import FITTED, MEAN, MEDIAN, NEXT, RANDOM, RESAMPLED, ZERO, Evidence

Floats = NDArray[np.float64]
HALF = 0.5
MOST = 0.9
TOP_DIMENSIONS = 2
"""As many as LLaMA2-7B has."""
MIN_NATS = 0.1
SMALL_NATS = 0.05
"""A change of the loss that counts as one, and one that counts as none."""
MIN_R2 = 0.9
TWIN = "random-weight twin"
DELIMITERS = frozenset(".\n")


def findings(evidence: Evidence) -> list[Finding]:
    """All claims, in reading order."""
    return [
        _there(evidence),
        _few_dimensions(evidence),
        _few_tokens(evidence),
        _zero(evidence),
        _constant(evidence, MEAN, "mean", "a constant does as well: their mean over other texts"),
        _constant(
            evidence, RESAMPLED, "another_text", "they say nothing of the input: another text's value does as well"
        ),
        _fitted(evidence),
    ]


def _there(evidence: Evidence) -> Finding:
    return claim(
        "there",
        "Some entries of the residual stream are massive.",
        f"share of held-out texts with an entry above {evidence.settings['floor']} and {evidence.settings['ratio']} times the median",
        _mean(evidence, evidence.held_out.with_massive.max(axis=1)),
        [control(TWIN, _mean(evidence, evidence.twin.with_massive.max(axis=1)))],
        Rule(direction=">", threshold=HALF),
    )


def top_dimensions(evidence: Evidence) -> list[int]:
    """The dimensions with most massive entries on discovery text, two at most."""
    return [int(at) for at in evidence.seen.entries["dimension"].value_counts().index[:TOP_DIMENSIONS]]


def _few_dimensions(evidence: Evidence) -> Finding:
    dimensions, entries = top_dimensions(evidence), evidence.held_out.entries
    return claim(
        "few_dimensions",
        f"They lie in at most {TOP_DIMENSIONS} dimensions: {', '.join(map(str, dimensions)) or 'none here'}.",
        "share of massive entries of held-out texts that lie in those dimensions",
        _share(evidence, entries, entries["dimension"].isin(dimensions)),
        [drawn("random dimensions", _random_dimensions(evidence, len(dimensions)), len(evidence.evaluation))],
        Rule(direction=">", threshold=MOST),
    )


def _random_dimensions(evidence: Evidence, count: int) -> Floats | None:
    """Share of entries in as many random dimensions of the model, by draw; None without entries."""
    entries = evidence.held_out.entries
    if not len(entries) or not count:
        return None
    generator = np.random.default_rng(int(str(evidence.settings["seed"])))
    drawn_sets = [
        generator.choice(evidence.d_model, count, replace=False) for _ in range(int(str(evidence.settings["draws"])))
    ]
    return np.array([entries["dimension"].isin(one).mean() for one in drawn_sets])


def is_expected(pieces: pd.Series, positions: pd.Series) -> pd.Series:
    """Where the paper finds them: the first token, or a delimiter."""
    delimiter = pieces.map(lambda piece: bool(str(piece).strip(" ") and set(str(piece).strip(" ")) <= DELIMITERS))
    return (positions == 0) | delimiter.astype(bool)


def _few_tokens(evidence: Evidence) -> Finding:
    entries, tokens = evidence.held_out.entries, evidence.evaluation
    flat = pd.DataFrame(
        [(row, at, piece) for row, pieces in enumerate(tokens.pieces) for at, piece in enumerate(pieces)],
        columns=["prompt", "position", "piece"],
    )
    return claim(
        "few_tokens",
        "They sit at the first token, or at full stops and line breaks.",
        "share of massive entries of held-out texts at such tokens",
        _share(evidence, entries, is_expected(entries["piece"], entries["position"])),
        [
            control(
                "all tokens",
                _share(evidence, flat, is_expected(flat["piece"], flat["position"])),
                "such tokens among all",
            )
        ],
        Rule(direction=">", threshold=MOST),
    )


def _share(evidence: Evidence, frame: pd.DataFrame, hits: pd.Series) -> Interval:
    """Share of rows that are hits, prompts resampled."""
    if not len(frame):
        return UNKNOWN
    by_prompt = frame.assign(hit=hits.astype(float)).groupby("prompt")["hit"]
    sums, counts = by_prompt.sum().to_numpy(), by_prompt.count().to_numpy()
    return bootstrap_ratio(sums, counts, seed=int(str(evidence.settings["seed"])))


def _zero(evidence: Evidence) -> Finding:
    found = evidence.interventions
    where = "" if found is None else f" after layer {found.layer}"
    return claim(
        "zero",
        f"Set to zero{where}, they take the model's predictions down.",
        "rise of the mean next-token loss, nats",
        _rise(evidence, ZERO),
        [
            control(NEXT, _rise(evidence, NEXT)),
            control(MEDIAN, _rise(evidence, MEDIAN)),
            drawn(
                RANDOM,
                None if found is None else (found.random - found.base).mean(axis=1),
                0 if found is None else len(found.base),
            ),
        ],
        Rule(direction=">", threshold=MIN_NATS),
    )


def _constant(evidence: Evidence, name: str, key: str, words: str) -> Finding:
    return claim(
        key,
        f"It is enough that they are there; {words}.",
        f"rise of the mean next-token loss when they are {name}, nats",
        _rise(evidence, name),
        [control(ZERO, _rise(evidence, ZERO))],
        Rule(direction="<", threshold=SMALL_NATS),
    )


def _rise(evidence: Evidence, name: str) -> Interval:
    found = evidence.interventions
    return UNKNOWN if found is None else _mean(evidence, found.changed[name] - found.base)


def _fitted(evidence: Evidence) -> Finding:
    fits = [one for one in evidence.fits if not math.isnan(one.fit.r2)]
    names = list(fits[0].rivals) if fits else ["log"]
    return claim(
        "growth",
        "Over training, the largest entry over the median follows an exponentially modulated logarithm.",
        f"R2 of the {FITTED} curve, mean over layers",
        _mean(evidence, np.array([one.fit.r2 for one in fits])),
        [control(name, _mean(evidence, np.array([one.rivals[name].r2 for one in fits]))) for name in names],
        Rule(direction=">", threshold=MIN_R2),
    )


def _mean(evidence: Evidence, values: Floats) -> Interval:
    return bootstrap_mean(values, seed=int(str(evidence.settings["seed"])))
