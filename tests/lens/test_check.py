"""The parity report holds on sound models, and each bounded line can fail."""

import pytest
import torch

from mechlab.lens import check
from mechlab.lens.lens import Lens
from mechlab.models import tiny


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "olmo2", "gpt_oss", "qwen2_moe"])
def test_sound_models_pass(family: str) -> None:
    seen: list[int] = []
    found = check.parity(Lens(tiny(family)), lambda _label, done, _total: seen.append(done))
    assert [line.name for line in found if line.ok is False] == []
    assert next(line for line in found if "Hugging Face eager" in line.name).value == 0.0
    assert seen == sorted(seen)
    moved = {line.name.split()[1] for line in found if "moves the logits" in line.name}
    assert {"L1.resid_pre", "L1.q", "L1.z", "L1.pattern"} <= moved


def test_a_lens_that_reads_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = Lens(tiny("llama"))
    failed = lambda: [line.name for line in check.parity(lens) if line.ok is False]  # noqa: E731
    assert failed() == []
    real = lens.run

    def off(prompts: object, *args: object, **kwargs: object):
        run = real(prompts, *args, **kwargs)  # pyright: ignore
        for at, activation in run.activations.items():
            if at.kind in ("pattern", "attn_out"):
                activation.mul_(1.01)
        return run

    monkeypatch.setattr(lens, "run", off)
    assert any("rows sum to 1" in name for name in failed())
    assert any("final residual stream" in name for name in failed())


def test_a_different_attention_function_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from mechlab.lens import attention

    lens = Lens(tiny("llama"))
    real = attention._plain
    monkeypatch.setattr(attention, "_plain", lambda *args: real(*args) * (1 + 1e-6))
    found = [line for line in check.parity(lens) if "every pattern read" in line.name]
    assert found[0].ok is False
    assert found[0].value > 0


def test_bounds_widen_with_the_dtype() -> None:
    model = tiny("llama")
    model.hf.to(torch.bfloat16)
    found = check.parity(Lens(model))
    assert [line.name for line in found if line.ok is False] == []
