"""Generation equals Hugging Face's, and with edits equals running the whole text again at every step."""

import pytest
import torch
from torch.testing import assert_close

import mechlab.lens.generate as generation
from mechlab.errors import EditError, PromptError
from mechlab.lens.edit import add, clamp, mean, patch, pattern, route, scale, zero
from mechlab.lens.generate import Sampling

FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen3", "gemma2", "gemma3", "olmo2", "mixtral", "gpt_oss")


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_hugging_faces(lens, plain, long, short):
    plain.hf.set_attn_implementation("eager")
    for ids in (long, short):
        with torch.no_grad():
            theirs = plain.hf.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids)),
                max_new_tokens=10,
                do_sample=False,
                pad_token_id=2,
                eos_token_id=None,
            )
        ours = lens.generate([ids], 10, stop_at_eos=False)
        assert list(ours[0].ids) == theirs[0, len(ids) :].tolist()


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1.5, seed=4)])
def test_a_prompts_text_does_not_depend_on_the_others(lens, sampling, long):
    prompts = [long[:4], long, long[5:9], long[1:8]]
    together = lens.generate(prompts, 7, sampling=sampling, stop_at_eos=False)
    changed = lens.generate([long[:4], long[:2], long[9:13], long[1:8]], 7, sampling=sampling, stop_at_eos=False)
    assert together[0].ids == changed[0].ids and together[3].ids == changed[3].ids
    if sampling is None:
        for ids, ours in zip(prompts, together, strict=True):
            assert lens.generate([ids], 7, stop_at_eos=False)[0].ids == ours.ids


def test_sampling_follows_its_seed(lens_of, long):
    lens = lens_of("llama")

    def texts(**kwargs):
        return [g.ids for g in lens.generate([long[:5]] * 3, 8, sampling=Sampling(**kwargs), stop_at_eos=False)]

    assert texts(seed=1) == texts(seed=1)
    assert texts(seed=1) != texts(seed=2)
    assert len(set(texts(seed=1))) == 3, "the same prompt three times draws three texts"
    greedy = [g.ids for g in lens.generate([long[:5]] * 3, 8, stop_at_eos=False)]
    assert texts(top_k=1) == greedy and texts(top_p=1e-6) == greedy and texts(temperature=1e-4) == greedy
    assert texts(seed=1, top_k=10**6, top_p=1.0) == texts(seed=1)


def test_top_k_and_top_p_keep_the_likeliest(lens_of, long):
    lens = lens_of("gpt2")
    logits = lens.run([long[:5]]).last_logits[0]
    first = [
        lens.generate([long[:5]] * 200, 1, sampling=Sampling(**kw), stop_at_eos=False)
        for kw in ({"top_k": 5}, {"top_p": 0.5})
    ]
    allowed = set(logits.topk(5).indices.tolist())
    assert {g.ids[0] for g in first[0]} <= allowed and len({g.ids[0] for g in first[0]}) > 2
    ordered, order = logits.softmax(-1).sort(descending=True)
    n = int((ordered.cumsum(-1) < 0.5).sum()) + 1
    assert {g.ids[0] for g in first[1]} <= set(order[:n].tolist()) and len({g.ids[0] for g in first[1]}) > 1


def restricted(edit, n_prompt: int, n_now: int):
    """``edit`` in a run over ``n_now`` tokens of which ``n_prompt`` are prompt: the same edit, as edits at single positions."""
    if edit.phase == "all" and edit.site.pos is None:
        return [edit]
    plain_edit = {**edit.to_dict()}
    plain_edit.pop("phase", None)
    made = type(edit).from_dict(plain_edit)
    spans = {"prompt": range(n_prompt), "generated": range(n_prompt, n_now), "all": range(n_now)}[edit.phase]
    if edit.site.pos is not None:
        pos = edit.site.pos if edit.site.pos >= 0 else n_prompt + edit.site.pos
        spans = [p for p in spans if p == pos]
    return [type(edit).from_dict({**made.to_dict(), "site": str(made.site.at(p))}) for p in spans]


@pytest.fixture
def steps(monkeypatch, long):
    """The logits of every step of a generation that is made to say ``long[8:]``."""

    def run(lens, edits, sources, n_new=6):
        seen, said = [], iter(long[8:])
        monkeypatch.setattr(generation, "_choose", lambda logits, *_: (seen.append(logits), next(said))[1])
        lens.generate([long[:8]], n_new, edits, sources=sources, stop_at_eos=False)
        return torch.stack(seen)

    return run


def from_scratch(lens, long, edits, sources, n_new=6):
    """The same without a cache: the whole text again at every step."""
    seen = []
    for n in range(8, 8 + n_new):
        here = [r for edit in edits for r in restricted(edit, 8, n)]
        seen.append(lens.run([long[:n]], edits=here, sources=sources).last_logits[0])
    return torch.stack(seen)


