"""The nnsight backend gives the lens's own numbers: every family, site and verb, here and through the remote path."""

import copy
import pickletools
import sys
from dataclasses import fields

import pytest
import torch
from torch.testing import assert_close

from mechlab.backends import NnsightLens
from mechlab.errors import EditError, ModelError, PromptError, SiteError
from mechlab.lens import Lens, Run, Site
from mechlab.lens.edit import READ_ONLY, add, clamp, mean, patch, pattern, project, resample, route, scale, zero
from mechlab.lens.hooks import hook_count
from mechlab.lens.site import KINDS
from mechlab.models import FAMILIES, load, tiny
from mechlab.models.tiny_models import perturb_constants

CLOSE = {"rtol": 0.0, "atol": 1e-5}
LAYER = 1
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [15, 6, 17, 8], [40, 41, 42, 43, 44]]
OTHERS = [[50, 61, 7, 80, 9, 12, 11], [95, 61, 71, 83], [30, 41, 32, 43, 34]]
POOL = [[70, 71, 72, 73, 74], [60, 61, 62, 63, 64]]
EQUAL = [[5, 6, 7, 8, 9], [15, 6, 17, 8, 3]]


@pytest.fixture(scope="module")
def pairs():
    """Family -> (lens, nnsight lens), each made once."""
    made: dict[tuple[str, object], tuple[Lens, NnsightLens]] = {}

    def pair(family: str, remote: bool | str = False) -> tuple[Lens, NnsightLens]:
        if (family, remote) not in made:
            lens = Lens(tiny(family))
            made[family, remote] = (lens, NnsightLens(lens, remote=remote))
        return made[family, remote]

    return pair


def sites(lens: Lens) -> list[Site]:
    """All but the experts' parts, which nnsight does not compute."""
    inner = [Site(kind, LAYER) for kind in lens.layout.kinds(LAYER) if kind != "expert_out"]
    return [*map(Site, lens.layout.kinds()), *inner]


def same(pair, prompts, edits=(), read=(), **options) -> Run:
    """Both run the same; returns the lens's run."""
    lens, backend = pair
    ours = lens.run(prompts, edits, read, **options)
    theirs = backend.run(prompts, edits, read, **options)
    if ours.logits is not None:
        assert_close(theirs.logits, ours.logits, **CLOSE)
        assert_close(theirs.last_logits, ours.last_logits, **CLOSE)
    assert list(theirs.activations) == list(ours.activations)
    for at, activation in ours.activations.items():
        assert_close(theirs[at], activation, **CLOSE, msg=lambda m, s=at: f"{s}: {m}")
    return ours


def moved(run: Run, clean: Run) -> float:
    """How far the edits moved the logits: an edit that does nothing would be the same everywhere."""
    return float((run.logits - clean.logits).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_reads_the_same_at_unequal_lengths(pairs, family):
    pair = pairs(family)
    whole = sites(pair[0])
    parts = [Site(at.kind, at.layer, 1 if KINDS[at.kind].index else None, -2) for at in whole]
    units = [Site(at.kind, at.layer, 1) for at in whole if KINDS[at.kind].index]
    same(pair, PROMPTS, read=[*whole, *parts, *units])
    assert hook_count(pair[0].model.hf) == 0


@pytest.mark.parametrize(
    "family", ["gpt2", "gpt_neox", "llama", "gemma2", "phi3", "olmo2", "granite", "mixtral", "gpt_oss"]
)
def test_every_site_is_edited_the_same(pairs, family):
    """The families that differ in their modules; the conformance matrix has all of them."""
    pair = pairs(family)
    editable = [at for at in sites(pair[0]) if at.kind not in READ_ONLY]
    source, clean = pair[0].run(OTHERS, read=editable), pair[0].run(PROMPTS)
    for at in editable:
        edits = [patch(at), scale(Site(at.kind, at.layer, 1), -1.5)]
        assert moved(same(pair, PROMPTS, edits, [at], sources={"clean": source}), clean) > 1e-4, at


def test_every_verb_at_every_site(pairs):
    lens, _ = pair = pairs("llama")
    clean = lens.run(EQUAL)
    sources = {name: lens.run(ids, read=sites(lens)) for name, ids in (("clean", EQUAL[::-1]), ("pool", POOL))}
    for at in sites(lens):
        vector = torch.linspace(-1, 1, sources["pool"][at].shape[-1])
        edits = [zero(at.at(1)), mean(at), resample(at, seed=3), patch(at.at(-1), source_pos=0)]
        if at.kind != "pattern":
            edits += [add(at, vector, strength=0.5), clamp(at, -0.1, 0.2)]
        if at.kind not in ("scores", "pattern"):
            basis = torch.randn(2, len(vector), generator=torch.Generator().manual_seed(0))
            edits += [project(at, basis), project(at, basis, "clean"), mean(at, over="tokens")]
        for edit in edits:
            far = moved(same(pair, EQUAL, [edit], sources=sources), clean)
            assert far > 1e-5 or at.kind in ("scores", "pattern", "k"), edit  # one number for all keys moves nothing


def test_attention_rows_are_set_the_same(pairs):
    rows = torch.tril(torch.rand(5, 5, generator=torch.Generator().manual_seed(0)))
    rows = rows / rows.sum(-1, keepdim=True)
    for family in ("llama", "gemma2", "gpt_oss"):
        run = same(pairs(family), EQUAL, [pattern("L1H2.pattern", rows)], ["L1.pattern", "L1.z"])
        assert moved(run, pairs(family)[0].run(EQUAL)) > 1e-4


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "qwen2_moe", "gpt_oss"])
def test_experts_are_switched_the_same(pairs, family):
    pair, read = pairs(family), ["L1.router", "L1.expert_weights", "L1.mlp_out"]
    clean = pair[0].run(PROMPTS)
    for edit in [route(f"L1E{expert}", state) for state in ("off", "on", "drop") for expert in range(2)]:
        assert moved(same(pair, PROMPTS, [edit], read), clean) > 1e-4
    several = [route("L1E0", "off"), route("L1E2@-1", "drop"), add("L1E1@-1", 4.0), zero("L1E3@0")]
    assert moved(same(pair, PROMPTS, several, read), clean) > 1e-4
    with pytest.raises(EditError, match="leave at least 2 available"):
        pair[1].run(PROMPTS, [route(f"L1E{e}", "off") for e in range(3)])


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_a_row_that_no_edit_touches_keeps_its_logits(pairs, family):
    """Rows of one batch meet in the experts, where nnsight's second invoke would see, and zero, the rows of both."""
    lens, backend = pairs(family)
    prompt, other = EQUAL
    clean = backend.run([prompt, prompt])
    # the first row is patched with itself, the second with another prompt
    sources = {"clean": [prompt, other]}
    for edit in (patch("L1.mlp_out"), patch("L1.router"), patch("L0.resid_post@-1")):
        edited = backend.run([prompt, prompt], [edit], sources=sources)
        assert_close(edited.logits[0], clean.logits[0], **CLOSE)
        assert (edited.logits[1, -1] - clean.logits[1, -1]).abs().max() > 1e-3
        assert_close(edited.logits, lens.run([prompt, prompt], [edit], sources=sources).logits, **CLOSE)


