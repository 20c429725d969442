"""What the properties compare with: code that shares nothing with the package.

products    the Parameters that a run of the module multiplies with something that an input made
snapshot    every bit, flag and object of a module that a caller could see change
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# The operands of a product, by position. A dispatch mode sees linear, matmul, einsum and attention
# as these.
PRODUCTS: dict[Any, tuple[int, int]] = {
    **dict.fromkeys((aten.mm, aten.bmm, aten.mv, aten.dot, aten.convolution), (0, 1)),
    **dict.fromkeys((aten.addmm, aten.addmv, aten.baddbmm), (1, 2)),
    **dict.fromkeys((aten.linear, aten.matmul, aten._grouped_mm), (0, 1)),
}


class Products(TorchDispatchMode):
    """Sees which Parameters meet a value that depends on an input.

    Attributes:
        met: Ids of Parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.met: set[int] = set()
        self._made_of = {id(p): frozenset([id(p)]) for p in parameters}
        self._fed = {id(value) for value in inputs}
        self._alive: list[Any] = [*parameters, *inputs]  # An id is unique while its object lives.

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        fed = any(id(v) in self._fed for v in read)
        made_of = frozenset().union(*(self._made_of.get(id(v), frozenset()) for v in read))
        places = PRODUCTS.get(func.overloadpacket)
        if places is not None:
            operands = [args[place] for place in places]
            if any(id(v) in self._fed for v in operands):
                for value in operands:
                    self.met |= self._made_of.get(id(value), frozenset())
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and fed:
                self._fed.add(id(value))
            elif isinstance(value, Tensor) and id(value) not in self._made_of:
                self._made_of[id(value)] = made_of
            self._alive.append(value)
        return result


def products(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[str]:
    """First names of the matrices that some phase of a module multiplies with its input."""
    found: set[str] = set()
    for phase in ("train", "eval"):
        run = in_phase(model, phase)
        names = {id(p): name for name, p in reversed(list(run.named_parameters()))}
        inputs = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        with Products(list(run.parameters()), inputs) as seen:
            run(*args, **kwargs)
        by_id = {id(p): p for p in run.parameters()}
        found |= {names[key] for key in seen.met if by_id[key].ndim > 1}
    return found


def in_phase(model: nn.Module, phase: str) -> nn.Module:
    """A copy of a module in a phase; one in training keeps the flags of its submodules."""
    run = copy.deepcopy(model)
    if phase == "eval" or not run.training:
        run.train(phase == "train")
    return run


def layer_weights(model: nn.Module) -> set[str]:
    """First names of the Parameters that Linear and Conv modules hold."""
    names = {id(p): name for name, p in model.named_parameters()}
    held = (nn.Linear, nn.modules.conv._ConvNd)
    return {
        names[id(module._parameters["weight"])]
        for module in model.modules()
        if isinstance(module, held) and "weight" in module._parameters
    }


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything of a module that must not change under the caller's hands."""
    named = dict(tensors(model))
    return {
        "bits": {name: value.detach().clone() for name, value in named.items()},
        "objects": {name: id(value) for name, value in named.items()},
        "gradients": {name: value.requires_grad for name, value in named.items()},
        "flags": [(name, module.training) for name, module in model.named_modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All names of all Parameters and buffers."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal, NaN to NaN, in shape and dtype too."""
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and bool(
            torch.equal(first, second) or torch.equal(first.nan_to_num(7.5), second.nan_to_num(7.5))
        )
    )


def sensitivity(
    model: nn.Module, phase: str, args: tuple[Any, ...], kwargs: dict[str, Any], delta: float
) -> list[Tensor]:
    """How far each output moves when every weight is off by `delta` of its root mean square.

    The largest of three draws, for each output one number, in float64.
    """
    base = outputs(in_phase(model, phase), args, kwargs)
    moved = [torch.zeros((), dtype=torch.float64) for _ in base]
    for draw in range(3):
        run = in_phase(model, phase)
        generator = torch.Generator().manual_seed(draw)
        for parameter in run.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            size = parameter.detach().double().square().mean().sqrt().nan_to_num()
            parameter.data += (noise * size * delta).to(parameter.dtype)
        for place, value in enumerate(outputs(run, args, kwargs)):
            difference = (value - base[place]).abs()
            moved[place] = (
                torch.maximum(moved[place], difference.amax()) if value.numel() else moved[place]
            )
    return moved


def outputs(run: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The floating-point outputs of one run with a fixed seed, in float64."""
    torch.manual_seed(2)
    return [
        value.detach().double()
        for value in pytree.tree_leaves(run(*args, **kwargs))
        if isinstance(value, Tensor)
    ]
