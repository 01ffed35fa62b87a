# %% [markdown]
# # 10. Bring your own model, task, method
#
# Nothing here is tied to the models, prompts and methods that come with it. This notebook loads a model
# from a folder, checks it, writes a task as a small file, and a discovery method as one function. Then the
# method is judged like any other, and does not have to win.

# %%
import json
import tempfile
from pathlib import Path

import pandas as pd
import torch

from circuits.curve import area_difference, curve
from circuits.methods.catalogue import method
from circuits.methods.exact_nodes import node_sites
from circuits.methods.method import Found, Method, MethodSettings
from circuits.tasks.pairs import load_pairs
from circuits.wiring import Wiring
from mechlab.lens import Lens
from mechlab.lens.check import parity
from mechlab.models import load, tiny
from mechlab.results import bootstrap_mean, metric
from mechlab.views import faithfulness_curve

folder = Path(tempfile.mkdtemp(prefix="mechlab-"))

# %% [markdown]
# ## A model
#
# A hub id, a folder, a GGUF file: `load` takes them all. Here a tiny random Qwen3 stands for the model you
# trained: saved as Hugging Face files, loaded back.
#
# Before you believe a number about it, ask whether the lens sees the model as Hugging Face runs it: the
# same logits to the bit with all patterns read, parts that sum to the whole, edits that do what they say.
# `mechlab check MODEL` prints the same table.

# %%
mine = tiny("qwen3")
mine.hf.save_pretrained(folder / "my-model")
mine.tokenizer.save_pretrained(folder / "my-model")
mine = Lens(load(str(folder / "my-model")))
pd.DataFrame([vars(check) for check in parity(mine)])

# %% [markdown]
# ## A task
#
# Pairs of prompts in a JSONL or CSV file: clean, corrupted, answer, foil. Both prompts need the same number
# of tokens. Pairs that this tokenizer cannot express are left out, and `dropped` says why.
#
# The question: does the verb agree with *key* or with *cabinets*? The nearer noun is there to mislead.

# %%
nouns = [
    ("key", "keys"),
    ("boy", "boys"),
    ("dog", "dogs"),
    ("friend", "friends"),
    ("book", "books"),
    ("car", "cars"),
    ("letter", "letters"),
    ("house", "houses"),
]
near = [("near the", "trees", "tree"), ("behind the", "doors", "door"), ("with the", "teachers", "teacher")]
pairs = [
    {
        "clean": f"The {many} {link} {one_near}",
        "corrupted": f"The {one} {link} {one_near}",
        "answer": " are",
        "foil": " is",
        "group": "plural",
    }
    for one, many in nouns
    for link, _, one_near in near
] + [
    {
        "clean": f"The {one} {link} {many_near}",
        "corrupted": f"The {many} {link} {many_near}",
        "answer": " is",
        "foil": " are",
        "group": "singular",
    }
    for one, many in nouns
    for link, many_near, _ in near
]
(folder / "agreement.jsonl").write_text("\n".join(map(json.dumps, pairs)))

lens = Lens(load())
discovery = load_pairs(lens, folder / "agreement.jsonl", 10, split="discovery")
evaluation = load_pairs(lens, folder / "agreement.jsonl", 12, split="evaluation")
print(discovery.clean.show().split("\n")[0])
print(*discovery.dropped)

# %% [markdown]
# Does the model do it at all? A circuit of something that the model cannot do explains nothing. The
# control: the answers of other prompts.

# %%
difference = metric("logit_difference")
rows = {}
for name, task in {"the task": evaluation, "answers of other prompts": evaluation.shuffled_answers()}.items():
    logits = lens.run(task.clean, logits="last").last_logits
    rows[name] = vars(bootstrap_mean(difference(logits, task.answers, task.foils)))
pd.DataFrame(rows).T

# %% [markdown]
# ## A method
#
# One function: `(wiring, task, settings, progress) -> Found`. This one is naive on purpose: a part matters
# if it *does something else* in the clean than in the corrupted run. No gradient, no patching, two forward
# passes. It is the first thing one thinks of, and many published pictures are no more than that.


# %%
def differs(wiring, task, settings, progress):
    """How far each part's activation moves between the two prompts, as a share of its size."""
    sites = node_sites(wiring)
    clean, corrupted = (
        wiring.lens.run(side, read=sites, logits="none") for side in (task.clean, task.corrupted)
    )
    scores = []
    for at in sites:
        a, b = clean[at].flatten(1), corrupted[at].flatten(1)
        scores.append(((a - b).norm(dim=1) / (a.norm(dim=1) + b.norm(dim=1))).mean())
    return Found(torch.stack(scores), forwards=2 * len(task))


OWN = Method(
    name="differs",
    title="Differs",
    paper="this notebook",
    line="How far a part's activation moves between the two prompts.",
    level="node",
    exact=False,
    settings=MethodSettings,
    run=differs,
)

# %% [markdown]
# To have it on the command line (`mechlab discover ioi --method differs`), put it in a file of its own
# under `circuits/methods/`, add a line to the list in `catalogue.py`, and a test.
#
# ## Judge it
#
# All methods meet the same held-out prompts. Faithfulness: what the best edges keep when all others carry
# the corrupted run. CMD is the area between the curve and the whole model; the difference of two methods
# has its own interval.

# %%
wiring = Wiring.of(lens)
scores = {"differs (ours)": OWN.score(wiring, discovery, MethodSettings())}
for name in ("eap", "random"):
    scores[name] = method(name).score(wiring, discovery, method(name).settings())

sizes = (0.005, 0.02, 0.1, 0.3, 1.0)
curves = {
    name: curve(wiring, evaluation, one, ranking="absolute", sizes=sizes) for name, one in scores.items()
}
rows = {
    f"ours less {name}": vars(area_difference(curves["differs (ours)"], curves[name]))
    for name in ("eap", "random")
}
pd.DataFrame(rows).T

# %% [markdown]
# ## The curves
#
# Our method lies under the random line, and the difference of their areas (the table above) straddles zero:
# to *differ* between two prompts is not to *matter*. Nearly everything differs a little, and most of it
# never reaches the answer. EAP, which weighs the same differences by a gradient, does well. Had the idea
# been tried without the random control, any point above zero would have looked like a find.
#
# What would make one doubt the picture? Twelve short prompts, one construction, one corruption. Also,
# methods that score nodes buy edges in bundles, so at small sizes they are at a disadvantage that is not
# about what they know. `mechlab run methods --set task=agreement.jsonl` runs all twelve methods on your
# file.

# %%
frames = [one.frame().assign(method=name) for name, one in curves.items()]
faithfulness_curve(pd.concat(frames), "Subject-verb agreement: our method beside two others")
