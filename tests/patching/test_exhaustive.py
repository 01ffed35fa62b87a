"""The sweep equals one whole forward pass per intervention, at every site of every family; TransformerLens agrees on the default model."""

import pandas as pd
import pytest
import torch
from toys import toy_task

from mechlab.lens.edit import Edit, patch, zero
from mechlab.lens.lens import Lens
from mechlab.lens.site import Site
from mechlab.models import FAMILIES, load, tiny
from mechlab.patching.attended import batches
from mechlab.patching.rows import rows
from mechlab.patching.task import Task
from mechlab.patching.wave import Wave


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


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_share_a_long_prefix_stay_apart(family: str) -> None:
    """Prompts alike up to their end (of unequal lengths): rows of one prompt then stand side by side in attention."""
    lens = Lens(tiny(family))
    generator = torch.Generator().manual_seed(0)
    clean = [torch.randint(5, lens.model.vocab_size, (n,), generator=generator).tolist() for n in (41, 46, 43)]
    corrupted = [[*ids[:-5], ids[-5] - 1, *ids[-4:]] for ids in clean]
    task = Task("long", lens.tokens(clean), lens.tokens(corrupted), torch.tensor([5, 6, 7]), torch.tensor([8, 9, 10]))
    layers, heads = range(3), range(lens.model.n_heads)
    groups = [
        *([patch(Site("resid_pre", layer, pos=-p))] for layer in layers for p in range(1, 6)),
        *([patch(Site("z", layer, h, -p))] for layer in layers for h in heads for p in range(1, 6)),
        [patch(Site("pattern", 2, 0))],
        [zero(Site("z", 1, 0, 35))],
    ]
    found = rows([tuple(group) for group in groups], task, "corrupted", 3)
    wave = Wave(found, [()] * len(groups), task.corrupted, {})
    shared = [batch.together for batch in batches(wave.at(2))]
    assert max(shared) > 2
    assert 1 in shared  # some rows are left over
    swept, slow = (lens.effects(task, groups, exhaustive=how).frame["after"].to_numpy() for how in (False, True))
    assert abs(swept - slow).max() <= 1e-4


@pytest.mark.default_model
def test_transformer_lens_agrees_on_the_default_model() -> None:
    from transformer_lens import patching as reference

    from circuits.tasks.ioi import ioi
    from mechlab.results.metrics import logit_difference

    lens = Lens(load())
    task = ioi(lens, 1, corruption="abc")
    bridge = lens.bridge()
    grids = {
        "resid_pre": (
            reference.layer_pos_patch_setter,
            ["layer", "pos"],
            [(1, 3), (1, 9), (14, 8), (14, -1), (29, 9), (29, -1)],
        ),
        "z": (
            reference.layer_head_vector_patch_setter,
            ["layer", "head_index"],
            [(0, 1), (6, 8), (14, 3), (21, 0), (28, 5), (29, 7)],
        ),
    }
    for kind, (setter, columns, places) in grids.items():
        at = [(layer, index % task.clean.width) for layer, index in places]
        _, cache = bridge.run_with_cache(task.clean.ids, names_filter=lambda name, kind=kind: kind in name)
        with torch.no_grad():
            theirs = reference.generic_activation_patch(
                bridge,
                task.corrupted.ids,
                cache,
                lambda logits: logit_difference(logits[:, -1], task.answers, task.foils)[0],
                setter,
                kind,
                index_df=pd.DataFrame(at, columns=columns),
            )
        edits = [patch(Site(kind, a, pos=b) if kind == "resid_pre" else Site(kind, a, b)) for a, b in at]
        frame = lens.effects(task, edits).frame
        assert (torch.tensor(frame["after"].to_numpy()).float() - theirs).abs().max() <= 1e-4
        assert (frame["after"] - frame["before"]).abs().max() > 0.1
