"""Bad rules, named: each problem is one sentence. And strata: the order in which rules with negation have one meaning."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import networkx as nx

from mechlab.errors import MechlabError
from steering.rules.clause import Atom, Clause


def problems(clauses: Sequence[Clause], concepts: Collection[str]) -> list[str]:
    """What is wrong with the rules, a sentence each; ``concepts`` are those that can be detected."""
    known = {*concepts, *(one.conclusion.predicate for one in clauses)}
    names = [one.name for one in clauses]
    found = [f"Two rules are called {name!r}." for name in dict.fromkeys(names) if names.count(name) > 1]
    for one in clauses:
        asked = dict.fromkeys(atom.predicate for atom in (*one.premises, *one.denied))
        unknown = [predicate for predicate in asked if predicate not in known]
        found += [
            f"Rule {one.name!r} asks for {p!r}, which is no concept and which no rule concludes." for p in unknown
        ]
        safe = set[str]().union(*(atom.variables for atom in one.premises))
        for where, atoms in (("its conclusion", (one.conclusion,)), ("what it denies", one.denied)):
            loose = sorted(set[str]().union(*(atom.variables for atom in atoms)) - safe)
            found += [f"Rule {one.name!r} is unsafe: {v} is in {where} and in no premise." for v in loose]
    return [*found, *_arities(clauses), *_negated_cycles(clauses)]


def checked(clauses: Sequence[Clause], concepts: Collection[str]) -> tuple[Clause, ...]:
    """The rules themselves. Raises MechlabError with every problem."""
    if found := problems(clauses, concepts):
        raise MechlabError(" ".join(found))
    return tuple(clauses)


def strata(clauses: Sequence[Clause]) -> list[list[Clause]]:
    """Rules in layers: what a rule denies is concluded in earlier layers only (Apt, Blair and Walker 1988).

    Raises:
        MechlabError: a cycle through a denial.
    """
    if found := _negated_cycles(clauses):
        raise MechlabError(" ".join(found))
    graph = _dependencies(clauses)
    parts = nx.condensation(graph)
    level: dict[int, int] = {}
    for part in nx.topological_sort(parts):
        before = [(level[p], _denies(graph, parts, p, part)) for p in parts.predecessors(part)]
        level[part] = max((below + is_denied for below, is_denied in before), default=0)
    of = parts.graph["mapping"]
    layers: list[list[Clause]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for one in clauses:
        layers[level[of[one.conclusion.predicate]]].append(one)
    return [layer for layer in layers if layer]


def _dependencies(clauses: Iterable[Clause]) -> Any:
    """Edges from what a rule asks for to what it concludes; ``denied`` where any rule denies it."""
    graph: Any = nx.DiGraph()
    for one in clauses:
        graph.add_node(one.conclusion.predicate)
        for atoms, is_denied in ((one.premises, False), (one.denied, True)):
            for atom in atoms:
                edge = (atom.predicate, one.conclusion.predicate)
                before = graph.has_edge(*edge) and graph.edges[edge]["denied"]
                graph.add_edge(*edge, denied=before or is_denied)
    return graph


def _denies(graph: Any, parts: Any, first: int, then: int) -> bool:
    members = parts.nodes[first]["members"], parts.nodes[then]["members"]
    return any(graph.edges[edge]["denied"] for edge in nx.edge_boundary(graph, *members))


def _negated_cycles(clauses: Sequence[Clause]) -> list[str]:
    graph = _dependencies(clauses)
    found: list[str] = []
    for members in sorted(sorted(part) for part in nx.strongly_connected_components(graph)):
        inside = graph.subgraph(members)
        for a, b in sorted(edge for edge in inside.edges if inside.edges[edge]["denied"]):
            cycle = " -> ".join([a, *nx.shortest_path(inside, b, a)])
            found.append(f"The rules deny {a!r} on a cycle, so they have no one meaning: {cycle}.")
    return found


def _arities(clauses: Iterable[Clause]) -> list[str]:
    sizes: dict[str, set[int]] = {}
    for one in clauses:
        for atom in _atoms(one):
            sizes.setdefault(atom.predicate, set()).add(len(atom.args))
    return [
        f"{predicate!r} is said of {' and of '.join(map(str, sorted(found)))} things: give it one number everywhere."
        for predicate, found in sizes.items()
        if len(found) > 1
    ]


def _atoms(one: Clause) -> tuple[Atom, ...]:
    return (one.conclusion, *one.premises, *one.denied)
