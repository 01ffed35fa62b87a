"""Tables and figures of the circuit study: a figure for every table."""

import pandas as pd

from circuits.drawing import circuit_layout, edge_table
from circuits.studies.circuit_evidence import Comparison, Evidence
from mechlab.results.report import FigureItem, Table
from mechlab.views.circuit import attribution_against_exact, circuit_drawing, faithfulness_curve
from mechlab.views.figures import bars_with_intervals, heatmap

Pair = tuple[Table, FigureItem]


def tables_and_figures(evidence: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    pairs = [_drawing(evidence), _curves(evidence), _areas(evidence), _taken_out(evidence)]
    if evidence.comparison:
        pairs.append(_comparison(evidence.comparison))
    return [table for table, _ in pairs], [figure for _, figure in pairs]


def summary(evidence: Evidence) -> str:
    """What was asked, on what."""
    task, judged, scores = evidence.discovery, evidence.evaluation, evidence.scores
    dropped = f" Left out: {len(judged.dropped)} items ({judged.dropped[0]} ...)." if judged.dropped else ""
    return (
        f"{evidence.method.title} scored {scores.graph.n_edges:,} edges on {len(task)} prompt pairs of {task.name} in "
        f"{scores.seconds:.0f} s; the best {100 * float(str(evidence.settings['size'])):.3g} % of them, ranked by "
        f"{evidence.settings['ranking']} score, of which {evidence.circuit.n_edges:,} lie on a path from input to logits, are the circuit. "
        f"It was judged on {len(judged)} other pairs, with edges outside it carrying what the {evidence.settings['ablation']} ablation "
        f"gives. Every claim was written down, with its rule, before the run.{dropped}"
    )


def _pair(key: str, title: str, frame: pd.DataFrame, figure: object, note: str) -> Pair:
    return Table(key, title, frame, note), FigureItem(key, title, figure, key, note)  # pyright: ignore[reportArgumentType]


def _drawing(evidence: Evidence) -> Pair:
    circuit, scores = evidence.circuit, evidence.scores
    broken = (
        "" if circuit.n_edges else " None of them lies on a path from input to logits: run alone, they carry nothing."
    )
    if broken:
        n_edges = max(1, int(float(str(evidence.settings["size"])) * scores.graph.n_edges))
        circuit = scores.top(n_edges, evidence.settings["ranking"], connected=False)  # pyright: ignore[reportArgumentType]
    found = circuit_layout(circuit, max_edges=120)
    note = (
        "Edges of the circuit with the largest scores. Positive: the metric falls when the edge is ablated. Keys and values of a KV "
        f"group are drawn to each of its heads that is in the circuit.{broken}"
    )
    figure = circuit_drawing(found.nodes, found.edges, "", score_title="score, logits", left_out=found.left_out)
    return _pair(
        "circuit", "The circuit", edge_table(circuit).sort_values("score", key=abs, ascending=False), figure, note
    )


def _curves(evidence: Evidence) -> Pair:
    frames = [one.frame(seed=evidence.seed).assign(method=title) for title, one in evidence.curves.items()]
    frame = pd.concat(frames, ignore_index=True)
    frame = frame[["method", *(name for name in frame.columns if name != "method")]]
    note = (
        "Share of the clean minus ablated logit difference that circuits of growing size keep when run alone, on held-out prompts, with "
        "95 % intervals over prompts. Signed ranking takes edges that help first and so overshoots; absolute ranking aims at 1."
    )
    return _pair("faithfulness", "Faithfulness by size", frame, faithfulness_curve(frame, ""), note)


def _areas(evidence: Evidence) -> Pair:
    rows = [
        (which.upper(), title, found.estimate, found.low, found.high, found.n)
        for which in ("cpr", "cmd")
        for title, one in evidence.curves.items()
        for found in [one.area(which, seed=evidence.seed)]
    ]
    frame = pd.DataFrame(rows, columns=["area", "scores", "estimate", "low", "high", "prompts"])
    figure = bars_with_intervals(
        frame[frame["area"] == "CMD"], "scores", "estimate", "low", "high", title="", x_title="scores", y_title="CMD"
    )
    note = (
        "CPR: area under faithfulness over shares of edges, higher keeps more. CMD (in the figure): area of |1 - faithfulness|, "
        "lower is nearer."
    )
    return _pair("areas", "CPR and CMD", frame, figure, note)


def _taken_out(evidence: Evidence) -> Pair:
    table = evidence.taken_out
    order = list(dict.fromkeys(table["circuit"]))
    grid = table.pivot(index="circuit", columns="task", values="drop").loc[order, order]
    note = (
        "Share of each task's effect that is lost when the edges of each task's circuit are ablated and all others left as they are: 1 is "
        "as bad as ablating everything. On the diagonal of the table also random circuits with as many edges into each layer and input."
    )
    figure = heatmap(grid, "", "drop", x_title="task", y_title="circuit taken out")
    return _pair("taken_out", "Circuits taken out, task by task", table, figure, note)


def _comparison(comparison: Comparison) -> Pair:
    note = (
        f"{comparison.top} of the best edges and {len(comparison.frame) - comparison.top} others, drawn evenly, on {comparison.n} prompt "
        "pairs: what the method says and what patching the edge does. Points off the diagonal are where the estimate is wrong."
    )
    figure = attribution_against_exact(
        comparison.frame, "", top_k=comparison.top, score_title="drop of the logit difference, logits"
    )
    return _pair("exact", "Estimated and exact effects", comparison.frame, figure, note)