def test_several_edits_apply_in_order(pairs):
    for family in ("llama", "gpt_neox", "olmo2"):
        pair, v = pairs(family), torch.linspace(-1, 1, 64)
        edits = [
            patch("L2.resid_pre@-1"),
            zero("L0H1@-2"),
            scale("L1.resid_post", 3.0),
            add("L1.resid_post", v),
            scale("L1H1.q", 2.0),
            zero("L1H0.pattern@-1"),
            scale("L1H2.result", 2.0),
            scale("L1H2.z", 0.5),
            add("L0.mlp_in", v),
        ]
        read = ["L1.resid_post", "L1.z", "L1.result", "L1.pattern", "L0.mlp_in", "L0.mlp_out"]
        edits += [add("L0.resid_mid", v)] if family != "gpt_neox" else []
        forth = same(pair, PROMPTS, edits, read, sources={"clean": OTHERS})
        back = same(pair, PROMPTS, edits[::-1], read, sources={"clean": OTHERS})
        assert moved(forth, pair[0].run(PROMPTS)) > 1e-3
        assert moved(forth, back) > 1e-3


def test_batches_sources_and_logits_as_the_lens_has_them(pairs):
    pair = pairs("llama")
    lens, backend = pair
    source = lens.run(OTHERS, read=["L1.z"])
    edits = [patch("L1H1@-1"), resample("L0.mlp_out@-1", "pool", seed=1)]
    for logits in ("all", "last", "none"):
        same(
            pair,
            PROMPTS,
            edits,
            ["L2.scores", "L2H1.q@-1"],
            sources={"clean": source, "pool": POOL},
            logits=logits,
            batch_size=2,
        )
    labelled = lens.tokens(PROMPTS).labelled(S=[3, 0, 2])
    same(pair, labelled, [zero("L1.resid_mid@S")], ["L1.resid_mid@S", "logits", "L2H1.pattern@S", "D3.final_norm"])
    assert backend.run(PROMPTS, logits="last").logits.shape == (3, 1, lens.model.vocab_size)


def test_mistakes_are_told_as_the_lens_tells_them(pairs):
    for edits, read, sources, error in [
        ([zero("L9H0")], [], {}, SiteError),
        ([], ["L1.router"], {}, SiteError),
        ([zero("L1.z@20")], [], {}, PromptError),
        ([patch("L1.z")], [], {}, EditError),
        ([patch("L1.z")], [], {"clean": POOL}, PromptError),
        ([add("L1.pattern", 0.1)], [], {}, EditError),
        ([zero("L1.z", phase="generated")], [], {}, EditError),
        ([add("L1.z", [1.0, 2.0, 3.0])], [], {}, EditError),
        ([project("L1.resid_post", [[1.0] * 64, [2.0] * 64])], [], {}, EditError),
    ]:
        told = []
        for lens in pairs("llama"):
            with pytest.raises(error) as caught:
                lens.run(PROMPTS, edits, read, sources=sources)
            told.append(str(caught.value))
        assert told[0] == told[1]


