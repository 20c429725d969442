"""`timm:NAME?num_classes=10`: a model of timm with random weights and an example image batch.

A folder that timm saved (`hf:DIR`, with timm's own config.json) is built the same way from the
arguments in it, and gets the folder's weights.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.errors import ArtefactError, InputError, error_line
from opdf_compile.extras import requirements_of
from opdf_compile.files import parse_query
from opdf_compile.io.models.loaded import LoadedModel, fixed_randomness
from opdf_compile.io.models.weight_loading import load_weights
from opdf_compile.io.torchvision_shim import prepare_torchvision
from opdf_compile.spelling import nearest

# Arguments of timm.create_model that name files or the network, or change what it returns.
_NOT_FROM_FILES = frozenset(
    """
    model_name pretrained pretrained_cfg pretrained_cfg_overlay checkpoint_path cache_dir
    scriptable exportable no_jit features_only
    """.split()  # noqa: SIM905
)
_WORD = re.compile(r"[A-Za-z0-9_]{0,40}")


def load_timm(spec: str) -> LoadedModel:
    """Build a timm model; nothing is downloaded unless `pretrained=True` is among the arguments.

    Raises:
        InputError: timm is not installed, has no such model, or refuses the arguments.
    """
    name, _, query = spec.removeprefix("timm:").partition("?")
    arguments = parse_query(query, spec)
    model = _build(name, arguments, spec)
    return LoadedModel(model, (_example(model, arguments),), name=name, kind="timm")


def is_timm(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is timm's own: it has an architecture and no model type."""
    return "architecture" in config and "model_type" not in config


def load_timm_folder(
    folder: Path, config: Mapping[str, Any], spec: str, *, trust_pickle: bool = False
) -> LoadedModel:
    """Load a folder as timm saves it for the Hugging Face hub: config.json and weights.

    Args:
        folder: The folder.
        config: Its config.json, screened.
        spec: The MODEL argument, for sentences.
        trust_pickle: Accept `pytorch_model.bin`, which can run code.

    Raises:
        InputError: timm is not installed, has no such model, or refuses the arguments.
        ArtefactError: An argument is no plain value, or the weights are not the model's.
    """
    name = config["architecture"]
    arguments = _plain_arguments(config, spec)
    if not isinstance(name, str):
        raise ArtefactError(
            f"{spec}: the architecture in config.json is a {type(name).__name__}, wanted the name "
            "of a timm model; save the model again"
        )
    model = _build(name, arguments, spec)
    notes = load_weights(model, folder, trust_pickle=trust_pickle)
    return LoadedModel(
        model,
        (_example(model, arguments),),
        name=folder.resolve().name,
        kind="timm",
        notes=notes,
        folder=folder,
        extra_files=(folder / "config.json",),
    )


def _plain_arguments(config: Mapping[str, Any], spec: str) -> dict[str, Any]:
    """The arguments of the model's constructor, none of which may name a file."""
    given = config.get("model_args") or {}
    if not isinstance(given, dict):
        given = {"model_args": given}
    arguments = dict(given)
    for key in ("num_classes", "global_pool"):
        if config.get(key) is not None:
            arguments.setdefault(key, config[key])
    for key, value in arguments.items():
        if key in _NOT_FROM_FILES or not key.isidentifier() or not _is_plain(value):
            raise ArtefactError(
                f"{spec} is refused: in config.json, the argument {key[:60]!r} is no plain value "
                f"({str(value)[:60]!r}); remove it"
            )
    return arguments


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= 64 and all(_is_plain(part) for part in value)
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return value is None or isinstance(value, bool | int | float)


def _build(name: str, arguments: dict[str, Any], spec: str) -> nn.Module:
    timm = zoo_package("timm", spec)
    _check_name(timm, name, spec)
    with fixed_randomness():
        try:
            model: nn.Module = timm.create_model(name, **arguments)
        except Exception as error:  # timm passes arguments to constructors of every kind.
            raise InputError(
                f"{spec} cannot be built ({error_line(error)}); correct its arguments"
            ) from error
    return model


def _example(model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    shape = _input_size(model, arguments)
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def zoo_package(name: str, spec: str) -> Any:
    """Import timm or transformers, which only some MODEL arguments need.

    Raises:
        InputError: It cannot be imported.
    """
    prepare_torchvision()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{spec} needs {name}, which cannot be imported ({error_line(error)}); run pip install "
            f"{requirements_of('zoo')}"
        ) from error


def _check_name(timm: Any, name: str, spec: str) -> None:
    if timm.is_model(name):
        return
    close = nearest(name, timm.list_models(), most=3)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
    raise InputError(f"{spec} names no model of timm {timm.__version__}; {hint}")


def _input_size(model: nn.Module, arguments: dict[str, Any]) -> tuple[int, ...]:
    """(channels, height, width) of the model's own configuration, changed by the arguments."""
    config: Any = getattr(model, "default_cfg", None) or {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    size = arguments.get("img_size", (height, width))
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return int(arguments.get("in_chans", channels)), int(height), int(width)
