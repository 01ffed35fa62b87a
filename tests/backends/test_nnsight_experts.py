"""Experts through nnsight: what it does not compute is refused, in words; which experts are chosen it reads."""

import pytest
import torch

from mechlab.backends import NnsightLens
from mechlab.errors import EditError, SiteError
from mechlab.lens import Lens
from mechlab.lens.edit import route, scale
from mechlab.models import tiny

IDS = [list(range(10, 18)), list(range(30, 38))]


def test_what_is_chosen_is_read_and_switched_as_by_the_lens():
    lens = Lens(tiny("granitemoe"))
    backend = NnsightLens(lens)
    for edits in ([], [route("L1E1", "off")], [route("L1E2", "drop"), route("L1E0", "on")]):
        ours, theirs = (one.run(IDS, edits, ["L1.expert_choice", "L1.expert_weights"]) for one in (lens, backend))
        assert torch.equal(ours["L1.expert_choice"], theirs["L1.expert_choice"])
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-5, atol=1e-5)


def test_what_it_does_not_do_is_refused():
    backend = NnsightLens(Lens(tiny("mixtral")))
    with pytest.raises(SiteError, match="is not computed through nnsight"):
        backend.run(IDS, read=["L1.expert_out"])
    for edit in (route("L1E1", "on", weight=0.5), route("L1E1", "drop", renormalise=False)):
        with pytest.raises(EditError, match="does not run through nnsight"):
            backend.run(IDS, [edit])
    grouped = NnsightLens(Lens(tiny("deepseek_v3")))
    for edit in (route("L1E1", "off"), scale("L1.router", 0.5)):
        with pytest.raises(
            EditError, match="DeepseekV3TopkRouter, which chooses by groups, do not run through nnsight"
        ):
            grouped.run(IDS, [edit])
