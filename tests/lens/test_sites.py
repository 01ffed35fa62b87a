"""Sites and edits as text and JSON, and every sentence a user can be told."""

import json

import pytest

from mechlab.errors import EditError, MechlabError, PromptError, SiteError, UnknownName
from mechlab.lens import Edit, Site
from mechlab.lens.edit import add, clamp, mean, patch, pattern, project, resample, route, scale, splice, zero
from mechlab.lens.site import KINDS, site


def all_sites() -> list[Site]:
    return [
        Site(kind.name, layer, index, pos)
        for kind in KINDS.values()
        for layer in ((0, 3, 17) if kind.per_layer else (None,))
        for index in ((None, 0, 7, 1204) if kind.index else (None,))
        for pos in (None, 0, 12, -1, -13, "S2", "END", "S1+1")
    ]


def test_the_short_form_round_trips():
    for made in all_sites():
        assert site(str(made)) == made, str(made)
    assert len({str(made) for made in all_sites()}) == len(all_sites())


def test_the_hook_name_round_trips():
    for kind in KINDS.values():
        for pos in ("", "@-1", "@S2"):
            layer = 5 if kind.per_layer else None
            read = site(Site(kind.name, layer).hook_name + pos)
            assert (read.kind, read.layer, read.index) == (kind.name, layer, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L5H3", Site("z", 5, 3)),
        ("L5H3.q@-1", Site("q", 5, 3, -1)),
        ("L5KV1.k", Site("k", 5, 1)),
        ("L5N1204", Site("mlp_post", 5, 1204)),
        ("L5E7", Site("router", 5, 7)),
        ("L5D12.resid_post", Site("resid_post", 5, 12)),
        ("L5.resid_pre@S2", Site("resid_pre", 5, None, "S2")),
        ("final_norm@-1", Site("final_norm", pos=-1)),
        ("T7.logits", Site("logits", None, 7)),
        (" logits ", Site("logits")),
        ("blocks.5.attn.hook_rot_q@2", Site("q", 5, pos=2)),
        ("blocks.5.attn.hook_rot_k", Site("k", 5)),
        ("blocks.11.hook_resid_mid", Site("resid_mid", 11)),
        ("blocks.5.hook_in", Site("resid_pre", 5)),
        ("blocks.5.hook_out", Site("resid_post", 5)),
        ("blocks.5.attn.hook_out", Site("attn_out", 5)),
        ("hook_embed", Site("embed")),
        ("ln_final.hook_out", Site("final_norm")),
        ("unembed.hook_out", Site("logits")),
    ],
)
def test_what_people_type(text, expected):
    assert site(text) == expected
    assert site(expected) is expected


def test_sites_sort_in_the_order_of_the_forward_pass():
    texts = ["logits", "L1.resid_pre", "L0.resid_post", "final_norm", "embed", "L0H2.z", "L0H1.z", "L0.mlp_out"]
    in_order = sorted(map(site, texts), key=lambda s: s.sort_key)
    assert " ".join(map(str, in_order)) == "embed L0H1 L0H2 L0.mlp_out L0.resid_post L1.resid_pre final_norm logits"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", SiteError, "does not parse: write for example L5H3"),
        ("5.3", SiteError, "does not parse"),
        ("L5H", SiteError, "does not parse"),
        ("L-1.z", SiteError, "does not parse"),
        ("L5.Resid_post", SiteError, "does not parse"),
        ("L5", SiteError, "names no kind: write for example L5.resid_post"),
        ("L5KV1", SiteError, "names no kind: write for example L5KV1.k"),
        ("L5D1", SiteError, "names no kind: write for example L5D1.resid_post"),
        ("L5.resid_pst", UnknownName, "Unknown site kind 'resid_pst': did you mean .*resid_post"),
        ("L5.hook", UnknownName, "Unknown site kind"),
        ("blocks.5.hook_resid_pots", UnknownName, "Unknown hook name .* did you mean blocks.0.hook_resid_post"),
        ("blocks.5.attn.hook_q", SiteError, "before the rotary embedding.* write blocks.5.attn.hook_rot_q"),
        ("blocks.5.attn.hook_k@-1", SiteError, "write blocks.5.attn.hook_rot_k"),
        ("L5H1.k", SiteError, "k is indexed by KV head, written KV: for example L5KV1.k"),
        ("L5H1.v@2", SiteError, "written KV: for example L5KV1.v"),
        ("L5KV1.q", SiteError, "q is indexed by head, written H: for example L5H1.q"),
        ("L5H1.mlp_post", SiteError, "indexed by neuron, written N"),
        ("L5.z@", SiteError, "empty position"),
        ("H3.z", SiteError, "lives in a layer: write for example L0.z"),
        ("L3.logits", SiteError, "lives outside the layers"),
    ],
)
def test_text_that_is_no_site(text, error, message):
    with pytest.raises(error, match=message):
        site(text)


