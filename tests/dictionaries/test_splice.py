"""Splices: the model with a dictionary in place of an activation, against the same done by hand with a patch of the decoded values."""

import json

import pytest
import torch
from saes import ARCHITECTURES, dictionary

from mechlab.errors import EditError, MechlabError, SiteError
from mechlab.lens.edit import Edit, add, scale, splice
from mechlab.lens.hooks import hook_count
from mechlab.lens.lens import Lens
from mechlab.models.tiny_models import tiny

PROMPTS = [[5, 9, 2, 31], [7, 1], [3, 3, 8, 40, 11]]
AT = "L1.resid_post"


@pytest.fixture(scope="module")
def lens():
    return Lens(tiny("llama", seed=3))


def run(lens, given, edit, **options):
    return lens.run(PROMPTS, [edit], dictionaries={"d": given}, **options)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_error_kept_leaves_the_model_as_it_is(lens, name):
    given = dictionary(lens, name, AT)
    clean = lens.run(PROMPTS, read=[AT])
    kept = run(lens, given, splice(AT, "d", keep_error=True, start=0), read=[AT])
    assert torch.equal(kept.logits, clean.logits)
    rows = clean[AT][clean.tokens.mask]
    decoded = given.reconstruct(rows)
    assert float((decoded + (rows - decoded) - rows).abs().max()) < 1e-4  # the same, added up
    dropped = run(lens, given, splice(AT, "d", keep_error=False, start=0), read=[AT])
    assert torch.allclose(dropped[AT][0, :4], given.reconstruct(clean[AT][0, :4]), atol=1e-5)
    assert not torch.allclose(dropped.logits, clean.logits, atol=1e-2)


def test_without_the_error_it_is_the_decoded_code_and_nothing_else_changes(lens):
    given = dictionary(lens, "topk", AT)
    clean = lens.run(PROMPTS, read=[AT])
    spliced = run(lens, given, splice(AT, "d", keep_error=False), read=[AT, "L0.resid_post"])
    for row, prompt in enumerate(PROMPTS):
        assert torch.equal(spliced[AT][row, 0], clean[AT][row, 0])  # position 0 is left alone by default
        wanted = given.reconstruct(clean[AT][row, 1 : len(prompt)])
        assert torch.allclose(spliced[AT][row, 1 : len(prompt)], wanted, atol=1e-4)
        assert not spliced[AT][row, len(prompt) :].any()  # padding is not decoded into something
    assert torch.equal(spliced["L0.resid_post"], lens.run(PROMPTS, read=["L0.resid_post"])["L0.resid_post"])
    alone = lens.run([PROMPTS[1]], [splice(AT, "d", keep_error=False)], dictionaries={"d": given})
    assert torch.allclose(alone.last_logits[0], spliced.last_logits[1], atol=1e-5)
    assert hook_count(lens.model.hf) == 0


@pytest.mark.parametrize(("how", "amount"), [("scale", 0.0), ("scale", 3.0), ("set", 2.5), ("add", -1.5)])
@pytest.mark.parametrize("keep_error", [True, False])
def test_a_feature_moves_the_activation_along_its_direction(lens, how, amount, keep_error):
    given = dictionary(lens, "standard", AT)
    clean = lens.run(PROMPTS, read=[AT])[AT][0]
    codes = given.encode(clean)
    feature = int(codes.sum(0).argmax())
    edited = run(
        lens, given, splice(AT, "d", keep_error=keep_error, features=[(feature, how, amount)], start=0), read=[AT]
    )
    new = {"scale": codes[:, feature] * amount, "set": torch.full((4,), amount), "add": codes[:, feature] + amount}[how]
    before = clean[:4] if keep_error else given.reconstruct(clean[:4])
    wanted = before + (new[:4] - codes[:4, feature])[:, None] * given.directions[feature]
    assert torch.allclose(edited[AT][0, :4], wanted, atol=1e-5)


