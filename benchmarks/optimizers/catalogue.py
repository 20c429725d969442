"""Which classes there are: what each package exports that is an optimizer."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

from torch.optim import Optimizer

from optimizers.needs import LEFT_OUT, NEEDS, Named, Need

# Package in the table: the module that exports its classes, and the distribution.
PACKAGES: dict[str, tuple[str, str]] = {
    "torch": ("torch.optim", "torch"),
    "pytorch_optimizer": ("pytorch_optimizer", "pytorch_optimizer"),
    "schedulefree": ("schedulefree", "schedulefree"),
    "torchao": ("torchao.optim", "torchao"),
    "bitsandbytes": ("bitsandbytes.optim", "bitsandbytes"),
    "prodigyopt": ("prodigyopt", "prodigyopt"),
    "dadaptation": ("dadaptation", "dadaptation"),
    "heavyball": ("heavyball", "heavyball"),
    "timm": ("timm.optim", "timm"),
    "transformers": ("transformers.optimization", "transformers"),
}
# Wrappers that are tried beside the names a registry lists, and classes that are no Optimizer.
_WRAPPERS = ("Lookahead", "TRAC", "OrthoGrad", "ScheduleFreeWrapper")
_SHARP = ("SAM", "WSAM", "LookSAM", "FriendlySAM")
_RATE = 1e-2
_LARGE_RATE = 0.5


@dataclass(frozen=True)
class Offer:
    """One class and how it is used.

    Attributes:
        name: `package/class`.
        kind: The class.
        need: What it is given.
    """

    name: str
    kind: Callable[..., Any]
    need: Need = Need()

    @property
    def options(self) -> dict[str, Any]:
        """The options that plain and over-parameterised form are given alike."""
        given = {key: _found(value) for key, value in self.need.options.items()}
        return given if self.need.bare or self.need.around else {**self._rate(), **given}

    def _rate(self) -> dict[str, float]:
        known = inspect.signature(self.kind).parameters.get("lr")
        if known is None:
            return {}
        usual = known.default
        free = usual is None or (isinstance(usual, (int, float)) and usual >= _LARGE_RATE)
        return {} if free else {"lr": _RATE}

    def maker(self, student: Any) -> Callable[..., Any]:
        """What makes the optimizer out of parameters or groups, and options."""
        if self.need.model == "first":
            return functools.partial(self.kind, student)
        if self.need.around is None:
            return self.kind
        inner, kind = _found(Named(self.need.around)), self.kind

        def make(params: Any, weight_decay: float = 0.0, **options: Any) -> Any:
            return kind(inner(params, lr=_RATE, weight_decay=weight_decay), **options)

        return make


def _found(value: Any) -> Any:
    if not isinstance(value, Named):
        return value
    module, _, name = value.path.partition(":")
    return getattr(importlib.import_module(module), name)


def version(package: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return metadata.version(PACKAGES[package][1])
    except metadata.PackageNotFoundError:
        return None


def offers(package: str) -> Iterator[Offer]:
    """Every class of a package that is installed."""
    module = module_of(package)
    for name, kind in _kinds(package, module):
        full = f"{package}/{name}"
        if full not in LEFT_OUT:
            yield Offer(full, kind, NEEDS.get(full, Need()))
        for variant in (v for v in NEEDS if v.startswith(f"{full}, ")):
            yield Offer(variant, kind, NEEDS[variant])


def offer(name: str) -> Offer:
    """The class of a name.

    Raises:
        KeyError: No package has it.
    """
    return {found.name: found for found in offers(name.partition("/")[0])}[name]


def module_of(package: str) -> ModuleType:
    """The module that exports a package's classes, ready for use."""
    if package in (
        "timm",
        "transformers",
    ):  # They import torchvision, which may not fit this torch.
        from opdf_compile.io.torchvision_shim import prepare_torchvision

        prepare_torchvision()
    module = importlib.import_module(PACKAGES[package][0])
    if package == "heavyball":  # Its steps are compiled for minutes otherwise.
        importlib.import_module("heavyball.utils").compile_mode = None  # type: ignore[attr-defined]
    return module


def _kinds(package: str, module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    if package == "pytorch_optimizer":
        yield from (
            (name, module.load_optimizer(name)) for name in module.get_supported_optimizers()
        )
        yield from ((name, getattr(module, name)) for name in (*_WRAPPERS, *_SHARP))
        return
    for name in sorted(vars(module)):
        kind = getattr(module, name)
        if _is_optimizer(kind) and not name.startswith("_") and kind is not Optimizer:
            yield name, kind
    if package == "schedulefree":  # No Optimizer by class, and used as one.
        yield "ScheduleFreeWrapper", module.ScheduleFreeWrapper


def _is_optimizer(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Optimizer) and "Dummy" not in kind.__name__
