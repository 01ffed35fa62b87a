"""Edits that act token by token along a direction: worked by hand, in every way an edit runs, and refused where they mean nothing."""

import json

import pytest
import torch
from torch.testing import assert_close
from toys import toy_task

from mechlab.errors import EditError, UnknownName
from mechlab.lens import Edit
from mechlab.lens.edit import add, clamp, patch, project, scale, zero
from mechlab.lens.hooks import hook_count
from mechlab.lens.steer import Steer, clamped_along, moved, where_open
from mechlab.patching.effects import effects

AT = "L1.resid_post"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def lens(lens_of):
    return lens_of("llama")


def row(lens, seed: int = 0) -> torch.Tensor:
    return torch.randn(lens.model.d_model, generator=torch.Generator().manual_seed(seed))


def test_amounts_worked_by_hand():
    a = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    v = torch.tensor([1.0, 0.0])
    rms = [(25 / 2) ** 0.5, 2**0.5]
    assert_close(moved(Steer(times_rms=True), a, 2 * v), torch.tensor([[3 + 2 * rms[0], 4.0], [2 * rms[1], -2.0]]))
    kept = moved(Steer(keep_norm=True), a, torch.tensor([0.0, 1.0]))
    assert_close(kept[0], torch.tensor([3.0, 5.0]) * 5 / 34**0.5)
    # cos(a0, v) = .6: already aligned, half the weight; against -v it is .6, and the slope of 10 gives sigmoid(6)
    assert_close(moved(Steer(adaptive=10.0), a, v)[0], torch.tensor([3.5, 4.0]))
    assert_close(moved(Steer(adaptive=10.0), a, -v)[0], torch.tensor([3 - 1 / (1 + torch.e**-6), 4.0]))
    # along (0, 2), length divided out: projections 4 and -2
    assert_close(clamped_along((0.0, 2.0), a, -1.0, 3.0), torch.tensor([[3.0, 3.0], [0.0, -1.0]]))
    is_open = where_open(Steer(gate=(0.0, 5.0), threshold=3.5), a, torch.zeros(2, 2))
    assert_close(is_open, torch.tensor([[0.0, 0.0], [0.0, -2.0]]))


def test_bf16_stays_bf16_and_is_computed_wide():
    a = torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16)
    assert moved(Steer(times_rms=True), a, torch.tensor([0.01, 0.0])).dtype == torch.float32


EDITS = {
    "rms": lambda v: add(AT, v, strength=0.3, steer=Steer(times_rms=True)),
    "keep_norm": lambda v: add(AT, v, strength=2.0, steer=Steer(keep_norm=True)),
    "adaptive": lambda v: add(AT, v, strength=2.0, steer=Steer(adaptive=100.0, keep_norm=True)),
    "gate": lambda v: add(AT, v, strength=2.0, steer=Steer(gate=v, threshold=0.05)),
    "gated project": lambda v: project(AT, v, steer=Steer(gate=-v)),
    "clamp along": lambda v: clamp(AT, -0.1, 0.1, steer=Steer(along=v)),
}


