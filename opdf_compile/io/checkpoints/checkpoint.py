"""Checkpoints of a run: written at once or not at all, readable on another number of ranks.

    DIR/step-000100/manifest.json                        what is where; JSON
    DIR/step-000100/shard-00000-of-00002.safetensors     one for each rank that saved

A checkpoint holds the module's state dict, the cores, the wrapped optimizer's state, the options of
the param groups, the random number generators, and what the caller gives as `extra` and `tensors`.
No pickle.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.files import atomic_folder
from opdf_compile.io.checkpoints.capture import Optimizer, require_optimizer, take
from opdf_compile.io.checkpoints.fit import check_fit
from opdf_compile.io.checkpoints.give import (
    Snapshot,
    give_module,
    give_state,
    read_module,
    read_state,
)
from opdf_compile.io.checkpoints.json_values import json_text, pack, unpack
from opdf_compile.io.checkpoints.manifest import (
    Manifest,
    Shards,
    check_hash,
    read_checkpoint_manifest,
)
from opdf_compile.io.checkpoints.random_states import random_states, restorer
from opdf_compile.io.checkpoints.rank_group import RankGroup
from opdf_compile.io.checkpoints.step_folders import (
    MANIFEST,
    delete_leftovers,
    is_step_folder,
    latest_checkpoint,
    locked,
    make_folder,
    prune,
    step_folder,
)
from opdf_compile.io.checkpoints.write import Written, write_manifest, write_share
from opdf_compile.training import StateDict, reshard

_LOG = logging.getLogger("opdf_compile")


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` found beside the state that it loaded.

    Attributes:
        step: The step that was given to `save_checkpoint`.
        extra: What was given as `extra`; tuples have become lists.
        path: The checkpoint's own folder.
        tensors: What was given as `tensors`, on the CPU.
    """

    step: int
    extra: Any
    path: Path
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    directory: str | os.PathLike[str],
    optimizer: Optimizer,
    *,
    step: int,
    extra: Any = None,
    tensors: Mapping[str, Tensor] | None = None,
    keep: int | None = None,
    rng: bool = True,
) -> Path:
    """Write a checkpoint into ``directory/step-NNNNNN``, entirely or not at all.

    In a distributed run every rank must call it, at the same step, with a directory that all of
    them see. Call it between steps: gradients are not saved.

    Args:
        directory: The folder of the run's checkpoints; made if missing.
        optimizer: An Overparam; its student is saved with it.
        step: The number of the step; each can be saved once.
        extra: A JSON value to keep with it, such as ``{"scheduler": scheduler.state_dict()}``. In a
            distributed run that of rank 0 counts.
        tensors: Tensors to keep with it by name, such as an average of the weights; those of rank 0
            count.
        keep: Delete older checkpoints beyond this number, once the new one is in place.
        rng: Keep the random number generators of torch, python and numpy too.

    Returns:
        The checkpoint's own folder.

    Raises:
        InputError: `step`, `keep` or `extra` cannot be used.
        ArtefactError: The step is saved already, or the folder cannot be written.

    Example:
        >>> opdf.save_checkpoint("run/", optimizer, step=step, keep=3)
    """
    require_optimizer(optimizer)
    ranks = RankGroup(optimizer.program.process_group)
    text = ranks.together(partial(_arguments, step, extra, keep))
    _require_one_step(ranks.gather(step))
    reshard(optimizer.program.module)
    share = ranks.together(partial(take, optimizer, ranks))
    kept = ranks.together(partial(_keep, tensors, share.tensors, ranks))
    random = pack(random_states(), f"random/{ranks.rank}", share.tensors) if rng else None
    base = Path(directory)
    target = step_folder(base, step)
    # The lock is held until the new checkpoint has its name and older ones are gone: to another
    # process a folder that is being written is a leftover.
    with ExitStack() as lock, ExitStack() as writing:
        opened = ranks.together(partial(_open, target, ranks, lock, writing))
        folder = ranks.gather(opened)[0]
        written = ranks.together(partial(write_share, folder, share, random, ranks))
        parts = ranks.gather(written)
        about = {"step": step, "optimizer": type(optimizer.inner).__name__, "kept": kept}
        ranks.together(partial(_publish, folder, parts, about, text, ranks, writing))
        ranks.together(partial(_prune, base, step, keep, ranks))
    return target


