"""Tables and figures of the mp-sae study: a figure for every table."""

import pandas as pd
import plotly.graph_objects as go

from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import bootstrap_ratio
from mechlab.studies.mp_sae_activations import RANDOM_SHUFFLED, SHUFFLED
from mechlab.studies.mp_sae_claims import Evidence
from mechlab.studies.mp_sae_toys import METHODS, NAMES
from mechlab.views.figures import heatmap
from mechlab.views.sinks import lines

# Absorption in the paper's table, children of standard deviation 1/40; None: the child was never found.
PUBLISHED = {
    "matching_pursuit": (0.0050, 0.062, 0.0012),
    "matryoshka": (None, 0.090, 0.15),
    "relu": (None, 0.70, 0.45),
    "batchtopk": (None, 0.54, 0.45),
}
# Left: the buttons of the figure lie over the right.
_LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom"}
_SCORES = ("absorption", "permuted", "cosine", "mcc", "flat", "hierarchical", "error", "l0")
Part = tuple[Table, FigureItem]


def tables_and_figures(found: Evidence) -> tuple[list[Table], list[FigureItem]]:
    """In reading order."""
    parts = [_absorption(found), _beside_paper(found), _truth(found), _curves(found), _shapes(found)]
    return [table for table, _ in parts], [figure for _, figure in parts]


def summary(found: Evidence) -> str:
    """What was asked, on what."""
    seeds = found.toys["seed"].nunique()
    return (
        "Matching pursuit writes a code one feature at a time, each explaining what the ones before left over. First, toys: four kinds of "
        f"sparse autoencoder of 20 latents learn data with a known hierarchy of 20 features, {seeds} seeds of each. Do they learn "
        "children apart from their parents, or absorb one into the other? Then a model: matching-pursuit and TopK autoencoders of "
        f"equal size, trained on the same activations with {found.k} features a token, are read on held-out text ({found.model.rows} "
        "tokens) with fewer and with more features. Every claim was written down, with its rule, before the run."
    )


def _medians(found: Evidence) -> pd.DataFrame:
    """Medians over seeds, a row per case and method; NaN where a child was not found."""
    grouped = found.toys.groupby(["case", "method"], sort=False)[list(_SCORES)].median().reset_index()
    return grouped.assign(method=[NAMES[method] for method in grouped["method"]])


def _absorption(found: Evidence) -> Part:
    frame = _medians(found)
    grid = frame.pivot_table(index="method", columns="case", values="absorption", sort=False, dropna=False)
    title = "Absorption on the synthetic hierarchy"
    note = (
        "Mean cosine of the atoms of children with their true parents, median over seeds: 0 where a child's atom is the child alone. "
        "'permuted' in the table: the same with the parents permuted. 'cosine': children and parents of one strength, directions of a "
        "level that correlated; 'tied': a child exactly as strong as its parent; 'child mean': parents of mean 1, children of that mean."
    )
    return Table("absorption", title, frame, note), FigureItem(
        "absorption", title, heatmap(grid, "", "absorption", x_title="data", y_title="method"), "absorption", note
    )


def _beside_paper(found: Evidence) -> Part:
    medians = _medians(found)
    rows = []
    for method in METHODS:
        here = medians[(medians["method"] == NAMES[method]) & medians["case"].str.startswith("child mean")]
        for (_, one), paper in zip(here.iterrows(), PUBLISHED[method], strict=True):
            rows.append((NAMES[method], one["case"], float("nan") if paper is None else paper, one["absorption"]))
    frame = pd.DataFrame(rows, columns=["method", "data", "paper", "ours"])
    figure = go.Figure()
    labels = [
        f"{method}, {data.removeprefix('child ')}" for method, data in zip(frame["method"], frame["data"], strict=True)
    ]
    for column in ("paper", "ours"):
        figure.add_bar(x=labels, y=frame[column], name=column)
    figure.update_layout(template=_template(), height=440, barmode="group", margin={"t": 28}, legend=_LEGEND)
    figure.update_yaxes(title_text="absorption")
    figure.update_xaxes(tickangle=-45)
    title = "Absorption: the paper beside ours"
    note = (
        "Costa et al., arXiv 2506.03093, the row of their table with children of standard deviation 1/40; the paper has no number "
        "where the child was never found. Theirs: 15,000 steps, 15 runs; ours are shorter, with a learning rate of 3e-3 for the three "
        "ReLU kinds."
    )
    return Table("paper", title, frame, note), FigureItem("paper", title, figure, "paper", note)


