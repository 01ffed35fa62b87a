"""Steering a model: strength 0 is no steering, layers below stay, and the planted behaviour follows the right vector at the right layer."""

import pytest
import torch
from steering_toys import ANSWER, PAIRS, A, B, made
from torch.testing import assert_close

from mechlab.analyses.kl_matched import kl_matched
from mechlab.errors import EditError, MechlabError, SiteError
from mechlab.lens.site import Site
from mechlab.models import random_twin
from steering.application import PLAIN, Rule, steer
from steering.examples import Material
from steering.methods.catalogue import method
from steering.methods.random_direction import as_long_as
from steering.resumed import ResumedLens
from steering.streaming import stream

EARLY, LAST = Site("resid_post", 0), Site("resid_post", 2)


def test_strength_zero_is_no_edit(lens):
    for how in ("add", "adaptive", "project", "clamp"):
        rule = Rule(how=how, low=0.0) if how == "clamp" else Rule(how=how)
        assert steer(lens.model, made(lens.model), 0.0, rule) == []


def test_layers_below_stay_and_the_edited_one_is_old_plus_patch(lens):
    vector, prompts = made(lens.model, sites=(A,)), [[5, 6, 7, 8, 9], [9, 8, 7]]
    edits, sites = steer(lens.model, vector, 1.5), ["embed", "L0.resid_post", "L1.mlp_out", str(A)]
    plain, steered = lens.run(prompts, read=sites), lens.run(prompts, edits, read=sites)
    for at in sites[:3]:
        assert torch.equal(plain[at], steered[at])
    patch = torch.zeros_like(plain[str(A)])
    patch[0, 1:], patch[1, 1:3] = 1.5 * vector[A], 1.5 * vector[A]
    assert torch.equal(steered[str(A)], plain[str(A)] + patch)


def test_several_vectors_at_once_are_their_sum(lens):
    one, two, prompts = made(lens.model), made(lens.model, 1, (B,)), [[5, 6, 7, 8]]
    both = lens.run(prompts, [*steer(lens.model, one, 2.0), *steer(lens.model, two, -1.0)]).logits
    assert_close(both, lens.run(prompts, steer(lens.model, 2 * one - two)).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "moved"),
    [
        (Rule(unit="rms"), lambda a, u: a + 0.5 * a.square().mean(-1, keepdim=True).sqrt() * u),
        (Rule(how="project"), lambda a, u: a - (a @ u)[:, None] * u),
        (Rule(how="clamp", low=1.0, high=1.0), lambda a, u: a + (1 - a @ u)[:, None] * u),
    ],
)
def test_rules_do_what_they_say(lens, rule, moved):
    vector, prompt = made(lens.model, sites=(A,)), [[5, 6, 7, 8]]
    strength = 0.5 if rule.how == "add" else 1.0
    plain = lens.run(prompt, read=[A])[A][0, 1:]
    steered = lens.run(prompt, steer(lens.model, vector, strength, rule), read=[A])[A][0, 1:]
    assert_close(steered, moved(plain, vector[A] / vector[A].norm()), rtol=1e-5, atol=1e-5)


def test_a_gate_opens_where_its_own_direction_fires(lens):
    vector, gate, prompt = made(lens.model, sites=(A,)), made(lens.model, 1, (A,)), [list(range(5, 15))]
    plain = lens.run(prompt, read=[A])[A][0]
    heights = plain @ gate[A] / gate[A].norm()
    limit = heights[1:].sort().values[3:5].mean().item()
    edits = steer(lens.model, vector, 1.0, Rule(threshold=limit), gate=gate)
    changed = (lens.run(prompt, edits, read=[A])[A][0] != plain).any(-1)
    assert changed.tolist() == [False, *(heights[1:] > limit).tolist()] and 0 < changed.sum() < 9
    with pytest.raises(SiteError, match="no direction at L1"):
        steer(lens.model, vector, 1.0, gate=gate.moved({A: B}))


