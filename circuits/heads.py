"""Head classes: heads named by what they attend to between labelled positions and by what they do to the metric.

The classes and their names are those of the IOI circuit (Wang et al., arXiv 2211.00593, §3). A head is a candidate for a class if its mean
attention from the class's query to its key reaches a threshold and its effect, at the query's position, has the class's sign; candidates
are ranked by that effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from circuits.controls import Head
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.lens.tokens import Tokens


@dataclass(frozen=True)
class HeadClass:
    """A class of heads.

    Attributes:
        query, key: position labels: the class attends from ``query`` to ``key``, and acts at ``query``.
        by: effect that ranks it: ``"direct"`` (direct logit attribution) or ``"patched"`` (logit difference restored by patching the head's
            output at ``query``).
        sign: of that effect.
        job: what such heads are said to do.
    """

    name: str
    title: str
    query: str
    key: str
    by: Literal["direct", "patched"]
    sign: Literal[1, -1]
    job: str


CLASSES = (
    HeadClass(
        "name_movers",
        "Name movers",
        "END",
        "IO",
        "direct",
        1,
        "read the indirect object at the end and write it as the answer",
    ),
    HeadClass(
        "negative_name_movers",
        "Negative name movers",
        "END",
        "IO",
        "direct",
        -1,
        "write against the answer they attend to",
    ),
    HeadClass(
        "s_inhibition",
        "S-inhibition heads",
        "END",
        "S2",
        "patched",
        1,
        "tell the end, from the subject's second mention, what not to answer",
    ),
    HeadClass(
        "induction", "Induction heads", "S2", "S1+1", "patched", 1, "find what followed the subject's first mention"
    ),
    HeadClass(
        "duplicate_token",
        "Duplicate-token heads",
        "S2",
        "S1",
        "patched",
        1,
        "find the subject's first mention from its second",
    ),
    HeadClass(
        "previous_token", "Previous-token heads", "S1+1", "S1", "patched", 1, "copy the subject to the token after it"
    ),
)


def attention_between(lens: Lens, tokens: Tokens, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Attention from one labelled position to another: ``[pair, batch, layer, head]``."""
    layers = range(lens.model.n_layers)
    queries = sorted({query for query, _ in pairs})
    run = lens.run(
        tokens, read=[Site("pattern", layer, pos=query) for layer in layers for query in queries], logits="none"
    )
    rows = torch.arange(len(tokens))
    found = [
        torch.stack(
            [run[Site("pattern", layer, pos=query)][rows, :, list(tokens.positions(key))] for layer in layers], dim=1
        )
        for query, key in pairs
    ]
    return torch.stack(found).double().cpu().numpy()


def attentive(attention: NDArray[np.float64], min_attention: float) -> dict[str, list[Head]]:
    """The heads of each class that give its key at least ``min_attention`` on average.

    Args:
        attention: ``[class, layer, head]`` mean attention, in the order of ``CLASSES``.
    """
    found: dict[str, list[Head]] = {}
    for of_class, given in zip(CLASSES, attention, strict=True):
        at: list[list[int]] = np.argwhere(given >= min_attention).tolist()
        found[of_class.name] = [(layer, head) for layer, head in at]
    return found


def candidates(
    heads: dict[str, list[Head]], effects: dict[str, dict[Head, float]], per_class: int
) -> dict[str, list[Head]]:
    """Of each class's attentive heads those whose effect has the class's sign, strongest first, at most ``per_class``."""
    chosen: dict[str, list[Head]] = {}
    for of_class in CLASSES:
        signed = {head: of_class.sign * effects[of_class.name][head] for head in heads[of_class.name]}
        ranked = sorted((head for head in signed if signed[head] > 0), key=lambda head: signed[head], reverse=True)
        chosen[of_class.name] = ranked[:per_class]
    return chosen


def class_table(
    heads: dict[str, list[Head]],
    chosen: dict[str, list[Head]],
    attention: NDArray[np.float64],
    effects: dict[str, dict[Head, float]],
) -> pd.DataFrame:
    """One row per class and attentive head: its attention, its effect, and whether it was chosen."""
    rows = [
        (
            of_class.title,
            f"L{layer}H{head}",
            float(given[layer, head]),
            of_class.by,
            effects[of_class.name][layer, head],
            (layer, head) in chosen[of_class.name],
        )
        for of_class, given in zip(CLASSES, attention, strict=True)
        for layer, head in heads[of_class.name]
    ]
    columns = {
        "class": "str",
        "head": "str",
        "attention": "float64",
        "effect": "str",
        "logits": "float64",
        "chosen": "bool",
    }
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)
