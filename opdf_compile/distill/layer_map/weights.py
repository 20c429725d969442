"""The weights that stand for a model's layers, one or a few for each module that has parameters."""

from __future__ import annotations

from collections.abc import Container, Iterator

from torch import nn
from torch.nn.parameter import Parameter


def main_weights(module: nn.Module) -> dict[str, Parameter]:
    """Matrices and kernels; of a module that has none (a norm, a layer scale) its first parameter.

    Biases go along with the weight of their module, so they are not named. A Parameter with several
    names has the first.
    """
    names = {id(parameter): name for name, parameter in reversed(list(module.named_parameters()))}
    chosen: dict[str, Parameter] = {}
    for path, part in module.named_modules():
        own = dict(part.named_parameters(path, recurse=False))
        own = {name: p for name, p in own.items() if names.get(id(p)) == name}
        weights = {name: p for name, p in own.items() if p.ndim > 1} or dict(list(own.items())[:1])
        chosen |= weights
    return chosen


def holder_of(name: str) -> str:
    """The dotted path of the module that holds a parameter."""
    return name.rpartition(".")[0]


def row_prefixes(name: str) -> Iterator[str]:
    """The paths that have numbered parts: "encoder.layer" of "encoder.layer.3.weight"."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            yield ".".join(parts[:place])


def innermost(path: str, paths: Container[str]) -> str | None:
    """The longest of some paths that a path is, or is inside of."""
    parts = path.split(".")
    candidates = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((candidate for candidate in candidates if candidate in paths), None)
