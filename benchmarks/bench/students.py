"""The students that are measured, with a batch and a loss each.

bert    2 layers of BERT-base (hidden 768, 12 heads, FFN 3072), random weights, batch 32 x 128
resnet  ResNet-18 of timm, random weights, batch 32 x 3 x 64 x 64
resnet32  the same at batch 32 x 3 x 32 x 32, under the plan that `opdf.plan` makes by itself
llama   one LLaMA-shaped block: RMSNorm, grouped-query attention with rotary positions, SwiGLU;
        hidden 1024, FFN 2816, 16 heads, 4 of them for keys and values, batch 8 x 512
mlp     three Linear layers, 64-256-256-10, with ReLU between, batch 64
mobilenet  MobileNetV3-small of timm, random weights, batch 16 x 3 x 64 x 64
vit     ViT-tiny of timm (patch 16), random weights, batch 8 x 3 x 224 x 224
tiny    a network of two small layers, for the tests
stackN  N residual Linear layers of width 64 (stack10, stack1000, any number), batch 16 x 64

The loss is the mean squared distance to a fixed random target, as in distillation. A loss without
a target (the mean square of a normalised output, say) is constant, and its gradients of nothing but
rounding errors run through slow subnormal arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.llama import Block


@dataclass(frozen=True)
class Student:
    """A model with the batch that it is trained on.

    Attributes:
        name: What `--models` calls it.
        model: In training mode, on the device.
        args: Positional inputs of the batch.
        kwargs: Keyword inputs of the batch.
        cores: Cores per weight unless `--cores` says otherwise; None for the default plan.
        target: What the first output should be.
    """

    name: str
    model: nn.Module
    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    cores: int | None
    target: Tensor

    def loss(self, model: nn.Module) -> Tensor:
        """The loss of a model of this kind on the batch."""
        return F.mse_loss(first_output(model(*self.args, **self.kwargs)), self.target)


def first_output(output: Any) -> Tensor:
    """The first tensor that a model returns."""
    if isinstance(output, Tensor):
        return output
    found: Tensor = next(iter(output.values()))
    return found


def student(name: str, device: torch.device, seed: int = 0) -> Student:
    """Build a student.

    Args:
        name: One of `NAMES`, or what `stack_of` says.
        device: Where it and its batch live.
        seed: Fixes weights, batch and target.
    """
    torch.manual_seed(seed)
    build = _BUILDERS.get(name) or partial(_stack, int(name.removeprefix(_STACK)))
    model, args, kwargs, cores = build()
    model = model.to(device).train()
    args = tuple(value.to(device) for value in args)
    kwargs = {key: value.to(device) for key, value in kwargs.items()}
    with torch.no_grad():
        target = torch.randn_like(first_output(model(*args, **kwargs)))
    return Student(name, model, args, kwargs, cores, target)


def stack_of(layers: int) -> str:
    """The name of the student of so many equal Linear layers."""
    return f"{_STACK}{layers}"


def bert(layers: int) -> nn.Module:
    """BERT-base with random weights, so many layers and no pooler."""
    return bert_of(layers, hidden=768)


def bert_of(layers: int, *, hidden: int) -> nn.Module:
    """BERT with random weights and no pooler; 64 features per head, as BERT-base has.

    Args:
        layers: How many.
        hidden: Features; 768 gives BERT-base, less also a small vocabulary.
    """
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    from transformers import BertConfig, BertModel

    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        vocab_size=30522 if hidden == 768 else 1000,
    )
    model: nn.Module = BertModel(config, add_pooling_layer=False)
    return model


_Parts = tuple[nn.Module, tuple[Tensor, ...], dict[str, Tensor], int | None]


def _bert() -> _Parts:
    ids = torch.randint(0, 30522, (32, 128))
    return bert(2), (), {"input_ids": ids}, 5


def _resnet() -> _Parts:
    return _of_timm("resnet18", (32, 3, 64, 64), 3)


def _resnet32() -> _Parts:
    return _of_timm("resnet18", (32, 3, 32, 32), None)


def _mobilenet() -> _Parts:
    return _of_timm("mobilenetv3_small_100", (16, 3, 64, 64), 3)


def _vit() -> _Parts:
    return _of_timm("vit_tiny_patch16_224", (8, 3, 224, 224), 3)


def _of_timm(name: str, batch: tuple[int, ...], cores: int | None) -> _Parts:
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    import timm

    return timm.create_model(name), (torch.randn(*batch),), {}, cores


def _mlp() -> _Parts:
    layers = (nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return nn.Sequential(*layers), (torch.randn(64, 64),), {}, 3


def _llama() -> _Parts:
    return Block(1024, 2816, heads=16, kv_heads=4), (torch.randn(8, 512, 1024),), {}, 3


def _tiny() -> _Parts:
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 48))
    return model, (torch.randn(64, 48),), {}, 3


class _Residual(nn.Module):
    """x + f(x) / N, N times: without the x a thousand layers would hand on subnormal numbers."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x) / len(self.layers)
        return x


def _stack(layers: int) -> _Parts:
    return _Residual(layers), (torch.randn(16, 64),), {}, 3


_STACK = "stack"
_BUILDERS: dict[str, Callable[[], _Parts]] = {
    "bert": _bert,
    "resnet": _resnet,
    "resnet32": _resnet32,
    "llama": _llama,
    "mlp": _mlp,
    "mobilenet": _mobilenet,
    "vit": _vit,
    "tiny": _tiny,
}
NAMES = tuple(_BUILDERS)
DEFAULT = ("bert", "resnet", "llama")
