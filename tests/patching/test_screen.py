"""Screening: what is verified is exact, what is not is close and says so."""

import re

import pytest
import torch
from toys import toy_task

from mechlab.errors import EditError, UnknownName
from mechlab.lens.edit import patch
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import tiny


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_strongest_are_exact_and_the_rest_close(family: str) -> None:
    lens = Lens(tiny(family))
    task = toy_task(lens)
    edits = [patch(Site("resid_pre", layer, pos=p)) for layer in range(3) for p in range(9)]
    exact, screened = lens.effects(task, edits), lens.effects(task, edits, screen="bf16", verify=5)
    assert lens.model.dtype == torch.float32
    n_exact, deviation = re.fullmatch(
        r"(\d+) exact, .* bf16 \(off by up to (\S+) where verified\)", screened.method
    ).groups()  # pyright: ignore
    assert int(n_exact) == 5
    assert 1e-6 < float(deviation) < 0.5
    a, b = (e.points().set_index("intervention") for e in (exact, screened))
    off = (a["after"] - b["after"]).abs()
    assert 5 <= (off < 1e-5).sum() < len(edits)
    assert off.max() < 0.5
    strongest = exact.top(1, "change")["intervention"]
    assert off[strongest].max() < 1e-5
    assert a["before"].equals(b["before"]) or (a["before"] - b["before"]).abs().max() < 1e-6


def test_verifying_everything_is_the_exact_result() -> None:
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    edits = [[patch(Site("z", layer, head))] for layer in range(3) for head in range(4)]
    exact, screened = lens.effects(task, edits), lens.effects(task, edits, screen="bf16", verify=99)
    assert (exact.frame["after"] - screened.frame["after"]).abs().max() < 1e-5


def test_bad_settings() -> None:
    lens = Lens(tiny("llama"))
    with pytest.raises(UnknownName, match="Unknown screen 'int8'"):
        lens.effects(toy_task(lens), [patch("L1H1")], screen="int8")  # pyright: ignore
    with pytest.raises(EditError, match="at least 1"):
        lens.effects(toy_task(lens), [patch("L1H1")], screen="bf16", verify=0)
