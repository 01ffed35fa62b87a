"""What the Steering page computes: a vector from examples or a file, texts side by side, and effect against damage by strength."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechlab.errors import MechlabError, PromptError
from mechlab.lens.edit import Edit
from mechlab.lens.lens import Lens
from mechlab.models.model import Model
from mechlab.results.statistics import Interval, bootstrap_mean
from mechlab.results.study import Progress
from steering.application import Rule, steer
from steering.dose import answer
from steering.examples import Material, contrast
from steering.judges import Judge, by, token_mass
from steering.methods.catalogue import METHODS, method
from steering.methods.random_direction import as_long_as
from steering.side_effects import Damage, Neutral
from steering.vector import SteeringVector

ON_THE_SPOT = tuple(one for one in METHODS if one.needs in ("", "pairs") and one.name != "random")
"""Methods that need nothing but two lists of texts."""
FORMATS = (".safetensors", ".gguf")
UNSTEERED, STEERED, RANDOM = "unsteered", "steered", "random direction"
JUDGES = {
    "next": "probability that one of the words comes next",
    "text": "share of continuations that contain one of the words",
}


def lines(text: str) -> list[str]:
    """The lines that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def found_vector(lens: Lens, wanted: str, other: str, name: str, layer: int, progress: Progress) -> SteeringVector:
    """A vector at the output of one layer from two lists of texts, one a line; line i of both is a pair where they are as many.

    Raises:
        PromptError: an empty list, or one line too few for pairs. SiteError: a layer the model lacks. UnknownName: a method not listed.
    """
    positives, negatives = lines(wanted), lines(other)
    for what, texts in (("wanted", positives), ("other", negatives)):
        if len(texts) < 2:
            raise PromptError(f"The {what} examples are {len(texts)} lines: write two or more, one text a line.")
    shared = sorted(set(positives) & set(negatives))
    if shared:
        raise PromptError(f"The text {shared[0]!r} is on both sides: leave it out of one.")
    examples = contrast(lens, "explorer", positives, negatives)
    return method(name).extract(Material(lens, examples, [f"L{layer}.resid_post"]), progress=progress)


def opened(name: str, content: bytes, model: Model) -> SteeringVector:
    """A vector from an uploaded file; the content is read as data, its name only for its ending.

    Raises:
        MechlabError: another kind of file, a damaged one, or a vector of another model.
    """
    from steering.control_vector import read_control_vector
    from steering.files import load

    suffix = Path(name).suffix
    if suffix not in FORMATS:
        raise MechlabError(f"File {name!r} is no steering vector: choose one that ends in {' or '.join(FORMATS)}.")
    with tempfile.TemporaryDirectory(prefix="mechlab-vector-") as folder:
        path = Path(folder) / f"uploaded{suffix}"
        path.write_bytes(content)
        try:
            return read_control_vector(path, model) if suffix == ".gguf" else load(path, model)
        except MechlabError as error:
            raise MechlabError(str(error).replace(str(path), name)) from error


def saved(vector: SteeringVector, model: Model, suffix: str) -> bytes:
    """The vector's file. Raises MechlabError for a direction that the format has no place for."""
    from steering.control_vector import export
    from steering.files import save

    with tempfile.TemporaryDirectory(prefix="mechlab-vector-") as folder:
        path = Path(folder) / f"vector{suffix}"
        return (export(vector, path, model) if suffix == ".gguf" else save(vector, path)).read_bytes()


def versions(lens: Lens, vector: SteeringVector, strength: float, rule: Rule, seed: int = 0) -> dict[str, list[Edit]]:
    """Who -> edits: none, the vector's, and those of a random direction of the same length at the same strength."""
    model = lens.model
    control = as_long_as(vector, seed)
    return {
        UNSTEERED: [],
        STEERED: steer(model, vector, strength, rule),
        RANDOM: steer(model, control, strength, rule),
    }


def judge(lens: Lens, kind: str, words: str) -> Judge:
    """Raises PromptError without words."""
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    if not wanted:
        raise PromptError("The effect is counted in words and none is written: write some, with commas between.")
    if kind == "next":
        return token_mass(lens, wanted, "effect")

    def share(texts: Sequence[str]) -> Any:
        return np.array([any(word.lower() in text.lower() for word in wanted) for text in texts], dtype=np.float64)

    return by("effect", share)


@dataclass(frozen=True, eq=False)
class Trial:
    """What a dose curve is measured on: prompts, one judge, neutral passages, new tokens per prompt (0: the judge needs no text)."""

    prompts: tuple[str, ...]
    judge: Judge
    neutral: tuple[str, ...]
    n_tokens: int


def dose(
    lens: Lens,
    vector: SteeringVector,
    strengths: Sequence[float],
    rule: Rule,
    trial: Trial,
    draws: int,
    progress: Progress,
) -> pd.DataFrame:
    """Effect and damage of the vector, and of ``draws`` random directions as long, at each strength.

    Columns ``who`` (steered, random direction 1 ...), ``strength``, and ``effect`` (mean of the judge over prompts), ``kl`` (unsteered ||
    steered on neutral text, nats per token) and ``perplexity`` (steered over unsteered, neutral text), each with ``_low`` and ``_high``
    (95 % bootstrap over prompts or passages).

    Raises:
        PromptError: fewer than two prompts: they have no interval.
    """
    if len(trial.prompts) < 2:
        raise PromptError(
            f"A dose curve needs two prompts or more for its intervals, and there are {len(trial.prompts)}."
        )
    vectors = {STEERED: vector} | {f"{RANDOM} {i + 1}": as_long_as(vector, i) for i in range(draws)}
    prompts, neutral = lens.tokens(list(trial.prompts)), Neutral(lens, list(trial.neutral))
    total, rows = len(vectors) * len(strengths), list[dict[str, Any]]()
    for who, one in vectors.items():
        for strength in strengths:
            progress(f"{who}, strength {strength:g}", len(rows), total)
            edits = steer(lens.model, one, strength, rule)
            effect = bootstrap_mean(trial.judge(answer(lens, prompts, edits, trial.n_tokens)))
            rows.append({"who": who, "strength": strength, **_row(effect, neutral.damage(edits))})
    progress("done", total, total)
    return pd.DataFrame(rows)


def _row(effect: Interval, damage: Damage) -> dict[str, float]:
    kl, loss = bootstrap_mean(damage.kl), bootstrap_mean(damage.loss - damage.loss_before)
    ratio = Interval(math.exp(loss.estimate), math.exp(loss.low), math.exp(loss.high), loss.n)
    measured = {"effect": effect, "kl": kl, "perplexity": ratio}
    return {
        f"{name}{suffix}": value
        for name, one in measured.items()
        for suffix, value in (("", one.estimate), ("_low", one.low), ("_high", one.high))
    }


def strengths_of(text: str) -> tuple[float, ...]:
    """``0, 1, 2``: at least two numbers, each once, smallest first. Raises MechlabError for anything else."""
    try:
        found = sorted({float(part) for part in text.replace(";", ",").split(",") if part.strip()})
    except ValueError as error:
        raise MechlabError(
            f"Strengths {text!r} do not parse: write numbers with commas, such as 0, 1, 2, 4."
        ) from error
    if not 2 <= len(found) <= 12 or not np.isfinite(found).all():
        raise MechlabError(f"Strengths {text!r} are {len(found)} different numbers: write 2 to 12 finite ones.")
    return tuple(found)