def test_numbers_below_zero_are_refused():
    for kwargs in ({"layer": -1}, {"layer": 0, "index": -2}):
        with pytest.raises(SiteError, match="is negative"):
            Site("z", **kwargs)


@pytest.mark.parametrize(
    ("family", "text", "message"),
    [
        ("llama", "L3.z", "this model has layers 0 to 2"),
        ("llama", "L0H4.z", "this model has head 0 to 3"),
        ("llama", "L0H4.pattern", "this model has head 0 to 3"),
        ("llama", "L0KV2.k", "this model has KV head 0 to 1"),
        ("llama", "L0N88", "this model has neuron 0 to 87"),
        ("llama", "L0D64.resid_post", "this model has dimension 0 to 63"),
        ("llama", "T227.logits", "this model has token id 0 to 226"),
        ("mixtral", "L0E4", "this model has expert 0 to 3"),
        ("llama", "L0.router", "is absent in this model: layer 0 has resid_pre, q, k"),
        ("gpt_neox", "L1.resid_mid", "is absent in this model"),
        ("gpt2", "L1.mlp_pre_linear", "is absent in this model"),
        ("mixtral", "L1N3", "is absent in this model"),
        ("qwen2_moe", "L1.mlp_pre", "is absent in this model"),
    ],
)
def test_sites_that_a_model_lacks(lens_of, short, family, text, message):
    lens = lens_of(family)
    calls = (
        lambda: lens.run([short], read=[text]),
        lambda: lens.run([short], [zero(text)]),
        lambda: lens.gradients([short], lambda x: x[:, 0], [text]),
        lambda: lens.generate([short], 1, [zero(text)]),
    )
    for call in calls:
        with pytest.raises(SiteError, match=message):
            call()


EDITS = [
    zero("L5H3@S2", phase="prompt"),
    mean("L5.z", "pool", over="tokens"),
    mean("L5.z@-1"),
    resample("L5.mlp_out", seed=7, phase="prompt"),
    patch("L5KV1.k@3", "clean", source_pos="S1", phase="prompt"),
    patch("L5.resid_pre@3", "corrupted", source_pos=0),
    add("L5.resid_post@-1", [1.0, -2.5, 1e-7], strength=4.0, phase="generated"),
    add("L5N7", 3.0),
    scale("L5N7", 0.0),
    clamp("L5N7", low=-1.0),
    clamp("L5N7", high=2, phase="generated"),
    clamp("L5N7", 1.5, 1.5),
    project("L5.resid_post", [[1.0, 0.0], [0.5, 0.5]]),
    project("L5.resid_post", [1.0, 0.0], "clean"),
    pattern("L5H3.pattern", [[1, 0], [0.5, 0.5]]),
    route("L5E7", "off"),
    route("L5E7@-1", "drop", phase="generated"),
    route("L5E7", "on"),
    splice("L5.mlp_out@-1", "tc", keep_error=True, features=[(3, "set", 2.0)], phase="generated"),
]


@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_edits_round_trip_through_json(edit):
    again = Edit.from_dict(json.loads(json.dumps(edit.to_dict())))
    assert again == edit
    assert hash(again) == hash(edit)
    assert str(edit).startswith(edit.verb)


