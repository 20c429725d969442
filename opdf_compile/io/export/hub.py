"""What a bundle holds beside ONNX so that transformers or timm loads the folder, too."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from opdf_compile.graph import Traced

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# "org/name", as the hub has it; a relative path of one folder in another looks the same.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LARGEST_CONFIG = 16 << 20


@dataclass(frozen=True, eq=False)
class HubFiles:
    """The files of a folder that a library loads by itself.

    Attributes:
        library: "transformers" or "timm"; "onnx" where neither knows the model.
        base_model: The hub's name of the model it was made from; empty if not known.
        config: Text of a config.json; empty where there is none, or an extra file is it.
        weights: The student's tensors by its own keys; empty where no library would find them.
    """

    library: str = "onnx"
    base_model: str = ""
    config: str = ""
    weights: Mapping[str, Tensor] = field(default_factory=dict)


def hub_files(model: Any, reference: Any, extra_files: Sequence[Path]) -> HubFiles:
    """What transformers or timm needs to load the folder of a student.

    Args:
        model: The student: a module, a program, programs by name, or what `trace` returned.
        reference: The untouched student, likewise; it tells the class of one that is a program.
        extra_files: What the bundle gets; a config.json among them is the folder's.
    """
    given = next((file for file in extra_files if file.name == CONFIG), None)
    written = {} if given is None else _config_in(given)
    for source in (_source(model), _source(reference)):
        library = _library(source, written)
        # A program has no class. It is the student where it has that model's tensors.
        if not library or _state(model).keys() != _state(source).keys():
            continue
        config = "" if given is not None else _config_of(source)
        mine = any(file.name == WEIGHTS for file in extra_files)
        return HubFiles(library, _base(written, source), config, {} if mine else _state(model))
    return HubFiles()


def _source(model: Any) -> Any:
    return model.source if isinstance(model, Traced) else model


def _library(model: Any, written: Mapping[str, Any]) -> str:
    """Who builds the model again from its configuration; empty where nobody does."""
    if not isinstance(model, nn.Module):
        return ""
    # What is not imported has made no model.
    made_by = sys.modules.get("transformers.modeling_utils")
    if made_by is not None and isinstance(model, made_by.PreTrainedModel):
        own = type(model).__module__.startswith("transformers.")
        return "transformers" if own else ""
    # timm's configuration holds the arguments that its models do not keep.
    if "architecture" in written and "model_type" not in written and hasattr(model, "default_cfg"):
        return "timm"
    return ""


def _state(model: Any) -> Mapping[str, Tensor]:
    model = _source(model)
    if isinstance(model, Mapping):
        model = model["model"] if "model" in model else next(iter(model.values()))
    if isinstance(model, ExportedProgram):
        return dict(model.state_dict)
    return dict(model.state_dict()) if isinstance(model, nn.Module) else {}


def _config_of(model: Any) -> str:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    return str(config.to_json_string())


def _config_in(file: Path) -> Mapping[str, Any]:
    if file.stat().st_size > _LARGEST_CONFIG:
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # It is the user's file, and goes along as it is.
        return {}
    return found if isinstance(found, dict) else {}


def _base(written: Mapping[str, Any], model: Any) -> str:
    told = written.get("_name_or_path") or getattr(
        getattr(model, "config", None), "name_or_path", ""
    )
    if not isinstance(told, str) or not _HUB_NAME.fullmatch(told) or Path(told).exists():
        return ""
    return told
