"""The sweep equals one whole forward pass per intervention, at every site of every family; TransformerLens agrees on the default model."""

import pytest
import torch
from toys import toy_task

from mechlab.lens.edit import Edit, patch, zero
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import FAMILIES, load, tiny


def grids(lens: Lens) -> dict[str, list[list[Edit]]]:
    """Every intervention of the usual grids."""
    layers, heads, kv_heads, positions = range(3), range(lens.model.n_heads), range(lens.model.n_kv_heads), range(9)
    found = {
        "residual x positions": [[patch(Site("resid_pre", layer, pos=p))] for layer in layers for p in positions],
        "residual out": [[patch(Site("resid_post", layer, pos=p))] for layer in layers for p in positions],
        "z x heads": [[patch(Site("z", layer, h))] for layer in layers for h in heads],
        "z x heads x positions": [
            [patch(Site("z", layer, h, p))] for layer in layers for h in heads for p in positions
        ],
        "k, v by KV head": [[patch(Site(k, layer, h))] for k in "kv" for layer in layers for h in kv_heads],
        "q": [[patch(Site("q", layer, h, -1))] for layer in layers for h in heads],
        "patterns": [[patch(Site("pattern", layer, h, p))] for layer in layers for h in heads for p in (-1, 6)],
        "sublayers": [
            [patch(Site(k, layer, pos=p))] for k in ("attn_out", "mlp_out") for layer in layers for p in positions
        ],
        "two sites": [[patch(Site("z", 0, h)), zero(Site("z", 2, g, -1))] for h in heads for g in heads],
    }
    if "mlp_post" in lens.layout.kinds(1):
        found["neurons"] = [
            [patch(Site("mlp_post", layer, n))] for layer in layers for n in range(0, lens.layout.d_mlp or 0, 7)
        ]
    if "router" in lens.layout.kinds(1):
        found["router"] = [[patch(Site("router", layer, pos=p))] for layer in layers for p in positions]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_sweep_equals_exhaustive_on_every_intervention(family: str) -> None:
    lens = Lens(tiny(family))
    task = toy_task(lens, n=2)
    for name, groups in grids(lens).items():
        swept, slow = (lens.effects(task, groups, exhaustive=how).frame["after"].to_numpy() for how in (False, True))
        assert abs(swept - slow).max() <= 1e-4, f"{family}, {name}: {abs(swept - slow).max()}"
        moved = lens.effects(task, groups).frame
        assert (moved["after"] != moved["before"]).any(), name


@pytest.mark.default_model
def test_transformer_lens_agrees_on_the_default_model() -> None:
    from transformer_lens import patching as reference

    from circuits.tasks.ioi import ioi
    from mechlab.results.metrics import logit_difference

    lens = Lens(load())
    task = ioi(lens, 1, corruption="abc")
    bridge = lens.bridge()
    _, cache = bridge.run_with_cache(task.clean.ids)
    theirs = reference.generic_activation_patch(
        bridge,
        task.corrupted.ids,
        cache,
        lambda logits: logit_difference(logits[:, -1], task.answers, task.foils)[0],
        reference.layer_pos_patch_setter,
        "resid_pre",
        index_df=_some_places(task.clean.lengths[0]),
    )
    edits = [
        patch(Site("resid_pre", int(row.layer), pos=int(row.pos)))
        for row in _some_places(task.clean.lengths[0]).itertuples()
    ]
    ours = torch.tensor(lens.effects(task, edits).frame["after"].to_numpy()).float()
    assert (ours - theirs).abs().max() <= 1e-4


def _some_places(n_positions: int):
    import pandas as pd

    return pd.DataFrame(
        [(layer, pos) for layer in (1, 14, 27) for pos in range(1, n_positions, 2)], columns=["layer", "pos"]
    )
