"""The float64 truth: equal to double() where that is right, better where it is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.errors import ExportError
from opdf_compile.graph.tracing import trace
from opdf_compile.io.evidence.retype import default_dtype
from opdf_compile.io.evidence.truth import Truth
from opdf_compile.io.torchvision_shim import prepare_torchvision


def truth_of(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    return Truth(trace(model, args, kwargs, dynamic=False).programs["eval"])(args, kwargs)


def test_plain_model_equals_its_double() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(144, 5)
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    (found,) = truth_of(model, x)
    assert found.dtype == torch.float64
    assert torch.equal(found, copy.deepcopy(model).double()(x.double()))
    assert next(model.parameters()).dtype == torch.float32


class Casts(nn.Module):
    """Every way in which a graph names or implies float32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4))
        self.plain = torch.rand(4)

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        y = x.to(torch.float32) * self.weight.float() + torch.arange(4, dtype=torch.float32) / 3
        y = y + torch.full((4,), 0.1) + torch.ones(4) / 3 + n / 7 + self.plain
        with torch.no_grad():
            y = y + torch.softmax(x, -1, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = y + torch.nn.functional.linear(x, torch.outer(self.weight, self.weight))
        return y.type(torch.float32)


def exact_casts(model: Casts, x: Tensor, n: Tensor) -> Tensor:
    x, weight, third = x.double(), model.weight.double(), torch.arange(4).double() / 3
    y = x * weight + third + 0.1 + torch.ones(4).double() / 3 + n.double() / 7
    y = y + model.plain.double() + torch.softmax(x, -1)
    return y + x @ torch.outer(weight, weight).T


def test_casts_factories_nested_graphs_and_autocast_are_promoted() -> None:
    model, x, n = Casts(), torch.randn(3, 4), torch.arange(4)
    (found,) = truth_of(model, x, n)
    wanted = exact_casts(model, x, n)
    assert (found - wanted).abs().max() < 1e-14
    # The wrong answers that this test must tell apart: double() and the model itself.
    assert (copy.deepcopy(model).double()(x.double(), n) - wanted).abs().max() > 1e-9
    assert (model(x, n) - wanted).abs().max() > 1e-9


def test_integers_and_booleans_stay() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x > 0, x.argmax(-1), x.to(torch.int32)

    found = truth_of(Both(), torch.randn(2, 3))
    assert [tensor.dtype for tensor in found] == [torch.bool, torch.int64, torch.int32]


def test_bits_of_a_float_are_refused() -> None:
    class Bits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(torch.int32) + 1

    with pytest.raises(ExportError, match="reads the bits of a tensor under another dtype"):
        truth_of(Bits(), torch.randn(2, 3))


def test_default_dtype_comes_back_after_an_error() -> None:
    with pytest.raises(RuntimeError), default_dtype(torch.float64):
        raise RuntimeError
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.slow
def test_llama_with_its_hard_coded_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_torchvision()
    import transformers
    from transformers.models.llama import modeling_llama

    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    ids = torch.randint(0, 50, (2, 7))
    found = truth_of(model, input_ids=ids)[0]
    doubled = copy.deepcopy(model).double()
    naive = doubled(input_ids=ids).logits

    def exact_norm(self: Any, hidden: Tensor) -> Tensor:
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (hidden * scale)

    # The model's own code with its two hard-coded casts taken out by hand is the oracle.
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", exact_norm)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    exact = doubled(input_ids=ids).logits
    assert (found - exact).abs().max() < 1e-12
    assert (naive - exact).abs().max() > 1e-8
