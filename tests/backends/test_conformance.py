"""A small part of the conformance matrix, made anew; the page holds all of it."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mechlab.models import FAMILIES

ROOT = Path(__file__).parents[2]
BOUND = 5e-5
OURS = ("lens", "sweep", "nnsight")


@pytest.fixture(scope="module")
def conformance():
    """Loaded when the tests run: then the reference of ``tests/lens`` is loaded already, if it is to be."""
    spec = importlib.util.spec_from_file_location("conformance", ROOT / "benchmarks" / "conformance.py")
    sys.modules["conformance"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["conformance"])
    return sys.modules["conformance"]


@pytest.mark.parametrize(
    ("family", "kinds"),
    [("mixtral", ["router", "expert_weights", "mlp_post"]), ("gpt_neox", ["pattern", "resid_mid"])],
)
def test_our_backends_agree_with_plain_hooks(conformance, family, kinds):
    found = conformance.family_matrix(family, kinds, OURS)
    absent = {"mixtral": {"mlp_post"}, "gpt_neox": {"resid_mid"}}[family]
    for kind, verbs in found.items():
        for verb, cells in verbs.items():
            for backend, cell in cells.items():
                if kind in absent:
                    assert cell == conformance.ABSENT
                elif verb == "read" and backend == "sweep":
                    assert cell == "not applied"
                else:
                    assert cell <= BOUND, (kind, verb, backend)


def test_a_backend_that_does_something_else_is_seen(conformance):
    lens, plain = (make("gpt2") for make in (conformance.REFERENCE.make_lens, conformance.REFERENCE.make_plain))
    case = next(case for case in conformance.cases(plain, "z") if case.edit.verb == "scale")
    wrong = replace(case, edit=replace(case.edit, value=-1.4))
    for one, differs in ((case, False), (wrong, True)):
        cells = conformance._verb_cells([one], {"lens": lens}, lens, lens.bridge(), ("lens", "sweep"))
        assert (cells["lens"] > 1e-3) == differs
        assert (cells["sweep"] > 1e-3) == differs


def test_the_page_holds_every_cell_and_ours_are_small(conformance):
    matrix = json.loads((ROOT / "benchmarks" / "results" / "conformance.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert list(matrix) == list(FAMILIES)
    for family, kinds in matrix.items():
        assert family in page
        assert list(kinds) == list(conformance.KINDS)
        for kind, verbs in kinds.items():
            for verb, cells in verbs.items():
                ours = [cells[backend] for backend in OURS if isinstance(cells[backend], float)]
                assert all(cell <= BOUND for cell in ours), (family, kind, verb)
                missing = [cell for cell in cells.values() if isinstance(cell, str)]
                assert set(missing) <= {
                    conformance.ABSENT,
                    "not applied",
                    "no hook",
                    "never fires",
                    "other axes",
                    "no verb",
                } or all(cell.startswith("error") for cell in missing), (family, kind, verb, missing)