def test_another_models_vector_is_refused_by_name(lens):
    twin = random_twin(lens.model)
    for vector, gate in ((made(twin), None), (made(lens.model), made(twin))):
        with pytest.raises(MechlabError, match=rf"{twin.name} .*{lens.model.name}"):
            steer(lens.model, vector, 1.0, gate=gate)
    with pytest.raises(MechlabError, match="means nothing"):
        steer(lens.model, made(lens.model), 2.0, Rule(how="project"))
    for bad in ({"how": "clamp"}, {"low": 1.0}, {"how": "project", "unit": "rms"}):
        with pytest.raises(ValueError, match="how"):
            Rule(**bad)


def test_prompt_only_and_generation_only(lens):
    vector, prompt = made(lens.model, sites=(A,)), [[5, 6, 7, 8]]
    rules = {phase: Rule(phase=phase) for phase in ("all", "prompt", "generated")}
    texts = {
        name: lens.generate(prompt, 6, steer(lens.model, vector, 4.0, rule), stop_at_eos=False)[0].ids
        for name, rule in rules.items()
    }
    plain = lens.generate(prompt, 6, stop_at_eos=False)[0].ids
    assert (
        texts["generated"][0] == plain[0] and texts["generated"] != plain
    )  # the first token comes from the prompt alone
    assert len({*texts.values(), plain}) == 4


def test_the_planted_behaviour_follows_the_right_vector_at_the_right_layer(planted):
    """At equal KL the found vector makes the answer likelier; a random one and the same vector too late do not."""
    lens = planted.lens
    found = method("mean-difference").extract(Material(lens, planted.examples, [EARLY]))
    plain = planted.examples.prompts.select(range(PAIRS, PAIRS + 12))

    def answer_mass(vector) -> float:
        edits = lambda s: steer(lens.model, vector, s)  # noqa: E731
        (strength,) = kl_matched(lens, plain, edits, [0.3], start=0.25)
        assert strength.kl == pytest.approx(0.3, rel=0.03)
        logits = lens.run(plain, edits(strength.strength), logits="last").last_logits
        return logits.softmax(-1)[:, ANSWER].mean().item()

    right = answer_mass(found)
    others = [answer_mass(as_long_as(found, seed)) for seed in range(10)] + [answer_mass(found.moved({EARLY: LAST}))]
    assert right > 1.5 * max(others) and right > 10 * sum(others) / len(others)


def test_resuming_gives_the_same_numbers(lens):
    vector, prompts = made(lens.model), [[5, 6, 7, 8, 9], [9, 8, 7]]
    resumed = ResumedLens(lens, 1)
    for strength in (0.0, 1.0, -2.0):
        edits = steer(lens.model, vector, strength, PLAIN)
        for logits in ("last", "all"):
            ours, plain = (one.run(prompts, edits, read=[A, B], logits=logits) for one in (resumed, lens))
            assert_close(ours.logits, plain.logits, rtol=1e-5, atol=1e-5)
            assert_close(ours[A], plain[A], rtol=1e-5, atol=1e-5)
    for call in (
        lambda: resumed.run(prompts, steer(lens.model, made(lens.model, sites=(EARLY,)))),
        lambda: resumed.generate(prompts),
    ):
        with pytest.raises(EditError, match="plain Lens"):
            call()
    with pytest.raises(SiteError, match="plain Lens"):
        resumed.run(prompts, read=[EARLY])


def test_pieces_put_together_are_the_text(lens):
    heard: dict[int, str] = {0: "", 1: ""}
    edits = steer(lens.model, made(lens.model), 3.0)
    found = stream(lens, [[5, 6, 7], [9, 8, 7, 6]], lambda row, text: heard.update({row: heard[row] + text}), 8, edits)
    assert [heard[0].strip(), heard[1].strip()] == [one.text.strip() for one in found]
    assert [one.ids for one in found] == [one.ids for one in lens.generate([[5, 6, 7], [9, 8, 7, 6]], 8, edits)]
