"""What a checkpoint takes from an optimizer and its module, and gives back to them.

With several ranks each parameter's state is written by the first rank that holds it; rank 0 also
writes the module and the options. Sharded tensors (FSDP2) are gathered by all ranks together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from opdf_compile.errors import ArtefactError, InputError, OpdfError
from opdf_compile.graph.sharing import memory_key
from opdf_compile.io.checkpoint_manifest import Manifest
from opdf_compile.io.checkpoint_ranks import Ranks
from opdf_compile.io.checkpoint_values import pack, unpack
from opdf_compile.training.binding import whole

State = dict[str, Any]


class Program(Protocol):
    """What is needed of a weight program."""

    module: nn.Module

    @property
    def process_group(self) -> Any:
        """The ranks that it is shared out over, or None."""


class Optimizer(Protocol):
    """What is needed of an `Overparam`."""

    program: Any
    inner: torch.optim.Optimizer

    def owned_names(self) -> tuple[str, ...]:
        """Names of the parameters whose state this rank holds."""

    def state_by_name(self) -> dict[str, State]:
        """That state."""

    def fingerprints(self) -> dict[str, list[int]]:
        """Checksums of the matched weights."""

    def group_options(self) -> list[State]:
        """The param groups with names in place of parameters."""

    def load_state_by_name(
        self,
        states: Mapping[str, State],
        fingerprints: Mapping[str, list[int]],
        groups: list[State],
    ) -> None:
        """The inverse of the three."""


def require_optimizer(optimizer: Any) -> None:
    """Refuse anything but an Overparam before it fails somewhere inside.

    Raises:
        InputError: It is something else.
    """
    if not hasattr(optimizer, "load_state_by_name"):
        raise InputError(
            f"the optimizer is a {type(optimizer).__name__}, wanted an opdf.Overparam; a plain "
            "optimizer has torch.save and its state_dict()"
        )


@dataclass
class Share:
    """One rank's part of a checkpoint.

    Attributes:
        tensors: What goes into its shard.
        state: Packed state of the parameters that it writes.
        module: The packed state dict; only on rank 0, as the next.
        groups: Packed param groups.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, State] = field(default_factory=dict)
    module: State = field(default_factory=dict)
    groups: list[State] = field(default_factory=list)


def take(optimizer: Optimizer, ranks: Ranks) -> Share:
    """What this rank writes; all ranks must call it together.

    Raises:
        ArtefactError: A value is no tensor, number or text.
    """
    owned = ranks.gather(optimizer.owned_names())
    first = {name: rank for rank in reversed(range(ranks.size)) for name in owned[rank]}
    writes = {name: first[name] == ranks.rank for name in owned[ranks.rank]}
    present = optimizer.state_by_name()
    states = {
        name: {key: _gathered(value, mine) for key, value in present.get(name, {}).items()}
        for name, mine in writes.items()
    }
    module = _module_state(optimizer.program.module, writes=ranks.rank == 0)
    # From here on no rank waits for another, so a value that cannot be packed is told at once.
    share = Share()
    for name, mine in writes.items():
        if mine:
            share.state[name] = pack(states[name], f"state/{name}", share.tensors)
    if ranks.rank == 0:
        share.module = _pack_module(module, share.tensors)
        share.groups = pack(optimizer.group_options(), "groups", share.tensors)
    return share


@dataclass(frozen=True)
class Snapshot:
    """The state of this rank's parameters, as `load_state_by_name` takes it."""

    states: dict[str, State]
    fingerprints: dict[str, list[int]]
    groups: list[State]


def give_state(optimizer: Optimizer, state: Snapshot, ranks: Ranks, folder: Path) -> None:
    """Load the state on all ranks, or leave all of them as they were.

    Raises:
        ArtefactError: The wrapped optimizer of some rank does not take it.
    """
    before = Snapshot(
        {
            name: {key: _copy(value) for key, value in kept.items()}
            for name, kept in optimizer.state_by_name().items()
        },
        optimizer.fingerprints(),
        optimizer.group_options(),
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
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise ArtefactError(
            f"{folder} does not fit: the optimizer cannot take its state ({reason}); load an older "
            "checkpoint of the run"
        ) from error


def _load(optimizer: Optimizer, state: Snapshot) -> None:
    optimizer.load_state_by_name(state.states, state.fingerprints, state.groups)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def read_state(
    manifest: Manifest, optimizer: Optimizer, tensor: Callable[[str], Tensor]
) -> Snapshot:
    """The state of this rank's parameters and the options of the groups, in memory."""
    parameters = dict(optimizer.program.module.named_parameters(remove_duplicate=False))
    states = {
        name: {
            key: _sharded(unpack(value, tensor), None if is_core(key) else parameters.get(name))
            for key, value in manifest.state[name].items()
        }
        for name in optimizer.owned_names()
    }
    groups = _as_now(unpack(manifest.groups, tensor), optimizer.group_options())
    return Snapshot(states, manifest.fingerprints, groups)


def read_module(manifest: Manifest, module: nn.Module, tensor: Callable[[str], Tensor]) -> State:
    """The module's state dict, in memory; tied names get one tensor."""
    known: dict[str, Tensor] = {}

    def once(name: str) -> Tensor:
        if name not in known:
            known[name] = tensor(name)
        return known[name]

    present = module.state_dict(keep_vars=True)
    return {
        key: _sharded(unpack(value, once), present.get(key))
        for key, value in manifest.module.items()
    }


def _gathered(value: Any, keep: bool) -> Any:
    """A sharded tensor gathered; the ranks that do not write it drop it at once."""
    if not isinstance(value, Tensor):
        return value
    full = whole(value.detach())
    return full if keep else None


def _module_state(module: nn.Module, *, writes: bool) -> State:
    state = module.state_dict(keep_vars=True)
    found: dict[int, Any] = {}
    for value in state.values():
        # Tied names hold one object, which is gathered once.
        if id(value) not in found:
            found[id(value)] = _gathered(value, writes)
    return {key: found[id(value)] for key, value in state.items()}


def _pack_module(state: State, tensors: dict[str, Tensor]) -> State:
    first: dict[Any, str] = {}
    packed: State = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            same = first.setdefault(memory_key(value) or key, key)
            if same != key:
                packed[key] = packed[same]
                continue
        packed[key] = pack(value, f"module/{key}", tensors)
    return packed


def is_core(key: str) -> bool:
    """Whether a state key is a core, or what the wrapped optimizer keeps of one."""
    return key.startswith("cores.")


def own_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory, which safetensors cannot express."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        # A row of a stack of cores is a view of the whole stack.
        apart[name] = tensor.to("cpu", copy=place in seen)
        seen.add(place)
    return apart


def _sharded(value: Any, like: Tensor | None) -> Any:
    """A tensor cut as FSDP2 cut the parameter it belongs to; any other value as it is."""
    mesh = getattr(like, "device_mesh", None)
    if mesh is None or like is None or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    placements: Any = like.placements  # type: ignore[attr-defined]
    # Every rank has read the whole value, so none needs to be sent.
    return distribute_tensor(value.to(like.device), mesh, placements, src_data_rank=None)


def _as_now(saved: Any, now: Any) -> Any:
    """JSON knows lists only; what is a tuple in this optimizer (betas) stays one."""
    if isinstance(saved, dict) and isinstance(now, dict):
        return {key: _as_now(value, now.get(key)) for key, value in saved.items()}
    if not isinstance(saved, list) or not isinstance(now, list | tuple):
        return saved
    items = [_as_now(*pair) for pair in zip(saved, now, strict=False)] + saved[len(now) :]
    return tuple(items) if isinstance(now, tuple) else items
