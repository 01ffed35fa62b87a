"""The lens leaves no trace: no hook, no changed weight, no activation written into, whatever happens inside."""

import pytest
import torch
from torch.testing import assert_close

import mechlab.lens.hooks as hooks
from mechlab.errors import EditError, MechlabError
from mechlab.lens import Lens
from mechlab.lens.edit import READ_ONLY, add, clamp, patch, pattern, project, route, scale, zero
from mechlab.lens.hooks import hook_count, installed
from mechlab.models import tiny
from mechlab.models.fingerprint import fingerprint

EXACT = {"rtol": 0.0, "atol": 0.0}
FAMILIES = ("gpt2", "llama", "gemma2", "mixtral", "gpt_oss")


def metric(logits):
    return logits[:, 5] - logits[:, 9]


def everywhere(lens) -> list[str]:
    return [*lens.layout.kinds(), *(f"L{layer}.{kind}" for layer in range(3) for kind in lens.layout.kinds(layer))]


def everything(lens) -> list:
    """An edit at each editable site."""
    edits = [scale(s, 0.9) for s in everywhere(lens) if not s.endswith(READ_ONLY)]
    return [*edits, route("L1E1", "off")] if lens.layout.n_experts else edits


@pytest.fixture(autouse=True)
def leaves_no_trace(request, long):
    """Around every test here: no hooks, the same logits to the bit, the same weights."""
    if "family" not in request.fixturenames:
        yield
        return
    lens = request.getfixturevalue("lens")
    before, weights = lens.run([long]).logits, fingerprint(lens.model.hf, lens.model.tokenizer)
    assert hook_count(lens.model.hf) == 0
    yield
    assert hook_count(lens.model.hf) == 0
    assert_close(lens.run([long]).logits, before, **EXACT)
    assert fingerprint(lens.model.hf, lens.model.tokenizer) == weights


@pytest.mark.parametrize("family", FAMILIES)
def test_after_a_run_a_generation_and_gradients(lens, long):
    lens.run([long, long[:4]], everything(lens), everywhere(lens))
    lens.generate([long[:5], long[:3]], 3, everything(lens))
    read = [s for s in everywhere(lens) if not s.endswith(READ_ONLY)][:-8]
    lens.gradients([long[:7]], metric, read, everything(lens))
    assert not any(p.requires_grad for p in lens.model.hf.parameters())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "edits",
    [
        [add("L1.resid_post", [1.0, 2.0])],
        [add("L1H1.z", torch.ones(11))],
        [add("L1.resid_post@-1", torch.ones(2, 64))],
        [project("L1.resid_post", torch.ones(3))],
        [project("L1.resid_post", torch.ones(2, 64))],
        [pattern("L1H1.pattern", [0.5, 0.2])],
        [pattern("L1H1.pattern", torch.eye(3))],
        [zero("L0.q"), zero("L1.z"), patch("L1.resid_post")],
        [zero("L2.resid_post@100")],
        [zero("L2.resid_post", phase="generated")],
    ],
    ids=str,
)
def test_after_a_bad_edit(lens, edits, long):
    calls = (
        lambda: lens.run([long], edits, everywhere(lens)),
        lambda: lens.generate([long[:8]], 2, edits) if edits[0].phase == "all" else lens.run([long], edits),
        lambda: lens.gradients([long], metric, ["L0.z"], edits),
    )
    for call in calls:
        with pytest.raises(MechlabError):
            call()
        assert hook_count(lens.model.hf) == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "kind", ["embed", "q", "pattern", "z", "resid_mid", "mlp_in", "resid_post", "final_norm", "logits"]
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_exception_in_the_middle(lens, kind, error, long, monkeypatch):
    def broken(*_args, **_options):
        raise error

    monkeypatch.setattr(hooks, "apply", broken)
    edits = [zero(kind if kind in lens.layout.kinds() else f"L1.{kind}")]
    for call in (
        lambda: lens.run([long], edits, everywhere(lens)),
        lambda: lens.generate([long[:5]], 2, edits),
        lambda: lens.gradients([long], metric, ["L0.z"], edits),
    ):
        with pytest.raises(error):
            call()
        assert hook_count(lens.model.hf) == 0


@pytest.mark.parametrize("family", ["llama"])
def test_after_an_exception_while_hooks_go_on(lens, long, monkeypatch):
    monkeypatch.setattr(hooks, "_on_neurons", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        lens.run([long], read=["L0.resid_pre", "L0.q", "L1.z", "L1.mlp_pre"])


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_that_was_read_is_written_into_later(lens, long):
    """Each activation is what a run that reads it alone (and copies at once) gives, also downstream of edits."""
    prompts = [long, long[::-1]]
    edits = [
        scale(f"L{layer}.{kind}", 1.5)
        for layer in range(3)
        for kind in ("resid_mid", "z", "attn_out", "resid_pre", "mlp_in")
    ]
    for given in ([], edits):
        run = lens.run(prompts, given, everywhere(lens))
        for site, activation in run.activations.items():
            alone = lens.run(prompts, given, [site])[site]
            assert_close(activation, alone, rtol=1e-4, atol=1e-4, msg=lambda m, s=site: f"{s}: {m}")


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_inputs_and_sources_are_not_written_into(lens, long):
    tokens, value = lens.tokens([long, long[::-1]]), torch.ones(64)
    ids = tokens.ids.clone()
    source = lens.run(tokens, read=["L1.resid_mid", "L1.z", "L1.resid_post"])
    kept = {site: activation.clone() for site, activation in source.activations.items()}
    edits = [
        patch("L1.resid_mid"),
        scale("L1.resid_mid", 2.0),
        patch("L1.z"),
        clamp("L1.z", 0.0),
        add("L1.resid_post", value),
    ]
    lens.run(tokens, [*edits, zero("L2.resid_mid")], sources={"clean": source})
    assert_close(tokens.ids, ids, **EXACT)
    assert_close(value, torch.ones(64), **EXACT)
    for site, activation in kept.items():
        assert_close(source[site], activation, **EXACT)


def test_two_lenses_on_one_model_do_not_meet(long):
    model = tiny("llama", 3)
    one, two = Lens(model), Lens(model)
    expected = one.run([long]).logits
    two.run([long], [zero("L1.z")], ["L1.pattern"])
    assert_close(one.run([long]).logits, expected, **EXACT)


def test_hook_count_counts(lens_of):
    lens = lens_of("gpt2")
    with installed(
        lens.layout, lens.model.hf, [hooks.Tap("z", 1, None), hooks.Tap("q", 1, None), hooks.Tap("v", 1, None)]
    ):
        assert hook_count(lens.model.hf) == 2  # one hook, one attention module with taps


def test_a_model_keeps_its_error(lens_of, long):
    with pytest.raises(EditError, match=r"a value of shape \(2,\) does not fit activations of shape \(64,\)"):
        lens_of("gpt2").run([long], [add("L1.resid_post", [1.0, 2.0])])
