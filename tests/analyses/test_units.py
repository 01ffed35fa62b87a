"""Units: numbered over sites, switched off as a set exactly as one by one, matched by site in random controls."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from toys import toy_task

from mechlab.analyses.units import (
    Units,
    matched_random,
    mlp_kinds,
    set_to,
    strongest,
    switched_off,
    uniform_random,
    units_of,
)
from mechlab.backends import NnsightLens
from mechlab.errors import EditError, MechlabError, SiteError
from mechlab.lens.edit import Edit, clamp, scale, zero
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import load, tiny

PROMPTS = [[5, 9, 17, 33, 8, 12], [7, 8, 30]]


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(tiny("llama"))


@pytest.fixture(scope="module")
def units(lens: Lens) -> Units:
    return units_of(lens, mlp_kinds(lens))


def test_numbering(lens: Lens, units: Units) -> None:
    assert len(units) == 3 * (88 + 88 + 64)
    names = [str(units.named(unit)) for unit in (0, 87, 88, 176, 239, 240)]
    assert names == [
        "L0N0.mlp_pre",
        "L0N87.mlp_pre",
        "L0N0.mlp_pre_linear",
        "L0D0.mlp_out",
        "L0D63.mlp_out",
        "L1N0.mlp_pre",
    ]
    assert units.layers([0, 239, 240, len(units) - 1]).tolist() == [0, 0, 1, 2]
    assert units_of(lens, ["mlp_out"], [2, 0]).sites == (Site("mlp_out", 0), Site("mlp_out", 2))


def test_a_set_switched_off_is_its_units_switched_off_one_by_one(lens: Lens, units: Units) -> None:
    chosen = np.random.default_rng(0).choice(len(units), 40, replace=False)
    together = switched_off(units, chosen)
    assert len(together) <= 9 < len(chosen)
    alone = [zero(units.named(int(unit))) for unit in chosen]
    assert torch.equal(lens.run(PROMPTS, together).last_logits, lens.run(PROMPTS, alone).last_logits)  # pyright: ignore


def test_a_set_takes_its_values_at_every_token(lens: Lens) -> None:
    units = units_of(lens, ["mlp_post"])
    chosen, values = np.array([200, 3, 90]), np.array([1.5, -2.0, 0.0])
    edits = set_to(units, chosen, values)
    run = lens.run(PROMPTS, edits, read=units.sites)
    want = lens.run(PROMPTS, [clamp(units.named(int(u)), v, v) for u, v in zip(chosen, values, strict=True)])
    assert_close(run.last_logits, want.last_logits)
    assert run["L0.mlp_post"][0, :, 3].tolist() == [-2.0] * 6
    assert run["L2.mlp_post"][1, :3, 200 - 176].tolist() == [1.5] * 3
    assert [Edit.from_dict(edit.to_dict()) for edit in edits] == edits


def test_an_empty_set_changes_nothing(lens: Lens, units: Units) -> None:
    assert switched_off(units, []) == []
    empty = lens.run(PROMPTS, switched_off(units, np.empty(0, dtype=np.int64)))
    assert torch.equal(empty.logits, lens.run(PROMPTS).logits)  # pyright: ignore


def test_strongest_settles_ties() -> None:
    scores = np.array([0.5, 1.0, 1.0, 0.2, 1.0])
    assert strongest(scores, 3).tolist() == [1, 2, 4]
    assert strongest(scores, 4, np.array([0, 1, 3, 9, 2])).tolist() == [2, 4, 1, 0]
    with pytest.raises(MechlabError, match="k=6 units cannot be chosen among 5"):
        strongest(scores, 6)


def test_random_sets_match_sites_and_avoid_the_chosen(units: Units) -> None:
    chosen = np.array([0, 5, 88, 300, 301, 302])
    draws = matched_random(units, chosen, draws=12, seed=3)
    for drawn in draws:
        assert Counter(units.site_of(drawn).tolist()) == Counter(units.site_of(chosen).tolist())
        assert len(set(drawn.tolist())) == 6 and not set(drawn.tolist()) & set(chosen.tolist())
    assert len({tuple(sorted(drawn.tolist())) for drawn in draws}) == 12
    again = matched_random(units, chosen, draws=12, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(draws, again, strict=True))
    assert all(
        len(drawn) == 6 and not set(drawn.tolist()) & set(chosen.tolist())
        for drawn in uniform_random(units, chosen, draws=3)
    )
    with pytest.raises(MechlabError, match="has 38 units left for a random control of 50"):
        matched_random(units, np.arange(50), draws=1)


def test_plain_mlps_and_absent_sites() -> None:
    gpt2 = Lens(tiny("gpt2"))
    assert mlp_kinds(gpt2) == ("mlp_pre", "mlp_out")
    with pytest.raises(SiteError, match="absent"):
        units_of(gpt2, ["mlp_pre_linear"])
    with pytest.raises(SiteError, match="no single units"):
        units_of(gpt2, ["z"])
    with pytest.raises(SiteError, match="absent"):
        units_of(Lens(tiny("mixtral")), ["mlp_post"])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_scale_by_one_factor_per_unit(family: str) -> None:
    lens = Lens(tiny(family))
    factors = torch.linspace(-1, 2, 64)
    at = Site("mlp_out", 1)
    run = lens.run(PROMPTS, [scale(at, factors)], read=[at])
    plain = lens.run(PROMPTS, read=[at])
    assert_close(run[at], plain[at] * factors)
    assert_close(lens.run(PROMPTS, [scale(at, [2.0] * 64)]).logits, lens.run(PROMPTS, [scale(at, 2.0)]).logits)
    with pytest.raises(EditError, match="does not fit"):
        lens.run(PROMPTS, [scale(at, [1.0, 2.0])])
    with pytest.raises(EditError, match="does not fit"):
        lens.run(PROMPTS, [scale("L1D3.mlp_out", factors)])
    with pytest.raises(EditError, match="one number, or one per unit"):
        scale(at, [])
    with pytest.raises(EditError, match="one number, or one per unit"):
        scale(at, [[1.0]])


@pytest.mark.default_model
def test_sets_of_the_default_model() -> None:
    lens = Lens(load())
    units = units_of(lens, mlp_kinds(lens))
    assert len(units) == 30 * (2 * 1536 + 576)
    edits = switched_off(units, np.arange(0, len(units), 300))
    assert len(edits) == 90
    off = lens.run("The capital city of France is the city of", edits, read=["L29.mlp_out"])
    assert int((off["L29.mlp_out"][0] == 0).all(dim=0).sum()) == len(
        [u for u in range(0, len(units), 300) if units.named(u).kind == "mlp_out" and units.named(u).layer == 29]
    )


def test_a_set_is_switched_off_alike_in_an_nnsight_trace(lens: Lens, units: Units) -> None:
    edits = set_to(units, [4, 100, 200, 300], [0.0, 1.0, -1.0, 0.0])
    found = NnsightLens(lens).run(PROMPTS, edits, logits="last").last_logits
    assert_close(found, lens.run(PROMPTS, edits, logits="last").last_logits, rtol=0, atol=1e-5)


def test_a_set_is_switched_off_alike_in_the_packed_sweep(lens: Lens, units: Units) -> None:
    """Rows of a wave: each with its own set; equal to one whole pass per intervention."""
    task = toy_task(lens)
    interventions = [switched_off(units, [4, 100, 300]), switched_off(units, range(240, 300))]
    packed, plain = (lens.effects(task, interventions, exhaustive=one).frame for one in (False, True))
    assert_close(torch.tensor(packed["after"].to_numpy()), torch.tensor(plain["after"].to_numpy()), rtol=0, atol=1e-4)