def by_hand(name: str, a: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """``a [..., d]`` after the edit, by formulas written here."""
    u, length = v / v.norm(), a.norm(dim=-1, keepdim=True)
    height = (a @ u)[..., None]
    match name:
        case "rms":
            return a + 0.3 * v * a.square().mean(-1, keepdim=True).sqrt()
        case "keep_norm":
            new = a + 2 * v
            return new / new.norm(dim=-1, keepdim=True) * length
        case "adaptive":
            weight = 1 / (1 + torch.exp(-100 * torch.relu(-height / length)))
            new = a + 2 * weight * v
            return new / new.norm(dim=-1, keepdim=True) * length
        case "gate":
            return torch.where(height > 0.05, a + 2 * v, a)
        case "gated project":
            return torch.where(-height > 0, a - height * u, a)
        case _:
            return a - height * u + height.clamp(-0.1, 0.1) * u


@pytest.mark.parametrize("name", EDITS)
def test_run_does_what_the_formula_says_and_leaves_layers_below_alone(lens, long, name):
    prompts, v = [long[:9], long[4:10]], row(lens)
    edit = EDITS[name](v)
    below = ["L0.resid_post", "L1.mlp_out", AT]
    plain, edited = lens.run(prompts, read=below), lens.run(prompts, [edit], read=below)
    for at in below[:2]:
        assert torch.equal(plain[at], edited[at])
    for i, n in enumerate((9, 6)):
        want = by_hand(name, plain[AT][i, :n], v)
        assert_close(edited[AT][i, :n], want, **CLOSE)
        assert (want - plain[AT][i, :n]).abs().max() > 1e-3
    assert hook_count(lens.model.hf) == 0


def test_where_a_gate_is_shut_nothing_moves_by_a_bit(lens, long):
    plain = lens.run([long], read=[AT])
    shut = lens.run([long], [add(AT, row(lens), steer=Steer(gate=row(lens), threshold=1e6))], read=[AT])
    assert torch.equal(plain[AT], shut[AT]) and torch.equal(plain.logits, shut.logits)


@pytest.mark.parametrize(
    ("window", "wanted"), [((1, None), range(1, 9)), ((-2, None), (7, 8)), ((2, 4), (2, 3)), ((None, -6), (0, 1, 2))]
)
def test_a_window_counts_as_a_slice_of_each_prompt(lens, long, window, wanted):
    prompts, shift = [long[:9], long[2:16]], row(lens)
    steer = Steer(start=window[0], stop=window[1])
    plain, edited = lens.run(prompts, read=[AT]), lens.run(prompts, [add(AT, shift, steer=steer)], read=[AT])
    changed = (plain[AT] != edited[AT]).any(-1)
    assert changed[0].nonzero()[:, 0].tolist() == list(wanted)
    assert changed[1].nonzero()[:, 0].tolist() == list(range(14))[slice(*window)]


def test_generated_tokens_come_after_the_window_of_a_prompt(lens, long):
    prompt, shift = [long[:6]], 5 * row(lens)
    greedy = lambda *edits: lens.generate(prompt, 5, edits, stop_at_eos=False)[0].ids  # noqa: E731
    plain = greedy()
    assert greedy(add(AT, shift, steer=Steer(start=2))) == greedy(
        *(add(f"{AT}@{p}", shift) for p in range(2, 6)), add(AT, shift, phase="generated")
    )
    assert greedy(add(AT, shift, steer=Steer(start=-1))) != plain
    with pytest.raises(EditError, match="touched nothing"):
        greedy(add(AT, shift, phase="generated", steer=Steer(stop=3)))


@pytest.mark.parametrize("name", EDITS)
def test_generation_equals_running_the_whole_text_again(lens, long, name):
    edit, prompt = EDITS[name](row(lens)), list(long[:7])
    ids = lens.generate([prompt], 4, [edit], stop_at_eos=False)[0].ids
    for i, token in enumerate(ids):
        assert int(lens.run([[*prompt, *ids[:i]]], [edit]).last_logits.argmax()) == token


@pytest.mark.parametrize("name", EDITS)
def test_gradients_flow_through(lens, long, name):
    """A derivative by hand: move one entry of the activation below, see the metric move."""
    edit, site = EDITS[name](row(lens)), "L0.resid_post@3"
    slope = lens.gradients([long[:6]], lambda x: x[:, 9], [site], [edit])[site][0]
    step = 1e-2 * slope / slope.norm()
    up, down = (lens.run([long[:6]], [add(site, sign * step), edit]).last_logits[0, 9].item() for sign in (1, -1))
    assert (up - down) / 2e-2 == pytest.approx(slope.norm().item(), rel=0.02)


@pytest.mark.parametrize("name", EDITS)
def test_packed_engine_agrees_with_one_run_each(lens, name):
    task, edit = toy_task(lens), EDITS[name](row(lens))
    groups = [edit, [edit, scale("L2.mlp_out", 0.5)]]
    fast, slow = (
        effects(lens, task, groups, exhaustive=slow).frame["after"].to_numpy(copy=True) for slow in (False, True)
    )
    assert_close(torch.as_tensor(fast), torch.as_tensor(slow), rtol=1e-4, atol=1e-4)
    with pytest.raises(EditError, match="window"):
        effects(lens, task, [add(AT, row(lens), steer=Steer(start=1))])


@pytest.mark.parametrize("name", [*EDITS, "window"])
def test_nnsight_agrees(lens, long, name):
    from mechlab.backends import NnsightLens

    v = row(lens)
    edit = add(AT, v, steer=Steer(start=-3, times_rms=True)) if name == "window" else EDITS[name](v)
    prompts = [long[:9], long[4:10]]
    ours, theirs = lens.run(prompts, [edit], read=[AT]), NnsightLens(lens).run(prompts, [edit], read=[AT])
    assert_close(ours[AT], theirs[AT], **CLOSE)
    assert_close(ours.last_logits, theirs.last_logits, **CLOSE)


def test_json_gives_the_same_edit_back(lens):
    for make in EDITS.values():
        edit = make(row(lens))
        assert Edit.from_dict(json.loads(json.dumps(edit.to_dict()))) == edit
        assert hash(edit) == hash(make(row(lens)))
    edit = add(AT, [1.0], steer=Steer(start=-2, stop=-1))
    assert edit.to_dict()["steer"] == {"start": -2, "stop": -1}
    assert "start=-2 stop=-1" in str(edit)


def test_what_means_nothing_is_refused(lens, long):
    v = [1.0] * lens.model.d_model
    for make, message in (
        (
            lambda: patch(AT).__class__("patch", patch(AT).site, source="clean", steer=Steer(start=1)),
            "cannot be steered",
        ),
        (lambda: Edit("zero", zero(AT).site, steer=Steer(times_rms=True)), "belong to add"),
        (lambda: add(AT, v, steer=Steer(along=v)), "belongs to clamp"),
        (lambda: add("L1.pattern", 1.0, steer=Steer(times_rms=True)), "one vector per token"),
        (lambda: add("L1.z", 1.0, steer=Steer(keep_norm=True)), "one vector per token"),
        (lambda: Steer(gate=[0.0, 0.0]), "not all zero"),
        (lambda: Steer(along=[[1.0]]), "one row"),
        (lambda: Steer(gate="up"), "row of numbers"),
        (lambda: Steer(adaptive=-1.0), "above 0"),
        (lambda: Steer(threshold=1.0), "no gate"),
        (lambda: lens.run([long], [add(AT, v, steer=Steer(gate=[1.0, 2.0]))]), "size 2"),
    ):
        with pytest.raises(EditError, match=message):
            make()
    with pytest.raises(UnknownName, match="treshold"):
        Edit.from_dict({"verb": "add", "site": AT, "value": 1.0, "steer": {"treshold": 1.0}})


def test_tokens_are_told_as_they_come(lens, long):
    heard: list[tuple[int, int]] = []
    found = lens.generate(
        [long[:6], long[:9], long[3:9]], 4, on_token=lambda *told: heard.append(told), stop_at_eos=False
    )
    for row_, one in enumerate(found):
        assert tuple(token for at, token in heard if at == row_) == one.ids
    assert [at for at, _ in heard[:4]] == [0, 2, 0, 2]  # step by step, prompts of one length together