def load_checkpoint(
    directory: str | os.PathLike[str], optimizer: Optimizer, *, rng: bool = True
) -> Checkpoint:
    """Load a checkpoint into an optimizer and its student; everything, or nothing.

    The number of ranks may differ from that of the run that saved it; every rank must call it.

    Args:
        directory: The folder of the run's checkpoints, of which the newest is taken, or one
            checkpoint's own folder.
        optimizer: An Overparam, built as it was when the checkpoint was saved.
        rng: Set the random number generators as they were then.

    Returns:
        The step, `extra`, and which checkpoint it is.

    Raises:
        ArtefactError: There is no checkpoint, it is damaged, or it is of another model, plan or
            optimizer; nothing is changed then.

    Example:
        >>> step = opdf.load_checkpoint("run/", optimizer).step
    """
    require_optimizer(optimizer)
    ranks = RankGroup(optimizer.program.process_group)
    chosen = ranks.together(partial(_choose, Path(directory)))
    folder = ranks.gather(chosen)[0]
    reshard(optimizer.program.module)
    ready = ranks.together(partial(_prepare, folder, optimizer, ranks, rng))
    give_state(optimizer, ready.state, ranks, folder)
    ranks.together(partial(give_module, optimizer.program.module, ready.module))
    if ready.restore is not None:
        ready.restore()
    return Checkpoint(ready.manifest.step, ready.manifest.extra, folder, ready.kept)


def _arguments(step: int, extra: Any, keep: int | None) -> str:
    """Check the arguments; `extra` as JSON text."""
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise InputError(f"step is {step!r}, wanted a whole number from 0 on; count the steps")
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise InputError(f"keep is {keep!r}, wanted a number of checkpoints from 1 on, or None")
    return json_text(extra, "extra")


def _keep(
    tensors: Mapping[str, Tensor] | None, into: dict[str, Tensor], ranks: RankGroup
) -> dict[str, Any]:
    """Rank 0: put the caller's tensors into its shard; where each of them is."""
    given = dict(tensors or {}) if ranks.rank == 0 else {}
    odd = next((name for name, value in given.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise InputError(
            f"tensors[{odd!r}] is a {type(given[odd]).__name__}, wanted a tensor; numbers and "
            "texts go into extra"
        )
    packed: dict[str, Any] = pack(given, "kept", into)
    return packed


def _require_one_step(steps: list[int]) -> None:
    if len(set(steps)) > 1:
        raise InputError(
            f"the ranks save the steps {steps}, wanted one step; call save_checkpoint on every "
            "rank after the same step"
        )


def _open(target: Path, ranks: RankGroup, lock: ExitStack, writing: ExitStack) -> Path:
    """Rank 0: make the folder that all ranks write into, hidden until it is complete."""
    if ranks.rank:
        return target  # Rank 0 tells the others what the folder is called until then.
    base = target.parent
    make_folder(base)
    lock.enter_context(locked(base))
    if os.path.lexists(target):
        raise ArtefactError(
            f"{target} exists already, and a checkpoint is never overwritten; count the steps on, "
            "or give another folder"
        )
    count = delete_leftovers(base)
    if count:
        _LOG.info("deleted %d unfinished checkpoints in %s", count, base)
    return writing.enter_context(atomic_folder(target))


def _publish(
    folder: Path,
    parts: list[Written],
    about: dict[str, Any],
    extra: str,
    ranks: RankGroup,
    writing: ExitStack,
) -> None:
    """Rank 0: write the manifest, and give the folder its name."""
    if ranks.rank == 0:
        write_manifest(folder, parts, about, extra)
        writing.close()


def _prune(base: Path, step: int, keep: int | None, ranks: RankGroup) -> None:
    if ranks.rank == 0 and keep is not None:
        prune(base, step, keep)


def _choose(directory: Path) -> Path:
    if os.path.lexists(directory / MANIFEST) or is_step_folder(directory):
        return directory
    newest = latest_checkpoint(directory)
    if newest is None:
        raise ArtefactError(
            f"{directory} holds no complete checkpoint, wanted the folder that was given to "
            "save_checkpoint; check the path, or start without one"
        )
    return newest


@dataclass(frozen=True)
class _Ready:
    """All of a checkpoint in memory, checked; nothing is changed yet."""

    manifest: Manifest
    state: Snapshot
    module: StateDict
    kept: dict[str, Tensor]
    restore: Callable[[], None] | None


def _prepare(folder: Path, optimizer: Optimizer, ranks: RankGroup, rng: bool) -> _Ready:
    manifest = read_checkpoint_manifest(folder)
    check_fit(manifest, optimizer, folder)
    # Each shard is hashed by one rank; none goes on before all have agreed.
    for name in sorted(manifest.shards)[ranks.rank :: ranks.size]:
        check_hash(folder, name, manifest.shards[name])
    shards = Shards(folder, manifest)
    module = read_module(manifest, shards.tensor)
    state = read_state(manifest, optimizer, module, shards.tensor)
    restore = _random(folder, manifest, ranks, shards) if rng else None
    kept = unpack(manifest.kept, shards.tensor)
    return _Ready(manifest, state, module, kept, restore)


def _random(
    folder: Path, manifest: Manifest, ranks: RankGroup, shards: Shards
) -> Callable[[], None] | None:
    if len(manifest.random) != ranks.size:
        found = f"those of {len(manifest.random)} ranks" if manifest.random else "none"
        _LOG.warning(
            "%s: the random number generators go on as they are, because it holds %s and there "
            "are %d ranks",
            folder,
            found,
            ranks.size,
        )
        return None
    return restorer(unpack(manifest.random[ranks.rank], shards.tensor), str(folder))
