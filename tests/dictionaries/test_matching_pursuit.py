"""Matching pursuit against a plain loop, against sae-lens, and against what must hold for any pursuit."""

import pytest
import torch
from torch import Tensor

from mechlab.dictionaries import matching_pursuit as pursuits
from mechlab.dictionaries import matching_pursuit_loops as loops
from mechlab.dictionaries.dictionary import DictionaryOrigin, SparseCodes
from mechlab.dictionaries.matching_pursuit import Pursuit, StopRules, gram_matrix, matching_pursuit, merged
from mechlab.dictionaries.matching_pursuit_dictionary import MpDictionary, from_sae_lens, refit
from mechlab.errors import MechlabError

ORIGIN = DictionaryOrigin(method="matching_pursuit", model="toy", site="L0.resid_post")


def rules(**given: object) -> StopRules:
    return StopRules.model_validate(given)


def dictionary(p: int = 70, d: int = 23, *, seed: int = 0, coherent: bool = False, unit: bool = True) -> Tensor:
    atoms = torch.randn(p, d, generator=torch.Generator().manual_seed(seed))
    if coherent:  # pairs of atoms with a cosine near 0.95
        atoms[1::2] = atoms[::2][: len(atoms[1::2])] + 0.3 * atoms[1::2]
    atoms = torch.nn.functional.normalize(atoms, dim=1)
    return atoms if unit else atoms * torch.linspace(0.9, 1.1, p)[:, None]


def activations(rows: int = 37, d: int = 23, *, seed: int = 1) -> Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed))


def plain(x: Tensor, atoms: Tensor, stop: StopRules) -> tuple[list[list[int]], list[list[float]]]:
    """One row after the other, everything anew at each step, in double precision."""
    picks, values = [], []
    for row in x.double():
        r, chosen, added = row.clone(), list[int](), list[float]()
        for _ in range(stop.steps or x.shape[1]):
            correlations = atoms.double() @ r
            j = int(correlations.argmax())
            a = float(correlations[j])
            if stop.nonnegative and a <= 0:
                break
            r = r - a * atoms[j].double()
            again = j in chosen
            chosen.append(j)
            added.append(a)
            if (stop.stop_on_duplicate and again) or float(r.norm()) < stop.residual_threshold:
                break
        picks.append(chosen)
        values.append(added)
    return picks, values


@pytest.mark.parametrize("by_gram", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "stop",
    [
        rules(steps=9),
        rules(steps=40, residual_threshold=1.5),
        rules(steps=None, stop_on_duplicate=True),
        rules(steps=12, nonnegative=False),
        rules(steps=None, residual_threshold=0.7, stop_on_duplicate=True),
    ],
)
@pytest.mark.parametrize("kind", [{}, {"coherent": True}, {"unit": False}])
def test_every_path_equals_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch, by_gram: bool, dtype: torch.dtype, stop: StopRules, kind: dict[str, bool]
) -> None:
    monkeypatch.setattr(pursuits, "gram_pays", lambda *_: False)
    atoms, x = dictionary(**kind).to(dtype), activations().to(dtype)
    found = matching_pursuit(x, atoms, stop, gram=gram_matrix(atoms) if by_gram else None)
    picks, values = plain(x, atoms, stop)
    for row in range(len(x)):
        n = len(picks[row])
        assert found.picks[row, :n].tolist() == picks[row]
        torch.testing.assert_close(
            found.values[row, :n].double(), torch.tensor(values[row]).double(), atol=2e-6, rtol=1e-5
        )
        assert not found.values[row, n:].any()


def test_rows_stop_at_different_steps() -> None:
    """Otherwise dropping finished rows would be tested by nothing."""
    found = matching_pursuit(activations(), dictionary(), rules(steps=40, residual_threshold=1.5))
    assert len(set((found.values != 0).sum(1).tolist())) > 5


