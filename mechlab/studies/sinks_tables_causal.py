"""Tables and figures on what makes a sink, what removes it and what it does."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechlab.results.bootstrap_tables import bootstrap_mean_table
from mechlab.results.report import FigureItem, Table
from mechlab.results.statistics import Interval, bootstrap_mean
from mechlab.studies.sinks_evidence import EpisodeEvidence, Evidence, TargetEvidence, Units
from mechlab.views.figures import bars_with_intervals
from mechlab.views.sinks import lines, token_points

Part = tuple[Table, list[FigureItem]]


def causal_parts(evidence: Evidence) -> list[Part]:
    """In reading order; what this model has nothing of is left out."""
    causes = evidence.causes
    parts: list[Part] = []
    if causes.episodes:
        parts.append(_writes(evidence))
    if any(one.units for one in causes.episodes):
        parts.append(_neurons(evidence))
    if causes.chain is not None:
        parts.append(_chain(evidence))
    if len(causes.at_level):
        parts.append(_at_level(evidence))
    if causes.mapped is not None:
        parts.append(_components(evidence))
    return parts + ([_interventions(evidence)] if causes.targets else [])


def _writes(evidence: Evidence) -> Part:
    frames = [_writes_of(one, index) for index, one in enumerate(evidence.causes.episodes)]
    frame = pd.concat(frames, ignore_index=True)
    title = "Who writes the sink's direction, and who takes it away"
    note = (
        "Components along the direction at the episode's peak, as shares of the component there; held-out text, first token. Negative: "
        "taken away. "
        + " ".join(
            f"Episode {index + 1}: largest entries of the direction {_entries(one)}"
            + (f", cosine with the one before {one.similarity:.2f}." if index else ".")
            for index, one in enumerate(evidence.causes.episodes)
        )
    )
    figures = []
    spans = [one.episode for one in evidence.causes.episodes]
    for index in range(len(frames)):  # each figure from the end of the episode before to the start of the next
        first = spans[index - 1].stop + 1 if index else 0
        last = spans[index + 1].start - 1 if index + 1 < len(spans) else evidence.n_layers - 1
        melted = frames[index][frames[index]["layer"].between(first, last)].melt(
            "layer", ["mlp", "attention", "stream"], "what", "share"
        )
        names = {
            "mlp": "written by MLP",
            "attention": "written by attention",
            "stream": "in the stream after the layer",
        }
        figure = lines(
            melted.assign(what=melted["what"].map(names)),
            "layer",
            "share",
            "what",
            x_title="layer",
            y_title="share of the peak",
        )
        figures.append(FigureItem(f"writes_{index + 1}", f"{title}: episode {index + 1}", figure, "writes", note))
    return Table("writes", title, frame, note), figures


def _entries(one: EpisodeEvidence) -> str:
    return ", ".join(f"{at}: {value:.2f}" for at, value in one.dimensions.items())


def _writes_of(one: EpisodeEvidence, index: int) -> pd.DataFrame:
    peak = one.writes.stream[:, one.episode.peak].mean()
    shares = {name: getattr(one.writes, name).mean(axis=0) / peak for name in ("mlp", "attention", "stream")}
    n_layers = len(shares["mlp"])
    role = np.full(n_layers, "", dtype=object)
    role[list(one.parts.writers)], role[list(one.parts.removers)] = "writer", "remover"
    head = {"episode": np.full(n_layers, index + 1), "layer": np.arange(n_layers), "role": role.astype(str)}
    return pd.DataFrame(head | shares)


def _neurons(evidence: Evidence) -> Part:
    rows = []
    for index, one in enumerate(evidence.causes.episodes):
        for layer, found in sorted(one.units.items()):
            role = "writes" if layer in one.parts.writers else "removes"
            for at, unit in enumerate(found.units):
                table = bootstrap_mean_table((found.evaluation[:, [at]] / found.whole[:, None]).T)
                numbers = (float(table.estimate[0]), float(table.low[0]), float(table.high[0]))
                of_peak = float(found.evaluation[:, at].mean() / found.peak.mean())
                rows.append((index + 1, role, layer, f"L{layer}N{unit}", *numbers, of_peak, _random_share(found)))
    columns = ["episode", "role", "layer", "neuron", "share", "low", "high", "of_peak", "random_neurons"]
    frame = pd.DataFrame(rows, columns=columns)
    shown = frame[frame["share"].abs() >= 0.02]
    figure = bars_with_intervals(
        shown.assign(label=shown["neuron"] + " " + shown["role"]),
        "label",
        "share",
        "low",
        "high",
        title="",
        x_title="neuron",
        y_title="share of its MLP's write",
    ).update_xaxes(tickangle=-45)
    title = "Which neurons write the sink and which remove it"
    note = (
        "Chosen on other texts until they reach 90 % of their MLP's write, at most ten; of_peak: contribution as a share of the component "
        "at the peak; random_neurons: share that as many random neurons of that MLP write. The figure leaves out shares below 0.02."
    )
    return Table("neurons", title, frame, note), [FigureItem("neurons", title, figure, "neurons", note)]


def _random_share(found: Units) -> float:
    return float(found.random.mean() / found.whole.mean())


def _chain(evidence: Evidence) -> Part:
    chain = evidence.causes.chain
    assert chain is not None
    outcomes = {f"off: {name}" if name in chain.outcomes else name: one for name, one in chain.outcomes.items()}
    norms = {name.replace("off: nothing", "nothing off"): one.norms.mean(axis=0) for name, one in outcomes.items()}
    norms["off: random neurons"] = np.mean([one.norms.mean(axis=0) for one in chain.random], axis=0)
    losses = {name.replace("off: nothing", "nothing off"): one.loss.mean() for name, one in outcomes.items()}
    losses["off: random neurons"] = float(np.mean([one.loss.mean() for one in chain.random]))
    rows = [
        (name, layer, float(norm), float(losses[name]))
        for name, by_layer in norms.items()
        for layer, norm in enumerate(by_layer)
    ]
    frame = pd.DataFrame(rows, columns=["neurons", "layer", "norm", "loss"])
    figure = lines(
        frame, "layer", "norm", "neurons", x_title="after layer", y_title="norm of the first token", log_y=True
    )
    title = "The first token with those neurons switched off"
    note = (
        "Neurons set to zero at that token alone; random: as many in the same layers, mean of the draws. "
        "loss: mean over the tokens after it, nats."
    )
    return Table("switched_off", title, frame, note), [FigureItem("switched_off", title, figure, "switched_off", note)]


def _at_level(evidence: Evidence) -> Part:
    frame, level = evidence.causes.at_level, evidence.model.level
    assert level is not None
    title = f"Tokens at MLP {level[1]}: the norm of its output and the attention drawn later"
    figure = token_points(
        frame,
        "norm",
        "received",
        "sink",
        x_title=f"norm of the output of MLP {level[1]}",
        y_title="attention received in later layers",
        name="secondary sinks",
        others="other tokens",
    )
    note = (
        "Held-out text; sinks that other layers make are left out. Attention: mean over heads of the layers that read the sink. "
        "cosine: of that output with the sink's direction; lifetime: in layers, 0 for tokens that are no sinks."
    )
    return Table("at_level", title, frame, note), [FigureItem("at_level", title, figure, "at_level", note)]


def _components(evidence: Evidence) -> Part:
    collapse = evidence.causes.mapped
    assert collapse is not None
    found = collapse.found
    frame = pd.DataFrame(
        {
            "component": np.arange(len(found.plus)) + 1,
            "variance": found.explained,
            "plus": found.plus,
            "minus": found.minus,
            "random": found.random.mean(axis=0),
            "other_layer": found.other,
        }
    )
    names = {
        "plus": f"+PC through MLP {collapse.layer}",
        "minus": f"-PC through MLP {collapse.layer}",
        "random": "random direction (larger of both signs)",
        "other_layer": f"PC through MLP {collapse.other_layer} (larger of both signs)",
    }
    melted = frame.melt("component", list(names), "what", "cosine").assign(what=lambda f: f["what"].map(names))
    figure = lines(
        melted, "component", "cosine", "what", x_title="principal component", y_title="cosine with the sink direction"
    )
    figure.add_hline(y=float(str(evidence.settings["mapped_cosine"])), line={"dash": "dash", "width": 1})
    title = "Principal components of the inputs, pushed through that MLP alone"
    note = (
        f"Inputs of {found.n} tokens ({collapse.whose}), centred; each component at the inputs' mean length. "
        "Dashed: from here on it counts as mapped."
    )
    return Table("components", title, frame, note), [FigureItem("components", title, figure, "components", note)]


def _interventions(evidence: Evidence) -> Part:
    targets = evidence.causes.targets
    frame = pd.concat([_of_target(target) for target in targets], ignore_index=True)
    title = "Interventions on sinks"
    note = (
        "Change from the run without it, on held-out text: attention the token draws (in the layers that read it), its lifetime, and the "
        "mean loss of the tokens after it. Intervals over texts; for random draws the range of the draws' means."
    )
    figures = [
        FigureItem(
            f"interventions_{what}_{index + 1}",
            f"{words}: {target.name}",
            _bars(frame, target, what, words),
            "interventions",
            note,
        )
        for index, target in enumerate(targets)
        for what, words in (("received", "Change of attention drawn"), ("loss", "Change of the loss, nats"))
    ]
    return Table("interventions", title, frame, note), figures


def _bars(frame: pd.DataFrame, target: TargetEvidence, what: str, words: str) -> go.Figure:
    rows = frame[(frame["target"] == target.name) & (frame["measure"] == what)]
    figure = bars_with_intervals(
        rows, "intervention", "change", "low", "high", title="", x_title="intervention", y_title=words
    )
    return figure.update_xaxes(tickangle=-35)


def _of_target(target: TargetEvidence) -> pd.DataFrame:
    rows = []
    for what in ("received", "target_received", "lifetime", "loss"):
        base = getattr(target.base, what)
        for name, outcome in target.changed.items():
            found = bootstrap_mean(getattr(outcome, what) - base)
            rows.append((target.name, name, what, *_row(found, base)))
        for name, draws in target.draws.items():
            means = [float((getattr(outcome, what) - base).mean()) for outcome in draws]
            found = Interval(float(np.mean(means)), min(means), max(means), len(base))
            rows.append((target.name, name, what, *_row(found, base)))
    return pd.DataFrame(rows, columns=["target", "intervention", "measure", "change", "low", "high", "unchanged", "n"])


def _row(found: Interval, base: np.ndarray) -> tuple[float, float, float, float, int]:
    return found.estimate, found.low, found.high, float(base.mean()), found.n
