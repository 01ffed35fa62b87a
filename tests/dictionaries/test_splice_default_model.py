"""A splice on the default model, whose first position has an activation of thousands."""

import pytest
import torch
from saes import dictionary

from mechlab.lens.edit import splice
from mechlab.lens.lens import Lens
from mechlab.models import load

pytestmark = pytest.mark.default_model
AT = "L15.resid_post"
TEXTS = ["The old oak lost its leaves in October.", "She hummed an old tune."]


def test_error_and_reconstruction_make_the_activation_and_the_logits_stay():
    lens = Lens(load())
    given = dictionary(lens, "topk", AT)
    clean = lens.run(TEXTS, read=[AT])
    kept = lens.run(TEXTS, [splice(AT, "d", keep_error=True, start=0)], [AT], dictionaries={"d": given})
    assert torch.equal(kept.logits, clean.logits)
    rows = clean[AT][:, 1:][clean.tokens.mask[:, 1:]]
    decoded = given.reconstruct(rows)
    assert float((decoded + (rows - decoded) - rows).abs().max()) < 1e-4
    dropped = lens.run(TEXTS, [splice(AT, "d", keep_error=False)], dictionaries={"d": given})
    assert float((dropped.logits - clean.logits).abs().max()) > 1
