"""Pickled models (`.pt`, `.pth`, `.bin`): refused, unless the caller vouches for the file.

Unpickling runs whatever the file says. There is no screening to do: a file is trusted or not.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import ArtefactError, error_line
from opdf_compile.files import existing_file

_LOG = logging.getLogger("opdf_compile")

# Where training scripts keep the weights in a checkpoint, the trained ones before their average.
_HOLDERS = ("state_dict", "model_state_dict", "model", "net", "ema", "state_dict_ema", "model_ema")
_DEEPEST = 4


def load_pickle(path: str | os.PathLike[str], *, trust_pickle: bool) -> Any:
    """Unpickle a file that the caller vouches for.

    Raises:
        ArtefactError: It is not trusted, missing, or cannot be unpickled here.
    """
    file = existing_file(path, wanted="a pickled model")
    if not trust_pickle:
        raise ArtefactError(
            f"{file} is a pickle, and loading it would run code that is in it; save a .pt2 with "
            "torch.export.save or weights with safetensors, or, if you trust its source "
            "completely, give --trust-pickle"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:  # A pickle can raise anything.
        raise ArtefactError(
            f"{file} cannot be unpickled ({error_line(error)}); import what it was made of, or "
            "write it again"
        ) from error


def state_dict_in(path: Path, found: Any) -> dict[str, Tensor]:
    """The tensors by name in what was unpickled: a state dict, or a checkpoint around one.

    Raises:
        ArtefactError: It is something else.
    """
    for _ in range(_DEEPEST):
        if isinstance(found, torch.nn.Module):
            found = found.state_dict()
        if not isinstance(found, dict):
            break
        if found and all(isinstance(value, Tensor) for value in found.values()):
            return {str(name): tensor for name, tensor in found.items()}
        key = next((k for k in _HOLDERS if isinstance(found.get(k), dict | torch.nn.Module)), None)
        if key is None:
            break
        _LOG.info("%s: the weights are those under %r", path, key)
        found = found[key]
    raise ArtefactError(
        f"{path} holds a {type(found).__name__}, wanted a state dict (tensors by name), also one "
        f"under {', '.join(_HOLDERS[:3])} or ema; save model.state_dict() with safetensors"
    )
