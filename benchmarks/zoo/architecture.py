"""One architecture of the zoo: how it is built, and what it is fed with."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from opdf_compile.io.torchvision_shim import prepare_torchvision

Library = Literal["timm", "transformers"]
Inputs = dict[str, Any]
SEED = 0


@dataclass(frozen=True)
class Architecture:
    """A model with a small configuration and random weights.

    Attributes:
        library: Where it comes from.
        short: Its name there; timm's own, or the folder of transformers.
        model: The class that is built; where it is empty, timm's own function of that name.
        inputs: Makes the inputs for a batch size, from the architecture itself.
        options: Arguments of timm's constructor, or of the configuration.
        size: Height and width of the image; samples of a sound; tokens of a text.
    """

    library: Library
    short: str
    inputs: Callable[[Architecture, int], Inputs]
    model: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0

    @property
    def name(self) -> str:
        """The library and the name there: "timm/resnet18"."""
        return f"{self.library}/{self.short}"

    def build(self) -> nn.Module:
        """The model in training mode; equal weights each time."""
        prepare_torchvision()
        random.seed(SEED)
        torch.manual_seed(SEED)
        made = self._timm() if self.library == "timm" else self._transformers()
        return made.train()

    def example(self, batch: int) -> Inputs:
        """Keyword inputs for a batch; equal ones each time."""
        torch.manual_seed(SEED + batch)
        return self.inputs(self, batch)

    def _timm(self) -> nn.Module:
        import timm

        options = {name: resolve(value) for name, value in self.options.items()}
        made = resolve(f"@{self.model}") if self.model else timm.create_model
        model: nn.Module = made(**options) if self.model else made(self.short, **options)
        return model

    def _transformers(self) -> nn.Module:
        library = importlib.import_module("transformers")
        made = getattr(library, self.model)
        config = made.config_class(**{name: resolve(v) for name, v in self.options.items()})
        # As `hf:DIR` does: a cache of keys and values has no use in training.
        if getattr(config, "use_cache", None):
            config.use_cache = False
        model: nn.Module = made(config)
        return model


def resolve(value: Any) -> Any:
    """A copy of an option: "@package.name" becomes the object of that name.

    A mapping with the key "@" becomes a call of the object named there with the other items.
    """
    if isinstance(value, str) and value.startswith("@"):
        module, _, name = value[1:].rpartition(".")
        return getattr(importlib.import_module(module), name)
    if isinstance(value, list | tuple):
        return type(value)(resolve(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    items = {name: resolve(item) for name, item in value.items() if name != "@"}
    return resolve(f"@{value['@']}")(**items) if "@" in value else items


def images(architecture: Architecture, batch: int) -> dict[str, Tensor]:
    """A batch of images as timm takes it."""
    return {"x": torch.randn(batch, 3, architecture.size, architecture.size)}