def test_steering_through_the_code_equals_adding_the_direction(lens):
    given = dictionary(lens, "jumprelu", AT)
    through = run(lens, given, splice(AT + "@-1", "d", keep_error=True, features=[(3, "add", 4.0)]))
    plain = lens.run(PROMPTS, [add(AT + "@-1", given.directions[3], strength=4.0)])
    assert torch.allclose(through.logits, plain.logits, atol=1e-5)


@pytest.mark.parametrize("name", ["transcoder", "skip_transcoder", "jumprelu_skip_transcoder"])
def test_a_transcoder_reads_one_site_and_writes_another(lens, name):
    given = dictionary(lens, name, "L1.mlp_in", "L1.mlp_out")
    clean = lens.run(PROMPTS, read=["L1.mlp_in", "L1.mlp_out"])
    spliced = run(lens, given, splice("L1.mlp_out", "d", keep_error=False, start=0), read=["L1.mlp_in", "L1.mlp_out"])
    assert torch.equal(spliced["L1.mlp_in"], clean["L1.mlp_in"])
    assert torch.allclose(spliced["L1.mlp_out"][0, :4], given.sae(clean["L1.mlp_in"][0, :4]), atol=1e-6)
    kept = run(lens, given, splice("L1.mlp_out", "d", keep_error=True))
    assert torch.equal(kept.logits, lens.run(PROMPTS).logits)
    # It reads what reaches it in this run: an edit of its input changes what it writes.
    edited = lens.run(
        PROMPTS,
        [scale("L1.mlp_in", 2.0), splice("L1.mlp_out", "d", keep_error=False, start=0)],
        ["L1.mlp_out"],
        dictionaries={"d": given},
    )
    assert torch.allclose(edited["L1.mlp_out"][0, :4], given.sae(2 * clean["L1.mlp_in"][0, :4]), atol=1e-5)


def test_two_dictionaries_and_heads_laid_end_to_end(lens):
    z = dictionary(lens, "standard", "L0.z", d_in=lens.model.n_heads * lens.model.d_head)
    top = dictionary(lens, "topk", AT, seed=5)
    edits = [splice("L0.z", "z", keep_error=False), splice(AT, "top", keep_error=False)]
    both = lens.run(PROMPTS, edits, ["L0.z", AT], dictionaries={"z": z, "top": top})
    clean = lens.run(PROMPTS, read=["L0.z"])["L0.z"][0, 1:4]
    assert torch.allclose(both["L0.z"][0, 1:4].flatten(1), z.reconstruct(clean.flatten(1)), atol=1e-6)
    first = lens.run(PROMPTS, edits[:1], [AT], dictionaries={"z": z})[AT][0, 1:4]
    assert torch.allclose(both[AT][0, 1:4], top.reconstruct(first), atol=1e-5)


def test_generation_splices_each_new_token_as_a_run_over_the_whole_text_does(lens):
    given = dictionary(lens, "topk", AT)
    edits = [splice(AT, "d", keep_error=False)]
    texts = lens.generate(PROMPTS, 4, edits, dictionaries={"d": given}, stop_at_eos=False)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = list(prompt)
        for chosen in text.ids:
            assert chosen == int(lens.run([ids], edits, dictionaries={"d": given}).last_logits.argmax())
            ids.append(chosen)
    assert [t.ids for t in texts] != [t.ids for t in lens.generate(PROMPTS, 4, stop_at_eos=False)]


def test_gradients_flow_through_a_splice(lens):
    """The derivative along a direction, by finite differences of the logits."""
    given = dictionary(lens, "standard", AT)
    edits = [splice(AT, "d", keep_error=False, start=0)]
    found = lens.gradients([PROMPTS[0]], lambda logits: logits[:, 7], [AT], edits, dictionaries={"d": given})
    direction = torch.randn(lens.model.d_model, generator=torch.Generator().manual_seed(2))

    def metric(step):
        moved = [*edits, add(AT + "@2", direction, strength=step)]
        return lens.run([PROMPTS[0]], moved, dictionaries={"d": given}).last_logits[0, 7]

    slope = float((metric(1e-2) - metric(-1e-2)) / 2e-2)
    assert float(found[AT][0, 2] @ direction) == pytest.approx(slope, rel=1e-2, abs=1e-4)


