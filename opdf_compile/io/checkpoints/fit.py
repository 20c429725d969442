"""Whether a checkpoint is one of this model and this optimizer, told before a tensor is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opdf_compile.errors import ArtefactError
from opdf_compile.graph import memory_key
from opdf_compile.io.checkpoints.capture import Optimizer, is_core
from opdf_compile.io.checkpoints.json_values import TENSOR
from opdf_compile.io.checkpoints.manifest import Manifest
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.training import StateDict, is_sharded

_REMEDY = "build the model and the optimizer as they were when it was saved"


def check_fit(manifest: Manifest, optimizer: Optimizer, folder: Path) -> None:
    """Compare names, shapes and dtypes before a tensor is read.

    Raises:
        ArtefactError: The checkpoint is of another model or optimizer.
    """
    name = type(optimizer.inner).__name__
    if manifest.optimizer != name:
        raise _other(folder, f"it was saved with {manifest.optimizer}, this optimizer is {name}")
    wanted = [list(group["params"]) for group in optimizer.group_options()]
    found = [group.get("params") for group in manifest.groups]
    if found != wanted:
        raise _other(folder, "its param groups hold other parameters than this optimizer's")
    _check_module(manifest, optimizer.program.module, folder)
    present = optimizer.state_by_name()
    for owned in optimizer.owned_names():
        if owned not in manifest.state:
            raise _other(folder, f"it has no state of {owned!r}")
        _check_cores(manifest, owned, present.get(owned, {}), folder)


def _check_module(manifest: Manifest, module: nn.Module, folder: Path) -> None:
    present = module.state_dict(keep_vars=True)
    odd = sorted(present.keys() ^ manifest.module.keys())
    if odd:
        where = "this model" if odd[0] in present else "the checkpoint"
        raise _other(folder, f"only {where} has {odd[0]!r} ({len(odd)} such names)")
    groups: dict[Any, str] = {}
    for key, value in present.items():
        packed = manifest.module[key]
        if isinstance(value, Tensor) != _is_tensor(packed):
            raise _other(folder, f"{key!r} is a tensor in one of them only")
        if not isinstance(value, Tensor):
            continue
        _check_like(manifest, key, packed, value, folder)
        tied = groups.setdefault(memory_key(value) or key, key) if _plain(value) else key
        if manifest.module[tied] != packed:
            raise _other(folder, f"{tied!r} and {key!r} are one weight here and two there")


def _plain(value: Tensor) -> bool:
    # A DTensor's memory is its shard's; FSDP2 keeps ties as one Parameter, which loads twice alike.
    return not is_sharded(value)


def _check_cores(manifest: Manifest, name: str, present: StateDict, folder: Path) -> None:
    saved = manifest.state[name]
    cores = {key for key in present if _is_core(key)}
    if cores != {key for key in saved if _is_core(key)}:
        raise _other(folder, f"{name!r} has another number of cores there")
    for key in sorted(cores):
        if not _is_tensor(saved[key]):
            raise _other(folder, f"{name!r} has no core {key!r} there")
        _check_like(manifest, f"{name} {key}", saved[key], present[key], folder)


def _is_core(key: str) -> bool:
    """A core itself, not what the wrapped optimizer keeps of it."""
    return is_core(key) and key.count(".") == 1


def _is_tensor(packed: Any) -> bool:
    return isinstance(packed, dict) and TENSOR in packed


def _check_like(manifest: Manifest, label: str, packed: Any, like: Tensor, folder: Path) -> None:
    stored = manifest.tensors.get(packed[TENSOR])
    if stored is None:
        raise ArtefactError(
            f"{folder} is refused: its manifest does not list the tensor {packed[TENSOR][:80]!r}; "
            "load an older checkpoint of the run"
        )
    for what, found, wanted in (
        ("shape", stored.shape, list(like.shape)),
        ("dtype", stored.dtype, dtype_name(like.dtype)),
    ):
        if found != wanted:
            raise _other(folder, f"{label!r} has the {what} {found} there and {wanted} here")


def _other(folder: Path, what: str) -> ArtefactError:
    return ArtefactError(f"{folder} does not fit: {what}; {_REMEDY}")