VECTOR = torch.linspace(-1.5, 1.5, 64)
EDITS = {
    "resid all": [add("L1.resid_post", VECTOR)],
    "resid prompt": [add("L1.resid_post", VECTOR, phase="prompt")],
    "resid generated": [add("L1.resid_post", VECTOR, phase="generated")],
    "resid at the prompt's end": [scale("L0.resid_mid@-1", -2.0)],
    "k all": [scale("L1.k", -1.0)],
    "k prompt": [zero("L1.k", phase="prompt")],
    "v generated": [scale("L1KV1.v", -2.0, phase="generated")],
    "v at 2": [zero("L0.v@2")],
    "q generated": [zero("L2H1.q", phase="generated")],
    "z all": [zero("L1H2.z"), clamp("L0.z", -0.1, 0.1)],
    "scores generated": [scale("L1.scores", 3.0, phase="generated")],
    "pattern all": [pattern("L1.pattern", [1.0])],
    "result all": [scale("L1H1.result", -3.0)],
    "mlp generated": [zero("L1.mlp_out", phase="generated")],
    "logits all": [add("T7.logits", 9.0, phase="generated")],
    "patch prompt": [patch("L1.resid_post", phase="prompt")],
    "mean all": [mean("L1.z", "clean", over="tokens")],
}


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_edits_equal_running_from_scratch(lens, edits, steps, long):
    sources = {"clean": [long[8:16]]}
    ours = steps(lens, edits, sources)
    assert_close(ours, from_scratch(lens, long, edits, sources), rtol=1e-4, atol=1e-4)
    assert (ours - steps(lens, [], {})).abs().max() > 1e-3, "the edit must matter"


@pytest.mark.parametrize("phase", ["all", "prompt", "generated"])
@pytest.mark.parametrize("moe", ["mixtral", "gpt_oss"])
def test_routing_edits_equal_running_from_scratch(lens_of, moe, phase, steps, long):
    edits = [route(f"L{layer}E{layer}", "off", phase=phase) for layer in range(3)]
    ours = steps(lens_of(moe), edits, {})
    assert_close(ours, from_scratch(lens_of(moe), long, edits, {}), rtol=1e-4, atol=1e-4)
    assert (ours - steps(lens_of(moe), [], {})).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_edits_on_unequal_prompts_are_those_of_each(lens, long):
    prompts, others = [long[:4], long[2:13], long[9:13]], [long[5:9], long[:11], long[10:14]]
    edits = [patch("L1.resid_post@-1"), add("L0.resid_post", VECTOR, phase="generated")]
    together = lens.generate(prompts, 6, edits, sources={"clean": others}, stop_at_eos=False)
    for ids, other, ours in zip(prompts, others, together, strict=True):
        assert lens.generate([ids], 6, edits, sources={"clean": [other]}, stop_at_eos=False)[0].ids == ours.ids


def test_it_stops_at_the_end_of_text(lens_of, long):
    lens = lens_of("llama")
    plain = lens.generate([long[:5], long[3:9]], 6)
    eos = lens.model.tokenizer.eos_token_id
    stop = [add(f"T{eos}.logits@-1", 100.0)]
    ended = lens.generate([long[:5], long[3:9]], 6, stop)
    assert [g.ids for g in ended] == [(eos,), (eos,)]
    assert ended[0].text == ""
    went_on = lens.generate([long[:5]], 6, stop, stop_at_eos=False)[0]
    assert went_on.ids[0] == eos and len(went_on.ids) == 6
    assert [g.prompt for g in plain] == [lens.model.tokenizer.decode(ids) for ids in (long[:5], long[3:9])]
    assert plain[0].text == lens.model.tokenizer.decode(plain[0].ids, skip_special_tokens=True)


def test_one_row_may_stop_before_the_others(lens_of, long):
    lens = lens_of("llama")
    eos = lens.model.tokenizer.eos_token_id
    tokens = lens.tokens([long[:5], long[3:8]]).labelled(STOP=[4, 0])
    ended = lens.generate(tokens, 5, [add(f"T{eos}.logits@STOP", 100.0)])
    assert ended[0].ids == (eos,)
    assert ended[1].ids == lens.generate([long[3:8]], 5)[0].ids


@pytest.mark.parametrize(
    ("edits", "error", "message"),
    [
        ([patch("L1.z")], EditError, "give it phase='prompt'"),
        ([mean("L1.z", "clean")], EditError, "give it phase='prompt'"),
        ([zero("L1.z@2", phase="generated")], EditError, "touched nothing: no generated token"),
    ],
)
def test_edits_that_cannot_run_are_refused(lens_of, long, edits, error, message):
    with pytest.raises(error, match=message):
        lens_of("gpt2").generate([long[:5]], 3, edits, sources={"clean": [long[:5]]})


@pytest.mark.parametrize("n_new", [0, -1, 92, 1000])
def test_texts_that_do_not_fit_are_refused(lens_of, long, n_new):
    with pytest.raises(PromptError, match="do not fit"):
        lens_of("gpt2").generate([long[:5]], n_new)


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_bad_sampling_is_refused(bad):
    with pytest.raises(PromptError, match="Sampling"):
        Sampling(**bad)