def test_a_splice_round_trips_through_json():
    edit = splice(
        "L1.mlp_out@-1", "tc", keep_error=True, features=[(3, "set", 2), (0, "scale", 0)], start=0, phase="generated"
    )
    assert Edit.from_dict(json.loads(json.dumps(edit.to_dict()))) == edit
    assert "tc" in str(edit)


def test_what_cannot_be_spliced_is_refused_by_name(lens):
    given = dictionary(lens, "topk", AT)
    edit = splice(AT, "d", keep_error=True)
    with pytest.raises(EditError, match="Dictionary 'd' is named by an edit but was not given"):
        lens.run(PROMPTS, [edit])
    with pytest.raises(EditError, match=r"writes L1.resid_post and the edit is at L0.resid_post"):
        run(lens, given, splice("L0.resid_post", "d", keep_error=True))
    with pytest.raises(EditError, match="feature 24 and the dictionary has 24"):
        run(lens, given, splice(AT, "d", keep_error=True, features=[(24, "scale", 0)]))
    with pytest.raises(EditError, match="touched nothing"):
        lens.run([[5]], [edit], dictionaries={"d": given})
    with pytest.raises(SiteError):
        run(lens, given, splice("L9.resid_post", "d", keep_error=True))
    backwards = dictionary(lens, "transcoder", "L1.mlp_out", "L1.mlp_in")
    with pytest.raises(EditError, match=r"reads L1.mlp_out, which comes after L1.mlp_in"):
        run(lens, backwards, splice("L1.mlp_in", "d", keep_error=True))
    other = Lens(tiny("gpt2", seed=3))
    with pytest.raises(MechlabError, match=rf"made for {lens.model.name}.* loaded is {other.model.name}"):
        run(other, given, edit)


def test_a_dictionary_of_another_width_is_refused(lens):
    from saes import random_sae

    from mechlab.dictionaries.sae import SaeDictionary

    narrow = SaeDictionary(random_sae("standard", 5, 9), dictionary(lens, "standard", AT).origin)
    with pytest.raises(EditError, match=f"size 5 and L1.resid_post has size {lens.model.d_model}"):
        run(lens, narrow, splice(AT, "d", keep_error=True))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([(1, "scale", 0), (1, "set", 2)], "changes a feature twice"),
        ([(-1, "scale", 0)], "cannot change"),
        ([(1, "sale", 0)], "cannot change"),
        ([(1, "set", float("nan"))], "cannot change"),
        ([(1, "set")], "changed by"),
    ],
)
def test_changes_of_features_are_checked_when_the_edit_is_made(features, message):
    with pytest.raises(EditError, match=message):
        splice(AT, "d", keep_error=True, features=features)


def test_only_a_splice_has_a_start_and_a_dictionary():
    with pytest.raises(EditError, match="only a splice starts later"):
        Edit.from_dict({"verb": "zero", "site": AT, "start": 2})
    with pytest.raises(EditError, match="takes no dictionary"):
        Edit.from_dict({"verb": "zero", "site": AT, "dictionary": "d"})
    with pytest.raises(EditError, match="needs a keep_error"):
        Edit.from_dict({"verb": "splice", "site": AT, "dictionary": "d"})


def test_sweeps_refuse_a_splice_by_name(lens):
    from toys import toy_task

    for exhaustive in (False, True):
        with pytest.raises(EditError, match=r"splice L1.resid_post .* cannot be swept"):
            lens.effects(toy_task(lens), [splice(AT, "d", keep_error=True)], exhaustive=exhaustive)


def test_nnsight_refuses_a_splice_by_name(lens):
    from mechlab.backends.program import compiled
    from mechlab.lens.apply import Window

    tokens = lens.tokens(PROMPTS)
    window = Window(tokens, (0, 1, 2), tokens.width, {}, 3)
    with pytest.raises(EditError, match=r"splice L1.resid_post .* does not run through nnsight"):
        compiled(lens.layout, {}, window, [splice(AT, "d", keep_error=True)], (), torch.float32)
