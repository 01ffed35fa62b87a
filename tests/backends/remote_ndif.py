"""The backend against a real NDIF server on loopback. Not collected by default: ``make test-remote`` runs it.

MECHLAB_NDIF_PYTHON names the interpreter of the server's environment, which must not know mechlab.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from mechlab.backends import NnsightLens
from mechlab.lens import Lens, Site
from mechlab.lens.edit import add, clamp, mean, patch, pattern, project, resample, route, scale, zero
from mechlab.models import load, tiny

sys.path.insert(0, str(Path(__file__).parent / "ndif"))
from server import serving

CLOSE = {"rtol": 0.0, "atol": 1e-5}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [15, 6, 17, 8], [40, 41, 42, 43, 44]]
OTHERS = [[50, 61, 7, 80, 9, 12, 11], [95, 61, 71, 83], [30, 41, 32, 43, 34]]
FAMILIES = ("llama", "mixtral", "gpt2")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Family -> (lens here, the same model served)."""
    python = Path(os.environ["MECHLAB_NDIF_PYTHON"])
    folder = tmp_path_factory.mktemp("ndif")
    knows = subprocess.run([str(python), "-c", "import mechlab"], cwd=folder, capture_output=True, check=False)
    assert knows.returncode, "the server must not have mechlab: what is sent has to run without it"
    lenses: dict[str, Lens] = {}
    for family in FAMILIES:
        model = tiny(family)
        model.hf.save_pretrained(folder / family)
        model.tokenizer.save_pretrained(folder / family)
        lenses[family] = Lens(load(str(folder / family)))
    keys = {NnsightLens(lens)._traced._nnsight.to_model_key(): str(folder / name) for name, lens in lenses.items()}
    with serving(python, keys, folder) as url:
        served = {name: (lens, NnsightLens(lens, remote=url)) for name, lens in lenses.items()}
        yield served | {"distant": (lenses["llama"], NnsightLens.distant(str(folder / "llama"), remote=url))}


def same(pair, edits=(), read=(), **options):
    lens, served = pair
    ours, theirs = (one.run(PROMPTS, edits, read, **options) for one in (lens, served))
    assert_close(theirs.logits, ours.logits, **CLOSE)
    for at, activation in ours.activations.items():
        assert_close(theirs[at], activation, **CLOSE, msg=lambda m, s=at: f"{s}: {m}")
    return ours


@pytest.mark.parametrize("family", [*FAMILIES, "distant"])
def test_every_site_is_read_from_the_server(pairs, family):
    layout = pairs[family][0].layout
    same(
        pairs[family],
        read=[
            *map(Site, layout.kinds()),
            *(Site(kind, 1) for kind in layout.kinds(1) if kind != "expert_out"),
            "L2H1.pattern@-1",
        ],
    )


@pytest.mark.parametrize("family", [*FAMILIES, "distant"])
def test_every_verb_is_done_on_the_server(pairs, family):
    v = torch.linspace(-1, 1, 64)
    rows = torch.tril(torch.ones(7, 7)) / torch.arange(1, 8)[:, None]
    edits = [
        patch("L0H1"),
        zero("L0.mlp_out@-1"),
        add("L0.resid_post", v),
        scale("L1H1.q", 2.0),
        pattern("L1H0.pattern", rows),
        clamp("L1.attn_out", -1, 1),
        project("L1.resid_post", v),
        mean("L2.mlp_out@-1", source="clean"),
        resample("L2.resid_pre@0", source="clean", seed=1),
        scale("L2H3.result", 0.5),
    ]
    edits += [route("L1E0", "off"), route("L2E1@-1", "on"), route("L0E2", "drop")] if family == "mixtral" else []
    clean = pairs[family][0].run(PROMPTS).logits
    assert (same(pairs[family], edits, ["L2.resid_post"], sources={"clean": OTHERS}).logits - clean).abs().max() > 1e-2
