# %% [markdown]
# # 5. Attention sinks
#
# In most language models many heads give most of their attention to the first token, whatever it is. And at
# that token one finds the largest numbers in the whole model. What makes them, and does anything depend on
# them? You will see the sink, find the neurons that write it, switch them off, and watch it go.

# %%
import numpy as np
import pandas as pd

from mechlab.analyses.massive import survey
from mechlab.analyses.sinks import attention_received, other_rate, sink_rate
from mechlab.analyses.sinks_interventions import SINK, Watch, outcome
from mechlab.analyses.sinks_levels import Thresholds, profile
from mechlab.analyses.sinks_prompts import random_tokens, repeated_token, two_parts
from mechlab.analyses.sinks_writers import parts, random_units, top_units, unit_writes, writes
from mechlab.lens import Lens
from mechlab.lens.edit import zero
from mechlab.lens.site import Site
from mechlab.models import load
from mechlab.results import bootstrap_difference, bootstrap_mean
from mechlab.views.sinks import layer_by_head, lines

lens = Lens(load())
n_layers, length = lens.model.n_layers, 40
discovery, evaluation = two_parts(lens, "bundled", 8, 8, length)

# %% [markdown]
# ## See it
#
# How much attention does the first token receive, from all later ones, in each head? Dark cells are heads
# that do hardly anything else. There are two stretches: a faint one low down, a strong one above, and
# between them layers without any.

# %%
received = attention_received(lens, discovery)
layer_by_head(received[..., 0].mean(axis=0), "attention received by the first token")

# %% [markdown]
# ## Is it the place, or the words?
#
# Sink rate: the share of heads that give a token more than 0.3 of their attention. Three inputs: text,
# random tokens, one token said over and over. This model knows positions only through attention (rotary),
# so on a repeated token nothing tells the first from the others, and there can be no sink. The last column
# is the control: the most successful *other* token of the same prompts.

# %%
inputs = {
    "text": received,
    "random tokens": attention_received(lens, random_tokens(lens, 8, length)),
    "repeated token": attention_received(lens, repeated_token(lens, 8, length)),
}
rates = {}
for name, alpha in inputs.items():
    first, other = bootstrap_mean(sink_rate(alpha, 0, 0.3)), bootstrap_mean(other_rate(alpha, 0.3))
    rates[name] = {
        "first token": first.estimate,
        "low": first.low,
        "high": first.high,
        "best other token": other.estimate,
    }
pd.DataFrame(rates).T

# %% [markdown]
# ## The numbers at that token
#
# A few dimensions of the residual stream hold values hundreds or thousands of times the median there. They
# are called massive activations. Nearly all sit at the first token.

# %%
sizes = survey(lens, discovery, floor=100.0, ratio=300.0)
print(f"first layer that has them: {sizes.first_layer()}")
sizes.entries.groupby(["position", "dimension"])["value"].agg(["count", "mean", "min", "max"]).sort_values(
    "count", ascending=False
).head(6)

# %% [markdown]
# ## Who writes them?
#
# The residual stream is a sum. So its component along the sink's direction is the sum of what every layer
# adds along it: a large positive term makes the sink, a large negative one removes it. The same holds for
# the neurons of an MLP. All of this is read on discovery texts; the test below uses others.

# %%
found = profile(lens, discovery, Thresholds())
episode = found.episodes[found.strongest]
(written,) = writes(lens, discovery, found.position, [found.directions[episode.peak]])
who = parts(written, found.episodes, found.strongest, share=0.1)
print(
    f"massive after layers {episode.start} to {episode.stop}; "
    f"written by the MLPs {who.writers}, removed by {who.removers}"
)

along = {layer: found.directions[episode.peak] for layer in who.writers}
contributions = unit_writes(lens, discovery, found.position, along)
writers = {layer: top_units(values.mean(axis=0), share=0.9) for layer, values in contributions.items()}
writers

# %% [markdown]
# ## Switch them off
#
# Set these neurons to zero, at the first token only. If they make the sink, three things must follow, on
# new texts: the large norm is gone, heads look elsewhere, and the model predicts worse. The control is ten
# draws of as many other neurons of the same layers.

# %%
held_out = evaluation.labelled(**{SINK: [found.position] * len(evaluation)})
watch = Watch(found.episode_directions(), episode.start, episode.reading(n_layers), 0.9)


def off(units):
    """Edits that set neurons, given by layer, to zero at the sink token."""
    return [
        zero(Site("mlp_post", layer, unit, pos=SINK)) for layer, chosen in units.items() for unit in chosen
    ]


n_units = contributions[who.writers[0]].shape[1]
base = outcome(lens, held_out, [], watch)
without = outcome(lens, held_out, off(writers), watch)
rivals = [
    outcome(lens, held_out, off(units), watch) for units in random_units(writers, n_units, draws=10, seed=0)
]

rows = {}
for quantity in ("received", "loss"):
    ours = bootstrap_difference(getattr(without, quantity), getattr(base, quantity))
    drawn = [float((getattr(one, quantity) - getattr(base, quantity)).mean()) for one in rivals]
    rows[f"change of {quantity}"] = vars(ours) | {"random neurons, least": min(drawn), "most": max(drawn)}
pd.DataFrame(rows).T

# %% [markdown]
# ## Watch it go
#
# The norm of the first token after each layer. With the writers off the upper plateau is gone. With random
# neurons off (the strongest of ten draws, the broad line) nothing changes: both lines lie on each other.
#
# What would make one doubt it? Zero is a value these neurons never take at that token, so part of the
# damage may be the shock of an odd value: `mechlab run massive-activations` also sets the entries to their
# own *mean*, and finds that then hardly anything happens. And "the model needs a sink" is not shown: it
# needs *this* constant, which it was trained with.

# %%
most = max(rivals, key=lambda one: float(np.abs(one.norms - base.norms).mean()))
curves = {"random neurons off": most, "writers off": without, "as it is": base}
frame = pd.concat(
    [
        pd.DataFrame({"layer": range(n_layers), "norm": one.norms.mean(axis=0), "run": name})
        for name, one in curves.items()
    ]
)
figure = lines(
    frame,
    "layer",
    "norm",
    "run",
    x_title="layer",
    y_title="norm of the residual stream, first token",
    log_y=True,
)
figure.update_traces(line_width=9, opacity=0.4, selector={"name": "random neurons off"})
