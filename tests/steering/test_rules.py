"""Rules as data, forward chaining with proofs, bad rules by name; by hand, and against a brute-force closure."""

import itertools
import random
from dataclasses import replace

import pytest

from mechlab.errors import MechlabError
from steering.rules.chain import Closure, Step, chain, flaw
from steering.rules.check import checked, problems, strata
from steering.rules.clause import Atom, Clause, atom, read_rules, rules_text

FAMILY = """
rules:
  - name: parent
    if: ["parent(?x, ?y)"]
    then: 'ancestor(?x, ?y)'
  - name: further
    if: ["parent(?x, ?y)", "ancestor(?y, ?z)"]
    then: 'ancestor(?x, ?z)'
  - name: stranger
    if: ['person(?x)', 'person(?y)', "not ancestor(?x, ?y)"]
    then: 'stranger(?x, ?y)'
"""
GIVEN = [atom(text) for text in ("parent(a, b)", "parent(b, c)", "person(a)", "person(c)")]


def test_closure_by_hand() -> None:
    closure = chain(GIVEN, read_rules(FAMILY))
    derived = {str(fact) for fact in closure.derived}
    assert derived == {
        "ancestor(a, b)", "ancestor(b, c)", "ancestor(a, c)",
        "stranger(a, a)", "stranger(c, a)", "stranger(c, c)",
    }  # fmt: skip
    proof = closure.proof(atom("ancestor(a, c)"))
    assert [str(step.fact) for step in proof] == ["parent(b, c)", "ancestor(b, c)", "parent(a, b)", "ancestor(a, c)"]
    assert str(proof[-1]) == "ancestor(a, c): by further from parent(a, b), ancestor(b, c)"
    with pytest.raises(MechlabError, match="does not follow"):
        closure.proof(atom("ancestor(c, a)"))


def test_retracting_a_premise_takes_its_conclusions_away_and_gives_what_was_denied() -> None:
    closure = chain([fact for fact in GIVEN if fact != atom("parent(b, c)")], read_rules(FAMILY))
    assert atom("ancestor(a, c)") not in closure and atom("stranger(a, c)") in closure


def test_the_papers_bridge() -> None:
    rules = read_rules("rules: [{if: [bridge, san_francisco, united_states], then: golden_gate_bridge}]")
    given = [Atom("bridge"), Atom("san_francisco"), Atom("united_states")]
    assert Atom("golden_gate_bridge") in chain(given, rules)
    assert chain(given[:2], rules).derived == ()


def test_text_form_round_trips_and_json_reads_too() -> None:
    rules = read_rules(FAMILY)
    assert read_rules(rules_text(rules)) == rules
    assert read_rules('{"rules": [{"name": "r", "if": ["a(?x)"], "then": "b(?x)"}]}') == (
        Clause("r", Atom("b", ("?x",)), (Atom("a", ("?x",)),)),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rules: [{if: [a]}]", "'rule-1' must have 'then'"),
        ("rules: [{then: a, unless: b}]", "nothing else"),
        ("rules: [{if: a, then: b}]", "list of texts"),
        ("rules: [{if: ['a(?x'], then: b}]", "is no proposition"),
        ("- a", "one key, 'rules'"),
        ("rules: [", "no YAML"),
    ],
)
def test_text_of_another_form_is_refused(text: str, told: str) -> None:
    with pytest.raises(MechlabError, match=told):
        read_rules(text)


def test_bad_rules_are_named_in_a_sentence_each() -> None:
    bad = read_rules("""
rules:
  - {name: unknown, if: ['ghost(?x)'], then: 'seen(?x)'}
  - {name: loose, if: ['cat(?x)'], then: 'likes(?x, ?y)'}
  - {name: twice, if: ['cat(?x)', 'not seen(?z)'], then: 'odd(?x)'}
  - {name: twice, if: ['cat(?x)', 'not day(?x)'], then: 'night(?x)'}
  - {name: other-way, if: ['cat(?x)', 'not night(?x)'], then: 'day(?x)'}
  - {name: size, if: ['cat(?x, ?y)'], then: 'odd(?x)'}
""")
    found = problems(bad, ["cat"])
    assert found == [
        "Two rules are called 'twice'.",
        "Rule 'unknown' asks for 'ghost', which is no concept and which no rule concludes.",
        "Rule 'loose' is unsafe: ?y is in its conclusion and in no premise.",
        "Rule 'twice' is unsafe: ?z is in what it denies and in no premise.",
        "'cat' is said of 1 and of 2 things: give it one number everywhere.",
        "The rules deny 'day' on a cycle, so they have no one meaning: day -> night -> day.",
        "The rules deny 'night' on a cycle, so they have no one meaning: night -> day -> night.",
    ]
    with pytest.raises(MechlabError, match="ghost"):
        checked(bad, ["cat"])
    good = read_rules(FAMILY)
    assert checked(good, ["parent", "person"]) == good


