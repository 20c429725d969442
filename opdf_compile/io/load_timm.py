"""`timm:NAME?num_classes=10`: a model of timm with random weights and an example image batch."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import nn

from opdf_compile.errors import InputError
from opdf_compile.io.load_callable import parse_query
from opdf_compile.io.loaded import LoadedModel, first_line, fixed_randomness
from opdf_compile.io.torchvision_shim import prepare_torchvision


def load_timm(spec: str) -> LoadedModel:
    """Build a timm model; nothing is downloaded unless `pretrained=True` is among the arguments.

    Raises:
        InputError: timm is not installed, has no such model, or refuses the arguments.
    """
    name, _, query = spec.removeprefix("timm:").partition("?")
    arguments = parse_query(query, spec)
    timm = _timm(spec)
    _check_name(timm, name, spec)
    with fixed_randomness():
        try:
            model = timm.create_model(name, **arguments)
        except Exception as error:  # timm passes arguments to constructors of every kind.
            raise InputError(
                f"{spec} cannot be built ({first_line(error)}); correct its arguments"
            ) from error
    shape = _input_size(model, arguments)
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return LoadedModel(model, (example,), name=name, kind="timm")


def _timm(spec: str) -> Any:
    prepare_torchvision()
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"{spec} needs timm, which cannot be imported ({first_line(error)}); run pip install "
            "'opdf-compile[zoo]'"
        ) from error
    return timm


def _check_name(timm: Any, name: str, spec: str) -> None:
    if timm.is_model(name):
        return
    close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
    raise InputError(f"{spec} names no model of timm {timm.__version__}; {hint}")


def _input_size(model: nn.Module, arguments: dict[str, Any]) -> tuple[int, ...]:
    """(channels, height, width) of the model's own configuration, changed by the arguments."""
    config: Any = getattr(model, "default_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    size = arguments.get("img_size", (height, width))
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(arguments.get("in_chans", channels)), int(height), int(width)