def test_the_fast_loop_and_the_careful_loop_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a drift of nothing allowed, ``fast`` hands every row to ``careful``, which chooses anew at every step."""
    atoms, x, stop = dictionary(300, 40), activations(64, 40), rules(steps=30)
    quick = matching_pursuit(x, atoms, stop, gram=gram_matrix(atoms))
    monkeypatch.setattr(loops, "DRIFT", 0.0)
    monkeypatch.setattr(loops, "_EPS", 0.0)
    slow = matching_pursuit(x, atoms, stop, gram=gram_matrix(atoms))
    assert torch.equal(quick.picks, slow.picks)
    torch.testing.assert_close(quick.values, slow.values, atol=2e-6, rtol=1e-5)


def test_a_long_pursuit_chooses_as_well_as_one_that_computes_everything_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,500 steps in a dictionary of twice the dimensions: values fall by more than 1e5, far below the rounding of the first updates."""
    atoms, x, stop = dictionary(48, 24), activations(12, 24), rules(steps=1500)
    updated = matching_pursuit(x, atoms, stop, gram=gram_matrix(atoms))
    monkeypatch.setattr(pursuits, "gram_pays", lambda *_: False)
    anew = matching_pursuit(x, atoms, stop)
    assert float((updated.values[:, -1] / updated.values[:, 0]).max()) < 1e-5
    assert _worst_choice(x, atoms, updated) < 1e-6
    assert _worst_choice(x, atoms, updated) < 2 * _worst_choice(x, atoms, anew)


def _worst_choice(x: Tensor, atoms: Tensor, found: Pursuit) -> float:
    """How far a choice's correlation was below the best, along its own trajectory in double precision, as a share of the norm of x."""
    wide, r, worst = atoms.double(), x.double(), 0.0
    for step in range(found.picks.shape[1]):
        correlations = r @ wide.T
        short = correlations.amax(1) - correlations.gather(1, found.picks[:, step : step + 1])[:, 0]
        worst = max(worst, float((short / x.norm(dim=1))[found.values[:, step] != 0].max()))
        r = r - found.values[:, step : step + 1].double() * wide[found.picks[:, step]]
    return worst


def test_updates_that_have_gone_wrong_are_repaired() -> None:
    """A Gram matrix that is wrong by far more than rounding: every value must still be the residual's correlation with its atom."""
    atoms, x = dictionary(), activations()
    wrong = gram_matrix(atoms) + 1e-3 * torch.randn(70, 70, generator=torch.Generator().manual_seed(3))
    found = matching_pursuit(x, atoms, rules(steps=9), gram=wrong)
    r = x.double()
    for step in range(9):
        atom = atoms[found.picks[:, step]].double()
        torch.testing.assert_close(found.values[:, step].double(), (r * atom).sum(1), atol=2e-6, rtol=1e-5)
        r = r - found.values[:, step : step + 1].double() * atom


