"""A circuit on the page: its faithfulness by size, a slider that moves the point and the drawing, and the node that is picked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from apps.explorer import basket, loaded, style
from apps.explorer.pages import circuit_nodes
from apps.explorer.pages.circuit_finding import CONTROL, Found
from apps.explorer.pages.circuit_nodes import Node
from apps.explorer.pages.runs_tables import table
from apps.explorer.refused import in_place, plain
from apps.explorer.state import SHARED, drop_unless, put, remembered
from mechlab.results.wording import interval_text, three_digits
from mechlab.views.circuit_choice import chosen_on_curve, pickable_drawing
from mechlab.views.features import logits_figure
from mechlab.views.figures import pattern

if TYPE_CHECKING:
    from circuits.circuit import Circuit
    from circuits.drawing import Layout

MOST_DRAWN = 150
_START = 0.001


def show(found: Found) -> None:
    """The curve, the slider, the drawing and the picked node."""
    size = size_slider(found, "circuit_size")
    _numbers(found, size)
    style.chart(
        chosen_on_curve(found.frame(), found.asked.method, size),
        "circuit_curve",
        alt="Faithfulness of circuits of growing size, beside random edges; the chosen size is marked",
    )
    with in_place():
        circuit = found.circuit(size)
        node = drawing(circuit, "circuit_drawing", "circuit_node")
        if node is not None:
            _node(found, circuit, node)


def size_slider(found: Found, key: str) -> float:
    """The slider over the sizes that were judged; a share of all edges."""
    total = found.scores.graph.n_edges
    words = {f"{100 * size:g} %": size for size in found.sizes}
    whole = [word for word, kept in zip(words, found.curve.kept_edges, strict=True) if kept]
    start = min(whole or words, key=lambda word: abs(words[word] - _START))
    chosen = st.select_slider(
        "Edges in the circuit",
        list(words),
        value=start,
        key=key,
        help=f"Share of all {total:,} edges. Each of these sizes was judged.",
        **SHARED,
    )
    return words[str(chosen)]


def drawing(circuit: "Circuit", key: str, node_key: str) -> str | None:
    """The drawing, and a box of its nodes; a click on a node sets the box. Returns the node that is picked."""
    from circuits.drawing import circuit_layout

    layout: Layout = circuit_layout(circuit, MOST_DRAWN)
    names = _first_head_first([str(name) for name in layout.nodes.node])
    drop_unless(node_key, names)
    picked = st.session_state.get(node_key, names[0])
    title = f"score, {circuit.origin.metric.replace('_', ' ')}"
    made = pickable_drawing(layout.nodes, layout.edges, score_title=title, left_out=layout.left_out, picked=picked)

    def told() -> None:
        name = clicked_node(st.session_state.get(key), names)
        if name is not None:
            put(node_key, name)

    st.plotly_chart(
        style.figure(made),
        key=key,
        theme=None,
        width="stretch",
        config=style.CONFIG,
        on_select=told,
        selection_mode="points",
        alt=f"Drawing of a circuit of {circuit.n_edges} edges between {len(names)} nodes",
    )
    return str(st.selectbox("Node", names, key=node_key, **SHARED))


def clicked_node(event: Any, names: Sequence[str]) -> str | None:
    """The node of a selection event; None for a click on an edge, or one that took a selection back."""
    points: Any = ((event or {}).get("selection") or {}).get("points") or []
    for point in points:
        data = point.get("customdata")
        data = data.get("0") if isinstance(data, dict) else data[0] if isinstance(data, list) and data else data
        if data in names:
            return str(data)
    return None


def _numbers(found: Found, size: float) -> None:
    frame = found.frame()
    row = frame[(frame.method == found.asked.method) & (frame.fraction == size)].iloc[0]
    beside = frame[(frame.method == CONTROL) & (frame.fraction == size)].iloc[0]
    circuit = found.circuit(size)
    assert circuit.scores is not None
    scores = circuit.scores[circuit.edges].abs()
    threshold = three_digits(float(scores.min())) if circuit.n_edges else "–"
    columns = st.columns(4)
    columns[0].metric(
        "Faithfulness", three_digits(row.faithfulness), help="Share of the task that the circuit keeps; 1: all."
    )
    columns[0].caption(f"95 % {plain(interval_text(row.low, row.high))}")
    columns[1].metric("Random edges", three_digits(beside.faithfulness), help="As many edges, drawn at random.")
    columns[1].caption(f"95 % {plain(interval_text(beside.low, beside.high))}")
    columns[2].metric("Edges", f"{int(row.kept_edges):,}", help="Those on a path from the input to the logits.")
    columns[2].caption(f"of {int(row.n_edges):,} selected; {len(circuit.nodes):,} nodes")
    columns[3].metric("Smallest score", threshold, help="The threshold that this size stands for.")
    columns[3].caption(f"{plain(found.asked.method)}, {plain(circuit.origin.metric.replace('_', ' '))}")


def _node(found: Found, circuit: "Circuit", name: str) -> None:
    node = circuit_nodes.parsed(name)
    edges = circuit_nodes.edges_of(circuit, name)
    if node is None:
        st.caption("The embeddings: where edges begin." if name == "input" else "The logits: where edges end.")
        table(edges, f"{found.asked.name} {name} edges")
        return
    prompts = ["".join(pieces) for pieces in found.judged.clean.pieces]
    prompt = st.selectbox("Prompt", range(len(prompts)), format_func=prompts.__getitem__, key="circuit_prompt")
    left, right = st.columns(2)
    with left, in_place():
        _looks(found, node, name, prompt)
    with right, in_place():
        _writes(found, node, name, prompt)
    with in_place():
        _role(found, circuit, node, name)
    table(edges, f"{found.asked.name} {name} edges")


def _looks(found: Found, node: Node, name: str, prompt: int) -> None:
    if node.head is None:
        return
    lens, inputs = loaded.lens(), ("circuit pattern", found.asked, node, prompt)
    matrix = remembered(inputs, lambda: circuit_nodes.attention(lens, found.judged, prompt, node))
    made = pattern(found.judged.clean.pieces[prompt], matrix, f"What {name} attends to")
    style.chart(made, f"circuit_pattern {name}", alt=f"Attention pattern of {name}")


def _writes(found: Found, node: Node, name: str, prompt: int) -> None:
    lens, inputs = loaded.lens(), ("circuit writes", found.asked, node, prompt)
    told = remembered(inputs, lambda: circuit_nodes.written(lens, found.judged, prompt, node))
    made = logits_figure(told.promoted, told.suppressed, f"What {name} writes at the last token")
    made.update_xaxes(title_text="direct effect on the logit (mean over tokens taken off)")
    style.chart(made, f"circuit_writes {name}", alt=f"Tokens that {name} raises and lowers the most")


def _role(found: Found, circuit: "Circuit", node: Node, name: str) -> None:
    from circuits.drawing import edge_table
    from mechlab.lens.edit import zero

    lens, model = loaded.lens(), found.asked.model
    direct = remembered(("circuit direct", found.asked), lambda: circuit_nodes.direct_effects(lens, found.judged))[node]
    st.markdown(
        f"**Direct effect on the logit difference: {plain(three_digits(direct.estimate))} logits** "
        f"{plain(interval_text(direct.low, direct.high))}, {direct.n} prompts"
    )
    detected = remembered(("circuit detectors", model), lambda: circuit_nodes.detector_scores(lens))
    rows = remembered(
        ("circuit role", found.asked, node, circuit.n_edges),
        lambda: circuit_nodes.role(lens, found.judged, node, detected, edge_table(circuit), name),
    )
    table(rows.round(3), f"{found.asked.name} {name} role")
    edit = zero(str(node.site))
    st.button(
        f"Put its ablation ({edit.site}) into the basket",
        key="circuit_basket",
        on_click=basket.add,
        args=(edit,),
        icon=":material/add_shopping_cart:",
        help="The page Patch applies what is in the basket.",
    )


def _first_head_first(names: Sequence[str]) -> list[str]:
    """The last head before the logits goes first (or any node), then the others from the input up: what is first is picked at first."""
    first = next((name for name in reversed(names) if ".h" in name), names[0])
    return [first, *(name for name in names if name != first)]
