"""What a sweep carries: which tokens at which layer, which rows attention takes together, and where edits find them."""

import numpy as np
import pytest
import torch
from toys import toy_task

from mechlab.lens.edit import patch, scale, zero
from mechlab.lens.hooks import Tap
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import tiny
from mechlab.patching import attended, packed
from mechlab.patching.attended import batches
from mechlab.patching.rows import Row, rows
from mechlab.patching.wave import Wave


@pytest.mark.parametrize(
    ("group", "start", "entry_stop"),
    [
        ((patch("L1H0@3"),), 3, 4),
        ((patch("L1.mlp_out@-1"),), -1, 0),
        ((zero("L1H0@3"), zero("L1.mlp_out@5")), 3, 6),
        ((zero("L1H0@4"), zero("L2H0@2")), 2, 5),
        ((zero("L1H0@4"), patch("L1.mlp_out", source="corrupted")), 4, 5),  # the run's own values change nothing
        ((zero("L1.resid_pre@3"),), 3, 0),  # later tokens attend to it
        ((zero("L1KV0.k@3"),), 3, 0),
        ((zero("L1H0@3"), zero("L1.v@2")), 2, 0),
        ((zero("embed@3"),), 3, 0),
        ((zero("L2H0@3"),), 3, 0),  # the last layer: its last token is read
        ((patch("L1H0"),), 1, 0),
    ],
)
def test_rows_enter_with_what_can_have_changed(group: tuple[object, ...], start: int, entry_stop: int) -> None:
    """``entry_stop``: counted from the prompt's end where not positive."""
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    found = rows([group], task, "corrupted", 3)  # pyright: ignore[reportArgumentType]
    assert len(found) == len(task)
    for row in found:
        length = task.corrupted.lengths[row.prompt]
        assert row.stop == length
        assert row.entry_stop == entry_stop + (length if entry_stop <= 0 else 0)
        if group != (patch("L1H0"),):  # that one starts where the prompts differ
            assert row.start == start + (length if start < 0 else 0)


def test_tokens_keep_their_activations_when_rows_widen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of scale 1 changes nothing: at every layer its tokens must carry the base run's stream, wherever they stand."""
    lens = Lens(tiny("llama"))
    task = toy_task(lens)
    groups = [(scale(Site("z", layer, head, at), 1.0),) for layer in (0, 1) for head in range(2) for at in (2, 5)]
    plain = lens.run(task.corrupted, read=[Site("resid_pre", layer) for layer in range(3)])
    seen: list[int] = []
    real = packed._joined

    def checked(wave: Wave, base: object, taps: list[Tap], layer: int, hidden: torch.Tensor | None) -> torch.Tensor:
        joined = real(wave, base, taps, layer, hidden)  # pyright: ignore[reportArgumentType]
        at = wave.at(layer)
        assert joined.shape[1] == at.n_tokens
        torch.testing.assert_close(joined[0], plain[Site("resid_pre", layer)][at.prompts, at.positions])
        seen.append(at.n_tokens)
        return joined

    monkeypatch.setattr(packed, "_joined", checked)
    lens.effects(task, groups)
    lengths = task.corrupted.lengths
    wide = 2 * sum(2 * length - 2 - 5 for length in lengths)
    assert seen == [4 * len(task), wide + 4 * len(task), 2 * wide]


def test_batches_hold_every_row_once_and_fill_up_few_tokens() -> None:
    lens = Lens(tiny("llama"))
    tokens = lens.tokens([list(range(5, 25)), list(range(5, 23))])
    places = [(prompt, start, n) for prompt, n in ((0, 20), (1, 18)) for start in range(n) for _ in range(16)]
    many = [Row(0, prompt, 0, start, n, n) for prompt, start, n in places]
    many += [Row(0, prompt, 1, start, n, start + 1) for prompt, start, n in places]
    wave = Wave(many, [()], tokens, {})
    packing = wave.at(1)
    assert packing.n_tokens == wave.at(0).n_tokens + len(places)
    found = list(batches(packing))
    taken = np.concatenate([batch.rows for batch in found])
    assert sorted(taken) == list(range(len(many)))
    of_parts = [batch for batch in found if packing.partial[batch.rows].all()]
    # 32 a start, but for the last tokens (which are not carried in part) and what only the longer prompt has
    assert [(batch.start, batch.stop) for batch in of_parts] == [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15), (15, 19)]
    for batch in found:
        carried, at = batch.carried(packing)
        assert carried.sum() == (packing.stops - packing.starts)[batch.rows].sum()
        assert (packing.positions[at[carried]].numpy() == np.nonzero(carried)[1] + batch.start).all()
        if batch in of_parts:
            continue
        assert (packing.stops[batch.rows] == batch.stop).all()
        starts, counts = np.unique(packing.starts[batch.rows], return_counts=True)
        assert starts[0] == batch.start
        assert (counts * (starts - batch.start)).max() <= attended._FILLED
    assert len(found) == len(of_parts) + 5 + 4  # five starts a batch; last tokens are twice as many


def test_patches_made_at_once_are_those_made_one_by_one() -> None:
    """Of many rows and units, with other verbs between them."""
    lens = Lens(tiny("gpt2"))
    task = toy_task(lens)
    groups = [
        (patch("L1H0@3"), scale("L1H0@3", 0.5)),
        (scale("L1H0@3", 0.5), patch("L1H0@3")),
        (patch("L1.z@LATE"),),
        (patch("L1H2@-1"), patch("L1H3@-1")),
        (patch("L1H1", source="corrupted"), zero("L1H0@-1")),
        (patch("L1.mlp_out@2", source_pos=4),),
    ]
    swept, slow = (lens.effects(task, groups, exhaustive=how).frame["after"].to_numpy() for how in (False, True))
    assert abs(swept - slow).max() < 1e-5
