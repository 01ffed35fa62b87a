"""Products by oneDNN are those of PyTorch up to rounding, forward and backward, and taken only where they can be."""

import pytest
import torch
from torch import nn

from mechlab.lens.products import OneDnn, available, product
from mechlab.models import FAMILIES, tiny

ONEDNN = pytest.mark.skipif(not available(), reason="this PyTorch has no oneDNN")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of what goes through oneDNN from now on."""
    from mechlab.lens import products

    seen: list[torch.Size] = []
    real = products._by_onednn

    def by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append(x.shape)
        return real(x, weight, bias)

    monkeypatch.setattr(products, "_by_onednn", by_onednn)
    return seen


@ONEDNN
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(9, 24), (2, 5, 24), (1, 3, 4, 24)])
def test_forward_and_backward(shape: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    x = torch.randn(shape, requires_grad=True)
    wide = layer.double()(x.double())
    (slope,) = torch.autograd.grad(wide.square().sum(), x)
    layer.float()
    with OneDnn():
        ours = layer(x)
        (own,) = torch.autograd.grad(ours.square().sum(), x)
    assert torch.allclose(ours.double(), wide, atol=1e-5)
    assert torch.allclose(own, slope, rtol=1e-4, atol=1e-4)
    assert seen == [x.shape, ours.shape]  # the way back too


@ONEDNN
def test_what_reads_a_slice_or_a_transposed_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    x, weight = torch.randn(6, 7, 24)[:4, 2:], torch.randn(24, 40)
    assert torch.allclose(product(x, weight.t()), x @ weight, atol=1e-5)
    with OneDnn():
        conv1d = torch.addmm(torch.ones(40), x.reshape(-1, 24), weight)
    assert torch.allclose(conv1d, 1 + (x @ weight).flatten(0, 1), atol=1e-5)
    assert len(seen) == 2


@ONEDNN
def test_what_cannot_go_there_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    frozen = nn.Linear(24, 40).requires_grad_(False)
    with OneDnn():
        few = frozen(torch.ones(7, 24))
        frozen.double()(torch.ones(9, 24, dtype=torch.float64))
        trained = nn.Linear(24, 40)
        trained(torch.ones(9, 24)).sum().backward()
        with torch.no_grad():
            assert not seen
            trained(torch.ones(9, 24))
    assert seen == [(9, 24)]
    assert trained.weight.grad is not None
    frozen.float()
    assert torch.equal(few, frozen(torch.ones(7, 24)))
    frozen(torch.ones(9, 24))
    assert len(seen) == 1  # outside, nothing changes


def test_without_onednn_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechlab.lens.products.available", lambda: False)
    layer, x = nn.Linear(24, 40), torch.randn(9, 24)
    with OneDnn(), torch.no_grad():
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@ONEDNN
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_through_it(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(family).hf
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        seen = counted(monkeypatch)
        with OneDnn():
            ours = model(input_ids=ids).logits
    assert (ours - plain).abs().max() <= 1e-4
    assert len(seen) >= 3 * 4  # queries, keys, values (joint or apart), output and MLP of three layers
