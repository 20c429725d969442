"""The files of a checkpoint: a shard for each rank, and the manifest that makes sense of them."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from opdf_compile.errors import ArtefactError
from opdf_compile.files import atomic_write, sha256
from opdf_compile.io.checkpoints.capture import RankShare
from opdf_compile.io.checkpoints.manifest import (
    ClassState,
    Manifest,
    Shard,
    Stored,
    axis_order,
    shard_name,
)
from opdf_compile.io.checkpoints.rank_group import RankGroup
from opdf_compile.io.checkpoints.step_folders import MANIFEST
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.io.models.safetensors_file import unshared, write_tensors
from opdf_compile.training import StateDict
from opdf_compile.version import __version__


@dataclass(frozen=True)
class Written:
    """What one rank tells rank 0 of its shard: its name, and everything in it but the tensors."""

    name: str
    shard: dict[str, Any]
    tensors: dict[str, dict[str, Any]]
    share: RankShare
    random: StateDict | None


def write_share(
    folder: Path, share: RankShare, random: StateDict | None, ranks: RankGroup
) -> Written:
    """Write this rank's shard.

    Raises:
        ArtefactError: The folder is not there on this rank, or the file cannot be written.
    """
    if not folder.is_dir():
        raise ArtefactError(
            f"{folder.parent} is not the folder that rank 0 sees, wanted one that all ranks share; "
            "give a folder on a shared file system"
        )
    name = shard_name(ranks.rank, ranks.size)
    file = folder / name
    write_tensors(file, unshared(share.tensors))
    index = {
        key: {
            "shard": name,
            "shape": list(tensor.shape),
            "dtype": dtype_name(tensor.dtype),
            "order": axis_order(tensor),
        }
        for key, tensor in share.tensors.items()
    }
    shard = {"sha256": sha256(file), "bytes": file.stat().st_size}
    return Written(name, shard, index, replace(share, tensors={}), random)


def write_manifest(folder: Path, parts: list[Written], about: dict[str, Any], extra: str) -> None:
    """Write the manifest of what all ranks have written.

    Args:
        folder: The checkpoint.
        parts: What each rank has written, in the order of the ranks.
        about: The step and the optimizer's class.
        extra: JSON text.
    """
    shares = [part.share for part in parts]
    manifest = Manifest(
        **about,
        world_size=len(parts),
        versions=_versions(),
        extra=json.loads(extra),
        groups=shares[0].groups,
        fingerprints=shares[0].fingerprints,
        shards={part.name: Shard(**part.shard) for part in parts},
        tensors={key: Stored(**value) for part in parts for key, value in part.tensors.items()},
        module=shares[0].module,
        state={name: state for share in shares for name, state in share.state.items()},
        class_state=[ClassState(**s.class_state) for s in shares if s.class_state is not None],
        random=[part.random for part in parts if part.random is not None],
    )
    with atomic_write(folder / MANIFEST) as temporary:
        temporary.write_text(manifest.text(), encoding="utf-8")


def _versions() -> dict[str, str]:
    import safetensors

    return {
        "opdf-compile": __version__,
        "torch": str(torch.__version__),
        "safetensors": safetensors.__version__,
        "python": platform.python_version(),
    }
