"""What a checkpoint takes from an optimizer and its module, and gives back to them.

With several ranks each parameter's state is written by the first rank that holds it; rank 0 also
writes the module and the options. Sharded tensors (FSDP2) are gathered by all ranks together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from opdf_compile.errors import InputError
from opdf_compile.graph import memory_key
from opdf_compile.io.checkpoints.json_values import pack
from opdf_compile.io.checkpoints.rank_group import RankGroup
from opdf_compile.training import StateDict, checksum, is_sharded, local, whole


class Optimizer(Protocol):
    """What is needed of an `Overparam`."""

    program: Any
    inner: torch.optim.Optimizer

    def owned_names(self) -> tuple[str, ...]:
        """Names of the parameters whose state this rank holds."""

    def state_by_name(self) -> dict[str, StateDict]:
        """That state."""

    def fingerprints(self) -> dict[str, list[int]]:
        """Checksums of the matched weights."""

    def group_options(self) -> list[StateDict]:
        """The param groups with names in place of parameters."""

    def class_state(self) -> StateDict:
        """What its class keeps beside that, with the layout it is for where it is for one."""

    def layout(self) -> list[list[str]]:
        """The layout that it has here."""

    def load_state_by_name(
        self,
        states: Mapping[str, StateDict],
        fingerprints: Mapping[str, list[int]],
        groups: list[StateDict],
        class_state: StateDict | None = None,
    ) -> None:
        """The inverse of the four."""


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
class RankShare:
    """One rank's part of a checkpoint.

    Attributes:
        tensors: What goes into its shard.
        state: Packed state of the parameters that it writes.
        module: The packed state dict; only on rank 0, as the rest.
        fingerprints: Checksums of the whole matched weights as the last step left them; None where
            a sharded weight has changed since, so that nobody can tell.
        groups: Packed param groups.
        class_state: Packed, where no rank before this one has the same layout; else None.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, StateDict] = field(default_factory=dict)
    module: StateDict = field(default_factory=dict)
    groups: list[StateDict] = field(default_factory=list)
    fingerprints: dict[str, list[int] | None] = field(default_factory=dict)
    class_state: StateDict | None = None


def take(optimizer: Optimizer, ranks: RankGroup) -> RankShare:
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
    unchanged = ranks.gather(_unchanged(optimizer))
    own = optimizer.class_state()
    layouts = ranks.gather(own["layout"])
    # From here on no rank waits for another, so a value that cannot be packed is told at once.
    share = RankShare()
    for name, mine in writes.items():
        if mine:
            share.state[name] = pack(states[name], f"state/{name}", share.tensors)
    # Ranks that hold the same tensors hold the same state of them.
    if layouts.index(own["layout"]) == ranks.rank:
        share.class_state = pack(own, f"class/{ranks.rank}", share.tensors)
    if ranks.rank == 0:
        share.module = _pack_module(module, share.tensors)
        share.groups = pack(optimizer.group_options(), "groups", share.tensors)
        everywhere = set.intersection(*unchanged)
        share.fingerprints = {
            key: checksum(module[key]).tolist() if key in everywhere & module.keys() else known
            for key, known in _of_whole_weights(optimizer).items()
        }
    return share


def _unchanged(optimizer: Optimizer) -> set[str]:
    """The matched weights of which this rank holds what the last step left."""
    parameters = dict(optimizer.program.module.named_parameters(remove_duplicate=False))
    recorded = optimizer.fingerprints()
    return {k for k, sums in recorded.items() if checksum(local(parameters[k])).tolist() == sums}


def _of_whole_weights(optimizer: Optimizer) -> dict[str, list[int] | None]:
    """The recorded checksums, without those of mere parts of weights."""
    parameters = dict(optimizer.program.module.named_parameters(remove_duplicate=False))
    recorded = optimizer.fingerprints()
    return {k: None if is_sharded(parameters[k]) else sums for k, sums in recorded.items()}


def _gathered(value: Any, keep: bool) -> Any:
    """Sharded tensors gathered; the ranks that do not write them drop them at once."""
    if isinstance(value, dict):
        return {key: _gathered(item, keep) for key, item in value.items()}
    if isinstance(value, list):
        return [_gathered(item, keep) for item in value]
    if not isinstance(value, Tensor):
        return value
    full = whole(value.detach())
    return full if keep else None


def _module_state(module: nn.Module, *, writes: bool) -> StateDict:
    state = module.state_dict(keep_vars=True)
    found: dict[int, Any] = {}
    for value in state.values():
        # Tied names hold one object, which is gathered once.
        if id(value) not in found:
            found[id(value)] = _gathered(value, writes)
    return {key: found[id(value)] for key, value in state.items()}


def _pack_module(state: StateDict, tensors: dict[str, Tensor]) -> StateDict:
    first: dict[Any, str] = {}
    packed: StateDict = {}
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