def test_every_verb_is_in_the_round_trip():
    from mechlab.lens.edit import VERBS

    assert {edit.verb for edit in EDITS} == set(VERBS)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({"verb": "zero"}, EditError, "needs a verb and a site"),
        (
            {"verb": "zero", "site": "L0.z", "strenght": 1},
            UnknownName,
            "Unknown edit field 'strenght': did you mean strength",
        ),
        ({"verb": "zeor", "site": "L0.z"}, UnknownName, "Unknown verb 'zeor': did you mean zero"),
        ({"verb": "zero", "site": "L0.zz"}, UnknownName, "Unknown site kind 'zz'"),
        ({"verb": "zero", "site": "L0.z", "phase": "promt"}, UnknownName, "Unknown phase 'promt': did you mean prompt"),
        ({"verb": "mean", "site": "L0.z", "source": "pool", "over": "token"}, UnknownName, "Unknown over 'token'"),
        ({"verb": "route", "site": "L0E1", "state": "of"}, UnknownName, "Unknown state 'of'"),
        ({"verb": "add", "site": "L0.z"}, EditError, "Edit add at L0.z needs a value"),
        ({"verb": "scale", "site": "L0.z"}, EditError, "needs a value"),
        ({"verb": "scale", "site": "L0.z", "value": [[1, 2]]}, EditError, "takes one number, or one per unit"),
        ({"verb": "pattern", "site": "L0.pattern"}, EditError, "needs a value"),
        ({"verb": "patch", "site": "L0.z"}, EditError, "needs a source"),
        ({"verb": "mean", "site": "L0.z"}, EditError, "needs a source"),
        ({"verb": "resample", "site": "L0.z"}, EditError, "needs a source"),
        ({"verb": "project", "site": "L0.z"}, EditError, "needs a basis"),
        ({"verb": "route", "site": "L0E1"}, EditError, "needs a state"),
        (
            {"verb": "zero", "site": "L0.z", "value": 1},
            EditError,
            "takes no value: it belongs to add or scale or pattern",
        ),
        ({"verb": "add", "site": "L0.z", "value": 1, "source": "x"}, EditError, "takes no source"),
        ({"verb": "zero", "site": "L0.z", "low": 1}, EditError, "takes no low"),
        ({"verb": "clamp", "site": "L0.z"}, EditError, "has no limit"),
        ({"verb": "clamp", "site": "L0.z", "low": 2, "high": 1}, EditError, "low 2 above high 1"),
        ({"verb": "route", "site": "L0.z", "state": "off"}, EditError, "needs one expert, not L0.z"),
        ({"verb": "pattern", "site": "L0.z", "value": [1]}, EditError, "needs an attention pattern, not L0.z"),
        ({"verb": "project", "site": "L0.pattern", "basis": [1]}, EditError, "an activation with a direction"),
        ({"verb": "mean", "site": "L0.pattern", "source": "pool", "over": "tokens"}, EditError, "same at every token"),
        ({"verb": "zero", "site": "L0.expert_weights"}, EditError, "can be read but not edited"),
    ],
)
def test_edits_that_are_wrong_in_themselves(data, error, message):
    with pytest.raises(error, match=message):
        Edit.from_dict(data)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (pattern("L1H1.pattern", [0.5, 0.2]), "sums to 1"),
        (pattern("L1H1.pattern", [-0.5, 1.5]), "non-negative"),
        (pattern("L1H1.pattern@0", [0, 1.0]), "later tokens"),
        (pattern("L1H1.pattern", [[1.0]]), "sums to 1"),
        (project("L1.z", [1.0] * 7), "does not fit activations of size 10"),
        (project("L1.z", [[1.0] * 10, [2.0] * 10]), "linearly dependent"),
        (add("L1.z", [1.0] * 7), "does not fit"),
        (zero("L1.z", phase="generated"), "touched nothing: no generated token"),
    ],
)
def test_edits_that_do_not_fit_the_model(lens_of, short, edit, message):
    with pytest.raises(EditError, match=message):
        lens_of("llama").run([short], [edit])


@pytest.mark.parametrize(
    ("pos", "message"),
    [(8, "outside a prompt of 8 tokens: use -8 to 7"), (-9, "outside"), ("S2", "label 'S2' is unknown")],
)
def test_positions_that_are_not_there(lens_of, short, pos, message):
    for call in (lambda at: {"read": [at]}, lambda at: {"edits": [zero(at)]}):
        with pytest.raises(PromptError, match=message):
            lens_of("llama").run([short], **call(site("L1.z").at(pos)))


def test_a_site_that_was_not_read(lens_of, short):
    run = lens_of("llama").run([short], read=["L1.z"])
    with pytest.raises(SiteError, match=r"Site L1\.k was not read: this run read L1"):
        run["L1.k"]
    assert run["L1.z"] is run["blocks.1.attn.hook_z"]


def test_all_are_the_users_errors():
    for error in (SiteError, EditError, PromptError, UnknownName):
        assert issubclass(error, MechlabError)


def test_ragged_values_are_refused():
    with pytest.raises(EditError, match="rows of unequal length"):
        add("L1.resid_post", [[1.0, 2.0], [3.0]])
