"""What a checkpoint gives back to an optimizer and its module.

The files hold whole tensors; where the module is sharded now (FSDP2), each rank cuts its own part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opdf_compile.errors import ArtefactError, OpdfError, first_line
from opdf_compile.io.checkpoints.capture import Optimizer, is_core
from opdf_compile.io.checkpoints.json_values import unpack
from opdf_compile.io.checkpoints.manifest import Manifest
from opdf_compile.io.checkpoints.rank_group import RankGroup
from opdf_compile.training import StateDict, checksum, is_sharded, local, own, sharded_as

_ReadTensor = Callable[[str], Tensor]


@dataclass(frozen=True)
class Snapshot:
    """The state of this rank's parameters, as `load_state_by_name` takes it."""

    states: dict[str, StateDict]
    fingerprints: dict[str, list[int]]
    groups: list[StateDict]
    class_state: StateDict | None


def give_state(optimizer: Optimizer, state: Snapshot, ranks: RankGroup, folder: Path) -> None:
    """Load the state on all ranks, or leave all of them as they were.

    Raises:
        ArtefactError: The wrapped optimizer of some rank does not take it.
    """
    before = Snapshot(
        own(optimizer.state_by_name()),
        optimizer.fingerprints(),
        optimizer.group_options(),
        own(optimizer.class_state()),
    )
    try:
        ranks.together(partial(_give, optimizer, state, folder))
    except BaseException:
        # torch's optimizers find out in the middle that they cannot use what they were given.
        _load(optimizer, before)
        raise


def _give(optimizer: Optimizer, state: Snapshot, folder: Path) -> None:
    try:
        _load(optimizer, state)
    except OpdfError:
        raise
    except Exception as error:  # Whatever the wrapped optimizer's class makes of a strange state.
        raise ArtefactError(
            f"{folder} does not fit: the optimizer cannot take its state "
            f"({first_line(error, 100)}); load an older checkpoint of the run"
        ) from error


def _load(optimizer: Optimizer, state: Snapshot) -> None:
    optimizer.load_state_by_name(state.states, state.fingerprints, state.groups, state.class_state)


def read_state(
    manifest: Manifest, optimizer: Optimizer, module: Mapping[str, Any], tensor: _ReadTensor
) -> Snapshot:
    """The state of this rank's parameters and the options of the groups, in memory.

    Args:
        manifest: Says what is where.
        optimizer: What it is read for.
        module: What `read_module` gave.
        tensor: Reads a tensor by name.
    """
    parameters = dict(optimizer.program.module.named_parameters(remove_duplicate=False))
    states = {
        name: {
            key: _cut_like(unpack(value, tensor), None if is_core(key) else parameters.get(name))
            for key, value in manifest.state[name].items()
        }
        for name in optimizer.owned_names()
    }
    groups = _as_now(unpack(manifest.groups, tensor), optimizer.group_options())
    fingerprints = {
        key: _fingerprint(saved, module[key], parameters[key])
        for key, saved in manifest.fingerprints.items()
        if key in parameters and key in module
    }
    return Snapshot(states, fingerprints, groups, _class_state(manifest, optimizer, tensor))


def _class_state(manifest: Manifest, optimizer: Optimizer, tensor: _ReadTensor) -> StateDict | None:
    """That of the layout that this rank has; else any, which the optimizer judges."""
    if not manifest.class_state:
        return None  # An older checkpoint.
    present = optimizer.layout()
    fitting = [saved for saved in manifest.class_state if saved.layout == present]
    saved = (fitting or manifest.class_state)[0]
    return {"layout": saved.layout, "rest": unpack(saved.rest, tensor)}


def _fingerprint(saved: list[int] | None, whole: Tensor, like: Tensor) -> list[int]:
    """The checksum that this rank expects of what it holds of a weight.

    The file has that of the whole weight. If the weight that was saved has another, it had been
    changed, and this rank's part must be told apart from what it expects, too.
    """
    now: list[int] = checksum(whole).tolist()
    unchanged = saved == now
    if not is_sharded(like):
        return now if unchanged else saved or _other(now)
    part: list[int] = checksum(local(_cut_like(whole, like))).tolist()
    return part if unchanged else _other(part)


def _other(sums: list[int]) -> list[int]:
    return [value ^ 1 for value in sums]


def read_module(manifest: Manifest, tensor: _ReadTensor) -> StateDict:
    """The module's state dict, whole and in memory; tied names get one tensor."""
    known: dict[str, Tensor] = {}

    def once(name: str) -> Tensor:
        if name not in known:
            known[name] = tensor(name)
        return known[name]

    return {key: unpack(value, once) for key, value in manifest.module.items()}


def give_module(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Load what was compared with the module, name by name, and so fits."""
    present = module.state_dict(keep_vars=True)
    module.load_state_dict({key: _cut_like(value, present[key]) for key, value in state.items()})


def _cut_like(value: Any, like: Any) -> Any:
    """Tensors cut as FSDP2 cut the parameter that they belong to; any other value as it is."""
    if isinstance(value, dict):
        return {key: _cut_like(item, like) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut_like(item, like) for item in value]
    if not is_sharded(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return sharded_as(value.to(like.device), like)


def _as_now(saved: Any, now: Any) -> Any:
    """JSON knows lists only; what is a tuple in this optimizer (betas) stays one."""
    if isinstance(saved, dict) and isinstance(now, dict):
        return {key: _as_now(value, now.get(key)) for key, value in saved.items()}
    if not isinstance(saved, list) or not isinstance(now, list | tuple):
        return saved
    items = [_as_now(*pair) for pair in zip(saved, now, strict=False)] + saved[len(now) :]
    return tuple(items) if isinstance(now, tuple) else items
