"""Prompts of several functions (coding, translation, ...) with continuations: bundled, or from a CSV file; and their split."""

import csv
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mechlab.analyses.facts import BUNDLED, bundled_rows
from mechlab.errors import MechlabError
from mechlab.lens.lens import Lens
from mechlab.lens.tokens import Tokens

MIN_PROMPTS = 4


@dataclass(frozen=True)
class Request:
    """What is asked and how an answer begins."""

    function: str
    prompt: str
    continuation: str


@dataclass(frozen=True)
class Requests:
    """Requests by function, on two sides that share no prompt."""

    detection: Mapping[str, tuple[Request, ...]]
    evaluation: Mapping[str, tuple[Request, ...]]


def load_requests(source: str, n_evaluation: int, *, seed: int = 0) -> Requests:
    """Requests of every function, ``n_evaluation`` of each on the evaluation side and the others on the detection side.

    Args:
        source: ``bundled`` (7 functions x 30, see ``data/SOURCES.md``), or a CSV file with columns function, prompt, continuation.

    Raises:
        MechlabError: a file that cannot be read, an empty cell, a prompt given twice, one function only, or too few prompts of one.
    """
    by_function: dict[str, list[Request]] = defaultdict(list)
    for number, row in enumerate(_rows(source), start=2):
        for name in ("function", "prompt", "continuation"):
            if not row[name].strip():
                raise MechlabError(f"Row {number} of {source!r} has no {name}: fill it in or delete the row.")
        by_function[row["function"]].append(Request(row["function"], row["prompt"].strip(), row["continuation"]))
    prompts = [one.prompt for rows in by_function.values() for one in rows]
    twice = next((one for one in prompts if prompts.count(one) > 1), None)
    if twice is not None:
        raise MechlabError(
            f"Prompt {twice!r} stands twice in {source!r}: keep one, or it would be on both sides of the split."
        )
    if len(by_function) < 2:
        raise MechlabError(
            f"{source!r} has prompts of one function ({', '.join(by_function) or 'none'}): neurons of a function are told from those "
            "of others, so give at least two."
        )
    for name, rows in by_function.items():
        if len(rows) < n_evaluation + MIN_PROMPTS:
            raise MechlabError(
                f"Function {name!r} has {len(rows)} prompts, and {n_evaluation + MIN_PROMPTS} are needed ({n_evaluation} to judge, "
                f"{MIN_PROMPTS} to find neurons with): add prompts, or lower n_evaluation."
            )
        random.Random(f"requests {seed} {name}").shuffle(rows)
    return Requests(
        {name: tuple(rows[n_evaluation:]) for name, rows in by_function.items()},
        {name: tuple(rows[:n_evaluation]) for name, rows in by_function.items()},
    )


def with_continuations(lens: Lens, requests: tuple[Request, ...]) -> tuple[Tokens, list[int]]:
    """Prompt, new line, continuation as tokens; and where each continuation begins."""
    prompts = lens.tokens([f"{one.prompt}\n" for one in requests])
    ids, starts = list[list[int]](), list(prompts.lengths)
    for row, one in enumerate(requests):
        more: list[int] = lens.model.tokenizer(one.continuation, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
        ids.append([*prompts.ids[row, : starts[row]].tolist(), *more])
    return lens.tokens(ids), starts


def _rows(source: str) -> list[dict[str, str]]:
    if source == BUNDLED:
        return bundled_rows("function_prompts.csv")
    path = Path(source).expanduser()
    if not path.is_file():
        raise MechlabError(f"There is no file {source!r}: give a CSV file with columns function, prompt, continuation.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(lines)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise MechlabError(f"File {source!r} is not a CSV file in UTF-8 ({error}): save it as one.") from error
    missing = [name for name in ("function", "prompt", "continuation") if rows and name not in rows[0]]
    if missing or not rows:
        raise MechlabError(
            f"File {source!r} has no {missing[0] if missing else 'rows'}: give function, prompt, continuation."
        )
    return rows