def _truth(found: Evidence) -> Part:
    frame = _medians(found)[["case", "method", "cosine", "mcc", "flat", "hierarchical", "error", "l0"]]
    grid = frame.pivot_table(index="method", columns="case", values="cosine", sort=False, dropna=False)
    title = "How much of the truth is found"
    note = (
        "Medians over seeds. cosine: of true directions with matched atoms (drawn). mcc: correlation of true and matched codes. flat, "
        "hierarchical: squared error of the atoms' cosines within and between levels. error: share of squared norm not reconstructed: "
        "near 0 does not mean that the features are right. l0: features per sample; the truth has 1.36."
    )
    return Table("truth", title, frame, note), FigureItem(
        "truth", title, heatmap(grid, "", "cosine", diverging=False, x_title="data", y_title="method"), "truth", note
    )


def _curves(found: Evidence) -> Part:
    model, rows = found.model, []
    for reader, errors in model.errors.items():
        spread = model.shuffled_spread if reader in (SHUFFLED, RANDOM_SHUFFLED) else model.spread
        for k, error in zip(model.ks, errors, strict=True):
            fvu = bootstrap_ratio(error, spread, seed=found.seed)
            rows.append((reader, k, fvu.estimate, fvu.low, fvu.high))
    frame = pd.DataFrame(rows, columns=["reader", "k", "fvu", "low", "high"])
    figure = lines(frame, "k", "fvu", "reader", x_title="features per token at inference", y_title="FVU", log_x=True)
    figure.update_yaxes(range=[0, min(1.6, 1.05 * float(frame["fvu"].max()))])
    figure.update_xaxes(tickvals=list(model.ks), ticktext=[str(k) for k in model.ks])
    figure.add_vline(x=found.k, line={"dash": "dash", "width": 1})
    title = "Error against the number of features at inference"
    note = (
        f"Share of variance not explained on held-out passages; trained with {found.k} (dashed line). Intervals in the table are over "
        "passages. Nothing is trained again: a pursuit is stopped earlier or later, of a TopK code the k largest entries before its "
        "own choice are kept."
    )
    return Table("curves", title, frame, note), FigureItem("curves", title, figure, "curves", note)


def _shapes(found: Evidence) -> Part:
    frame = found.model.shapes.assign(
        seed_agreement=[float(found.model.agreement[kind].mean()) for kind in ("matching_pursuit", "topk")],
        random_agreement=float(found.model.agreement["random"].mean()),
    )
    shown = frame.melt(id_vars="dictionary", value_vars=["babel", "coactive_babel", "seed_agreement", "alive"])
    figure = go.Figure()
    for name, rows in shown.groupby("dictionary", sort=False):
        figure.add_bar(x=rows["variable"], y=rows["value"], name=str(name))
    figure.update_layout(template=_template(), height=400, barmode="group", margin={"t": 28}, legend=_LEGEND)
    title = "The two dictionaries"
    note = (
        f"Babel function of {found.k} atoms on the whole dictionary and on the atoms that one token uses (the paper: MP higher on the "
        "first, lower on the second); cosine of matched atoms of two seeds; share of features that fire on held-out tokens; effective "
        "rank of the codes in the table."
    )
    return Table("shapes", title, frame, note), FigureItem("shapes", title, figure, "shapes", note)


def _template() -> go.layout.Template:
    from mechlab.views.style import template

    return template()