def test_the_lens_and_its_model_stay_as_they_were(pairs):
    lens, backend = pairs("llama")
    before = lens.run(PROMPTS).logits
    backend.run(PROMPTS, [zero("L1.z"), zero("L1.resid_mid"), scale("L0.pattern", 0.5)], ["L2.scores"])
    assert_close(lens.run(PROMPTS).logits, before, rtol=0, atol=0)
    assert hook_count(lens.model.hf) == 0
    shared = {parameter.data_ptr() for parameter in lens.model.hf.parameters()}
    assert {p.data_ptr() for p in backend._traced._nnsight._module.parameters()} == shared


@pytest.fixture
def sent(monkeypatch):
    """What is serialised for a server; nnsight's stand-in for one moves sys.path's entries about."""
    from nnsight.schema.request import RequestModel

    payloads: list[bytes] = []
    real = RequestModel.serialize
    monkeypatch.setattr(RequestModel, "serialize", lambda *a, **k: (payloads.append(real(*a, **k)), payloads[-1])[1])
    monkeypatch.setattr(sys, "path", list(sys.path))
    return payloads


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_oss"])
def test_the_remote_path_gives_the_same_and_sends_nothing_of_ours(pairs, family, sent):
    pair = pairs(family, "local")
    v = torch.linspace(-1, 1, 64)
    edits = [
        patch("L1H1@-1"),
        add("L0.resid_post", v),
        scale("L1H1.q", 2.0),
        clamp("L2.mlp_out", -1, 1),
        zero("L2H0.pattern@-1"),
    ]
    edits += [route("L1E0", "off"), route("L1E1@-1", "on")] if family == "gpt_oss" else []
    read = [at for at in sites(pair[0]) if at.layer is None or at.kind != "result"]
    assert moved(same(pair, PROMPTS, edits, read, sources={"clean": OTHERS}), pair[0].run(PROMPTS)) > 1e-3
    assert sent
    for payload in sent:
        strings = [arg for opcode, arg, _ in pickletools.genops(payload) if isinstance(arg, str)]
        assert not [s for s in strings if s.startswith("mechlab") and "/" not in s], (
            "a class or function of mechlab was sent by name"
        )
        assert "_make_skeleton_class" not in strings, (
            "a class of mechlab was sent by value: its methods are bytecode of this Python"
        )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Family -> its folder; sizes and settings unlike those of the small model that a distant layout is read from."""

    def save(family: str, **settings: bool) -> str:
        folder = tmp_path_factory.mktemp(family)
        model = tiny(family)
        config = copy.deepcopy(model.hf.config)
        config.num_hidden_layers = 2
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:2]
        for name, value in settings.items():
            setattr(config, name, value)
        hf = type(model.hf)(config)
        perturb_constants(hf, 1)
        hf.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        return str(folder)

    return save


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_of_a_model_without_weights_are_those_of_the_model(family, saved):
    folder = saved(family)
    distant, here = NnsightLens.distant(folder), Lens(load(folder))
    assert distant.model.device.type == "meta"
    names = [{m: path for path, m in lens.model.hf.named_modules()} for lens in (distant, here)]
    for blocks in zip(distant.layout.blocks, here.layout.blocks, strict=True):
        there, ours = (
            {f.name: n.get(getattr(b, f.name)) for f in fields(b)} for b, n in zip(blocks, names, strict=True)
        )
        assert there == ours
        assert blocks[0].scale == blocks[1].scale
    for size in ("n_heads", "n_kv_heads", "d_head", "d_model", "d_mlp", "n_experts", "vocab_size"):
        assert getattr(distant.layout, size) == getattr(here.layout, size), size


def test_a_distant_model_runs_as_it_would_here(saved, sent):
    folder = saved("gpt_neox", use_parallel_residual=False)  # unlike the small model of the family
    distant, here = NnsightLens.distant(folder, remote="local"), Lens(load(folder))
    run = same((here, distant), PROMPTS, [zero("L0H1@-1"), scale("L1.resid_mid", 2.0)], ["L1.mlp_in", "L1H1.pattern"])
    assert moved(run, here.run(PROMPTS)) > 1e-4
    assert sent


def test_a_checkpoint_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelError, match="no configuration and tokenizer"):
        NnsightLens.distant(str(tmp_path / "nothing"))


def test_a_server_that_cannot_help_is_told(pairs, saved):
    with pytest.raises(ModelError, match="is no server"):
        NnsightLens(pairs("llama")[0], remote="locale")
    with pytest.raises(ModelError, match="no server knows it"):
        NnsightLens(pairs("llama")[0], remote="http://127.0.0.1:9")
    unreachable = NnsightLens.distant(saved("llama"), remote="http://127.0.0.1:9")
    with pytest.raises(ModelError, match="did not run"):
        unreachable.run(PROMPTS)