def test_energy_orthogonality_and_monotone_error() -> None:
    atoms, x = dictionary(200, 32), activations(50, 32)
    found = matching_pursuit(x, atoms, rules(steps=16))
    falls = found.energies[:, :-1] - found.energies[:, 1:]
    torch.testing.assert_close(falls, found.values.square(), atol=1e-5, rtol=1e-5)  # ||r_t||² = ||r_t+1||² + a_t²
    assert (falls >= 0).all()
    r = x.double()
    for step in range(16):
        last = atoms[found.picks[:, step]].double()
        r = r - found.values[:, step : step + 1].double() * last
        assert float((r * last).sum(1).abs().max()) < 1e-5
        torch.testing.assert_close(found.energies[:, step + 1].double(), r.square().sum(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.double() - r, (found.codes().dense() @ atoms).double(), atol=1e-5, rtol=1e-5)


def test_a_whole_basis_is_projected_on() -> None:
    """With orthonormal atoms and signed steps, as many steps as atoms give the projection; worked by hand for the first row."""
    basis = torch.eye(6)[:4]
    x = torch.tensor([[3.0, -1.0, 2.0, 0.5, 7.0, 0.0], [1.0, 2.0, 3.0, 4.0, 0.0, 0.0]])
    found = matching_pursuit(x, basis, rules(steps=4, nonnegative=False))
    assert found.picks.tolist() == [
        [0, 2, 3, 0],
        [3, 2, 1, 0],
    ]  # the first row's best of what is left is then 0, not -1
    assert found.codes().dense()[1].tolist() == [1, 2, 3, 4]
    relu = matching_pursuit(x, basis, rules(steps=4))
    assert relu.codes().dense()[0].tolist() == [3, 0, 2, 0.5]
    torch.testing.assert_close(relu.energies[0], torch.tensor([63.25, 54.25, 50.25, 50.0, 50.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("threshold", "duplicate", "steps"), [(0.0, False, 10), (3.0, False, None), (0.0, True, 40), (1e-2, True, None)]
)
def test_equal_to_sae_lens(threshold: float, duplicate: bool, steps: int | None) -> None:
    from sae_lens.saes.matching_pursuit_sae import MatchingPursuitSAE, MatchingPursuitSAEConfig

    sae = MatchingPursuitSAE(
        MatchingPursuitSAEConfig(
            d_in=40, d_sae=300, residual_threshold=threshold, max_iterations=steps, stop_on_duplicate_support=duplicate
        )
    )
    sae.W_dec.data = dictionary(300, 40, unit=False)
    sae.b_dec.data = torch.linspace(-1, 1, 40)
    x = activations(90, 40)
    theirs, ours = sae.encode(x).detach(), from_sae_lens(sae, ORIGIN)
    codes = ours.encode(x)
    assert torch.equal(codes != 0, theirs != 0)
    assert float((codes - theirs).abs().max()) < 1e-5
    torch.testing.assert_close(ours.decode(codes), sae.decode(theirs).detach(), atol=1e-4, rtol=1e-4)


def test_fewer_steps_are_the_start_of_more_steps() -> None:
    whole = MpDictionary(ORIGIN, dictionary(), rules=rules(steps=12))
    x = activations()
    start = whole.pursuit(x).codes(5)
    assert torch.equal(start.dense(), whole.with_rules(steps=5).encode(x))
    assert int((start.dense() != 0).sum(1).max()) <= 5


def test_an_atom_chosen_twice_is_one_feature() -> None:
    codes = merged(
        SparseCodes(torch.tensor([[4, 2, 4, 0], [0, 1, 0, 0]]), torch.tensor([[1.0, 2, 3, 0], [5, 1, 0, 0]]), 6)
    )
    assert codes.indices.tolist() == [[2, 4], [0, 1]]
    assert codes.values.tolist() == [[2, 4], [5, 1]]
    found = matching_pursuit(activations(), dictionary(coherent=True), rules(steps=20))
    twice = sum(len(set(row)) < 20 for row in found.picks.tolist())
    assert twice > 0
    sums = torch.zeros(37, 70).scatter_add(1, found.picks, found.values)
    torch.testing.assert_close(found.codes().dense(), sums)
    assert (found.codes().values != 0).sum() == (sums != 0).sum()


def test_refit_is_least_squares_on_the_support() -> None:
    from scipy.optimize import nnls

    atoms, x = dictionary(coherent=True), activations()
    codes = matching_pursuit(x, atoms, rules(steps=8)).codes()
    free, positive = (refit(codes, x, atoms, nonnegative=sign) for sign in (False, True))
    before = (x - codes.dense() @ atoms).square().sum(1)
    for row in range(len(x)):
        support = codes.indices[row][codes.values[row] != 0]
        solved = torch.linalg.lstsq(atoms[support].T.double(), x[row].double()).solution
        torch.testing.assert_close(free.dense()[row, support].double(), solved, atol=1e-5, rtol=1e-4)
        bounded = torch.from_numpy(nnls(atoms[support].T.double().numpy(), x[row].double().numpy())[0])
        torch.testing.assert_close(positive.dense()[row, support].double(), bounded, atol=1e-5, rtol=1e-4)
    errors = [(x - one.dense() @ atoms).square().sum(1) for one in (free, positive)]
    assert (errors[0] <= errors[1] + 1e-5).all()
    assert (errors[1] <= before + 1e-5).all()
    assert float(positive.values.min()) >= 0
    assert float(free.values.min()) < 0  # otherwise the two solvers were not told apart


def test_half_precision_is_computed_in_single() -> None:
    atoms, x = dictionary(), activations()
    single = matching_pursuit(x.bfloat16().float(), atoms, rules(steps=4))
    half = matching_pursuit(x.bfloat16(), atoms, rules(steps=4))
    assert torch.equal(single.picks, half.picks)
    assert half.values.dtype == torch.float32


def test_bad_input_is_refused() -> None:
    with pytest.raises(MechlabError, match=r"\[rows, 23\]"):
        matching_pursuit(activations(d=22), dictionary())
    with pytest.raises(MechlabError, match="not finite"):
        matching_pursuit(activations() / 0, dictionary())
    with pytest.raises(MechlabError, match=r"L0\.resid_post"):
        MpDictionary(ORIGIN, dictionary()).encode(activations(d=5))
    empty = matching_pursuit(activations()[:0], dictionary(), rules(steps=3))
    assert empty.codes().dense().shape == (0, 70)


@pytest.mark.parametrize("p", [1, 6, 7, 8, 20])
def test_the_gram_matrix_by_blocks(p: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both halves, also where the last block is not full."""
    monkeypatch.setattr(pursuits, "_GRAM_BLOCK", 7)
    atoms = torch.randn(p, 5, generator=torch.Generator().manual_seed(p))
    torch.testing.assert_close(gram_matrix(atoms), torch.einsum("id,jd->ij", atoms, atoms))