def test_the_chain_refuses_what_it_cannot_run() -> None:
    with pytest.raises(MechlabError, match="cycle"):
        chain([], read_rules("rules: [{if: [not a], then: a}]"))
    with pytest.raises(MechlabError, match="keeps a variable"):
        chain([Atom("a")], read_rules("rules: [{name: r, if: [a], then: 'b(?x)'}]"))
    with pytest.raises(MechlabError, match="name a thing"):
        chain([Atom("a", ("?x",))], ())


def test_positive_cycles_end() -> None:
    rules = read_rules("rules: [{if: ['a(?x)'], then: 'b(?x)'}, {if: ['b(?x)'], then: 'a(?x)'}]")
    closure = chain([atom("a(k)")], rules)
    assert {str(fact) for fact in closure.facts} == {"a(k)", "b(k)"}
    assert closure.derived == (atom("b(k)"),)


def test_strata_put_what_is_denied_first() -> None:
    rules = read_rules("""
rules:
  - {name: last, if: [c, not b], then: d}
  - {name: middle, if: [c, not a], then: b}
  - {name: first, if: [c], then: a}
""")
    assert [[one.name for one in layer] for layer in strata(rules)] == [["first"], ["middle"], ["last"]]
    assert {str(fact) for fact in chain([Atom("c")], rules).facts} == {"a", "c", "d"}


def brute_force(given: set[Atom], rules: list[Clause], things: list[str]) -> set[Atom]:
    """Every instance of every rule, predicates p0, p1, ... in order: a rule's denials are of smaller numbers than its conclusion."""
    held = set(given)
    instances: list[tuple[Atom, list[Atom], list[Atom]]] = []
    for rule in rules:
        names = sorted(set().union(*(a.variables for a in rule.premises)))
        for values in itertools.product(things, repeat=len(names)):
            bind = dict(zip(names, values, strict=True))
            instances.append(
                (
                    rule.conclusion.bound(bind),
                    [a.bound(bind) for a in rule.premises],
                    [a.bound(bind) for a in rule.denied],
                )
            )
    for level in range(5):  # predicates of one level, to their fixed point, before the next
        mine = [one for one in instances if one[0].predicate == f"p{level}"]
        while True:
            new = {c for c, yes, no in mine if held.issuperset(yes) and held.isdisjoint(no)} - held
            if not new:
                break
            held |= new
    return held


def random_rules(draw: random.Random) -> list[Clause]:
    """Premises of the same or a smaller number than the conclusion, denials of a smaller one: so they are stratified by construction."""
    rules: list[Clause] = []
    for i in range(draw.randint(3, 8)):
        top = draw.randrange(5)
        pick = lambda limit: Atom(f"p{draw.randint(0, limit)}", tuple(draw.choice(["?x", "?y", "a"]) for _ in range(2)))  # noqa: E731
        premises = tuple(pick(top) for _ in range(draw.randint(1, 3)))
        safe = [*sorted(set().union(*(one.variables for one in premises))), "b"]
        args = lambda safe=safe: tuple(draw.choice(safe) for _ in range(2))  # noqa: E731
        denied = (Atom(f"p{draw.randrange(top)}", args()),) if top and draw.random() < 0.6 else ()
        rules.append(Clause(f"r{i}", Atom(f"p{top}", args()), premises, denied))
    return rules


def test_chaining_agrees_with_brute_force_in_any_order_and_every_proof_holds() -> None:
    draw, things, with_denials = random.Random(0), ["a", "b", "c"], 0
    for _ in range(250):
        rules = random_rules(draw)
        given = {Atom(f"p{draw.randrange(5)}", (draw.choice(things), draw.choice(things))) for _ in range(5)}
        closure = chain(given, rules)
        assert set(closure.facts) == brute_force(given, rules, things)
        dealt = draw.sample(rules, len(rules))
        assert chain(draw.sample(sorted(given), len(given)), dealt).facts == closure.facts
        for fact in closure.facts:
            proof = closure.proof(fact)
            assert proof[-1].fact == fact and flaw(proof, given, rules, closure) is None
            with_denials += any(step.denied for step in proof)
    assert with_denials > 50


def test_proofs_that_do_not_follow_are_caught() -> None:
    rules = read_rules(FAMILY)
    closure = chain(GIVEN, rules)
    proof = closure.proof(atom("ancestor(a, c)"))
    assert flaw(proof, GIVEN, rules, closure) is None
    assert flaw(proof[1:], GIVEN, rules, closure) == "parent(b, c) is used before it is proved."
    assert flaw(proof, GIVEN[1:], rules, closure) == "parent(a, b) was not given."
    assert "none of the rules" in str(flaw(proof, GIVEN, rules[:1], closure))
    wrong = (*proof[:-1], replace(proof[-1], fact=atom("ancestor(c, a)")))
    assert "does not follow by 'further'" in str(flaw(wrong, GIVEN, rules, closure))
    more = Closure({**closure.steps, atom("ancestor(c, a)"): Step(atom("ancestor(c, a)"))})
    stranger = closure.proof(atom("stranger(c, a)"))
    assert flaw(stranger, GIVEN, rules, closure) is None
    assert flaw(stranger, GIVEN, rules, more) == "ancestor(c, a) is denied and holds."
