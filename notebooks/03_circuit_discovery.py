# %% [markdown]
# # 3. Discovering circuits
#
# A circuit is a small set of edges between heads, MLPs, input and logits that does a task while everything
# else is ablated. A discovery method scores the edges; a circuit is a cut through the scores. Both can fool
# you. So first a method is tried where the truth is known, then on a real model, and judged there on
# prompts that it has not seen, beside random circuits.

# %%
import pandas as pd
import torch

from circuits.curve import curve
from circuits.drawing import circuit_layout
from circuits.evaluate import run_circuits
from circuits.methods.catalogue import METHODS, method
from circuits.random_circuits import random_circuits
from circuits.tasks.catalogue import make_task
from circuits.wiring import Wiring
from mechlab.lens import Lens
from mechlab.models import PLANTED_INDUCTION_EDGES, load, planted_induction
from mechlab.patching import Task
from mechlab.results import bootstrap_ratio
from mechlab.views import circuit_drawing, faithfulness_curve

pd.DataFrame([(one.name, one.line) for one in METHODS], columns=["method", "how it works"])

# %% [markdown]
# ## Where the truth is known
#
# This transformer was written by hand: L0H1 looks at the previous token, L1H2 uses that to continue a
# repeated sequence, and every other part writes zero. Five edges carry the behaviour.
#
# An edge can only be found if the two prompts of a pair differ in what it carries. After `A B C D A` comes
# `B`; there are three ways to make that `D`, and each concerns other edges: change what is copied (value),
# what is looked for (query), or where it is found (key). A **task** is just two lists of prompts, the
# answers and the foils.

# %%
planted = Lens(planted_induction())
names = "Mary John Tom James Anna Paul Kate Mark".split()
corruptions = {
    "value": "{p} {A} {D} {C} {B} {A}",
    "key": "{p} {C} {B} {A} {D} {A}",
    "query": "{p} {A} {B} {C} {D} {C}",
}
rows = [
    dict(zip("pABCD", [*names, *names][i : i + 5], strict=True)) | {"how": how}
    for how in corruptions
    for i in range(8)
]
clean = planted.tokens(["{p} {A} {B} {C} {D} {A}".format(**row) for row in rows])
corrupted = planted.tokens([corruptions[row["how"]].format(**row) for row in rows])
answers, foils = clean.ids[:, 2], clean.ids[:, 4]
toy = Task("induction", clean, corrupted, answers, foils, groups=tuple(row["how"] for row in rows))
clean.show().split("\n")[0], corrupted.show().split("\n")[0]

# %% [markdown]
# Two methods. *exact-edges* patches every edge, one at a time, and measures. *EAP-IG* guesses: what an edge
# sends, times the gradient where it arrives, averaged on the way from the corrupted to the clean prompt; a
# few backward passes score all edges at once. Which of them has the five true edges on top?

# %%
wiring = Wiring.of(planted)
truth = sorted(PLANTED_INDUCTION_EDGES)
table = pd.DataFrame(index=truth)
for name in ("exact-edges", "eap-ig"):
    found = method(name).score(wiring, toy, method(name).settings())
    first_five = found.top(len(truth), "absolute", connected=False).edge_names
    table[f"{name}: score (logits)"] = [float(found.values[wiring.graph.index(edge)]) for edge in truth]
    table[f"{name}: in the first five"] = [edge in first_five for edge in truth]
table

# %% [markdown]
# Measuring finds all five. EAP-IG sees the edges that carry *what* is copied, and hardly those that decide
# *where* the head looks: its attention is saturated, and a flat softmax has no gradient to tell. That is a
# known blind spot of all gradient methods. Keep it in mind for what follows.

# %% [markdown]
# ## A real model
#
# SmolLM2 has 70,651 edges. The task is *greater-than*: "The war lasted from the year 1732 to the year 17"
# must go on with a number above 32. Edges are scored on eight pairs of prompts; others are kept for
# judging.

# %%
lens = Lens(load())
wiring = Wiring.of(lens)
discovery = make_task(lens, "greater-than", 8, split="discovery")
evaluation = make_task(lens, "greater-than", 10, split="evaluation")
eap_ig = method("eap-ig")
scores = eap_ig.score(wiring, discovery, eap_ig.settings())
random = method("random").score(wiring, discovery, method("random").settings())
f"{scores.graph.n_edges} edges in {scores.seconds:.0f} s"

# %% [markdown]
# ## How small can it be?
#
# Faithfulness: what share of the behaviour do the best edges keep, with all others carrying the corrupted
# run? 1 is the whole model, 0 the ablated one. Bands are 95 % intervals over the held-out prompts. The
# random ranking is the control: a tenth of all edges, drawn blindly, should keep nothing.

# %%
sizes = (0.002, 0.005, 0.02, 0.1, 1.0)
curves = {
    name: curve(wiring, evaluation, given, ranking="absolute", sizes=sizes)
    for name, given in {"EAP-IG": scores, "random": random}.items()
}
frames = [one.frame().assign(method=name) for name, one in curves.items()]
faithfulness_curve(pd.concat(frames), "What circuits of growing size keep of greater-than")

# %% [markdown]
# ## Alone, taken out, and random ones like it
#
# Take 1 % of the edges. *Alone* they must keep the behaviour; *taken out* of the whole model they must take
# it along. Ten random circuits of the same shape (into each layer's queries, keys, values and MLP as many
# edges as in ours) say what any circuit of that shape does.

# %%
circuit = scores.top(round(0.01 * scores.graph.n_edges), "absolute")
rivals = random_circuits(circuit, draws=10)
real = wiring.graph.real
masks = {"alone": circuit.edges, "taken out": real & ~circuit.edges}
masks |= {f"random {i} taken out": real & ~rival for i, rival in enumerate(rivals)}
kept = run_circuits(wiring, evaluation, torch.stack([torch.zeros_like(real), real, *masks.values()]))
empty, full, rest = kept[0], kept[1], kept[2:]
shares = [vars(bootstrap_ratio(values - empty, full - empty)) for values in rest]
table = pd.DataFrame(shares, index=list(masks))
table["ablates input->m0"] = [not bool(mask[wiring.graph.index("input->m0")]) for mask in masks.values()]
table

# %% [markdown]
# *Alone*, a hundredth of the edges keeps well over half. *Taken out*, it takes everything. But see what a
# random circuit can do: most leave the behaviour standing, and the one that happens to cut `input->m0`
# kills it as surely as ours does. Every prompt needs that edge. So "the model fails without it" says little
# about what a circuit is *for*.

# %% [markdown]
# ## The circuit
#
# Input at the bottom, logits on top, blue edges help, red ones hinder, wide ones weigh most. Keys are
# dashed, values dotted. Only the strongest edges are drawn.
#
# What would make one doubt it? The scores are first-order guesses, and only the curve and the table
# measured anything. Edges that carry what *every* task needs are in here too: `mechlab run circuit`
# therefore takes the circuit out of other tasks as well, and often finds that it hurts them all. And a
# circuit that keeps the mean may do so by other means on single prompts.

# %%
layout = circuit_layout(circuit, max_edges=30)
circuit_drawing(
    layout.nodes,
    layout.edges,
    "Greater-than in SmolLM2-135M: the strongest edges",
    score_title="EAP-IG score (logits)",
    left_out=layout.left_out,
)
