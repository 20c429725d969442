"""What a checkpoint's `manifest.json` may say, and the shards it names.

A checkpoint is data from somewhere: the manifest is read with limits and against a schema, it can
only name files of a fixed form in its own folder, and a tensor is read only where the shard's own
header has the shape and dtype that the manifest states.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from opdf_compile.errors import ArtefactError, first_line
from opdf_compile.files import load_json, sha256
from opdf_compile.io.checkpoints.json_values import check_packed
from opdf_compile.io.checkpoints.step_folders import MANIFEST
from opdf_compile.io.dtypes import dtype_name

SCHEMA = "opdf-checkpoint/1"
# Ten thousand tensors are about 2 MB.
LARGEST_MANIFEST = 256 << 20
_SHARD = re.compile(r"shard-[0-9]{5,7}-of-[0-9]{5,7}\.safetensors")
_REMEDY = "load an older checkpoint of the run"

_Sums = Annotated[list[int], Field(min_length=2, max_length=2)]
_Packed = Annotated[Any, AfterValidator(check_packed)]


class Shard(BaseModel):
    """One file of the checkpoint."""

    model_config = ConfigDict(extra="forbid", strict=True)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)


class Stored(BaseModel):
    """Where a tensor lies, and what it is.

    Attributes:
        order: Its axes as they lay in memory, the last one closest together, where that is not the
            order of the shape. The shard has all tensors row by row; of a factor that lay column by
            column a product is rounded otherwise. Older checkpoints have none.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    shard: str
    shape: list[Annotated[int, Field(ge=0)]]
    dtype: str
    order: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)


class ClassState(BaseModel):
    """What an optimizer's class keeps in a form of its own, and the layout that it is for."""

    model_config = ConfigDict(extra="forbid", strict=True)
    layout: list[list[str]]
    rest: dict[str, _Packed]


class Manifest(BaseModel):
    """A checkpoint without its tensors.

    Attributes:
        optimizer: The class of the wrapped optimizer.
        groups: Options and parameter names of each param group.
        fingerprints: Checksums of the matched weights as the last step left them; None where a
            sharded weight had been changed since.
        tensors: Every tensor by its name in its shard.
        module: The module's state dict, packed; a tied weight is one tensor under several names.
        state: The optimizer's state by parameter name, packed.
        class_state: What the optimizer's class keeps beside that, packed, once for each layout of
            its parameters that a rank has; older checkpoints have none.
        random: The random number generators of each rank, packed; empty where they were left out.
        kept: What the caller gave as `tensors`, packed; older checkpoints have none.
    """

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)
    schema_: Literal["opdf-checkpoint/1"] = Field("opdf-checkpoint/1", alias="schema")
    step: int = Field(ge=0)
    world_size: int = Field(ge=1)
    optimizer: str
    versions: dict[str, str]
    extra: Any
    groups: list[dict[str, _Packed]]
    fingerprints: dict[str, _Sums | None]
    shards: dict[str, Shard]
    tensors: dict[str, Stored]
    module: dict[str, _Packed]
    state: dict[str, dict[str, _Packed]]
    random: list[dict[str, _Packed]]
    class_state: list[ClassState] = Field(default_factory=list)
    kept: dict[str, _Packed] = Field(default_factory=dict)

    def text(self) -> str:
        """The manifest as JSON text."""
        return json.dumps(self.model_dump(by_alias=True), indent=1) + "\n"


def shard_name(rank: int, size: int) -> str:
    """The file that a rank writes."""
    return f"shard-{rank:05d}-of-{size:05d}.safetensors"


def read_checkpoint_manifest(folder: Path) -> Manifest:
    """Read and check a checkpoint's manifest, and that its shards are there in full length.

    Raises:
        ArtefactError: It is missing, too large, no manifest, or names a file that it may not.
    """
    file = folder / MANIFEST
    if not os.path.lexists(file):
        raise ArtefactError(
            f"{folder} holds no {MANIFEST}, wanted a complete checkpoint; {_REMEDY}"
        )
    wanted = "a checkpoint's manifest"
    manifest = _parse(
        file, load_json(_not_linked(file), wanted, most=LARGEST_MANIFEST, remedy=_REMEDY)
    )
    for name, shard in manifest.shards.items():
        _check_shard(file, name, shard)
    for name, stored in manifest.tensors.items():
        if stored.shard not in manifest.shards:
            raise ArtefactError(
                f"{file} is refused: it places the tensor {name[:80]!r} in {stored.shard[:80]!r}, "
                f"which is none of its shards; {_REMEDY}"
            )
    return manifest


def check_hash(folder: Path, name: str, shard: Shard) -> None:
    """Compare a shard with its hash.

    Raises:
        ArtefactError: They differ.
    """
    file = folder / name
    if sha256(file) != shard.sha256:
        raise ArtefactError(
            f"{file} is damaged: its SHA-256 is not the one that was written down when it was "
            f"saved; {_REMEDY}"
        )


class Shards:
    """Reads single tensors of a checkpoint, each at most once."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Open nothing yet."""
        self._folder = folder
        self._manifest = manifest
        self._open: dict[str, Any] = {}
        self._read: set[str] = set()

    def tensor(self, name: str) -> Tensor:
        """A tensor on the CPU, in memory of its own.

        Raises:
            ArtefactError: The manifest does not list it, or it is not what the manifest says.
        """
        stored = self._manifest.tensors.get(name)
        # Twice would let a small file fill the memory.
        if stored is None or name in self._read:
            found = "does not list" if stored is None else "uses twice"
            raise ArtefactError(
                f"{self._folder / MANIFEST} is refused: it {found} the tensor {name[:80]!r}; "
                f"{_REMEDY}"
            )
        self._read.add(name)
        file = self._folder / stored.shard
        from safetensors import SafetensorError

        try:
            return self._get(file, name, stored)
        except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
            raise ArtefactError(
                f"{file} cannot be read ({first_line(error, 150)}); {_REMEDY}"
            ) from error

    def _get(self, file: Path, name: str, stored: Stored) -> Tensor:
        from safetensors import safe_open

        if stored.shard not in self._open:
            self._open[stored.shard] = safe_open(str(file), framework="pt", device="cpu")
        stream = self._open[stored.shard]
        if list(stream.get_slice(name).get_shape()) != stored.shape:
            raise ValueError(f"{name[:80]!r} has another shape than the manifest says")
        if stored.order and sorted(stored.order) != list(range(len(stored.shape))):
            raise ValueError(f"the order of the axes of {name[:80]!r} names other axes")
        # A copy: what safetensors returns is a view of the file, read when it is first touched.
        tensor: Tensor = stream.get_tensor(name).clone()
        if dtype_name(tensor.dtype) != stored.dtype:
            raise ValueError(f"{name[:80]!r} has another dtype than the manifest says")
        return _laid_out(tensor, stored.order)


def axis_order(tensor: Tensor) -> list[int]:
    """The axes from the one with the longest stride on; empty where that is the shape's order."""
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=strides.__getitem__, reverse=True)
    return [] if tensor.is_contiguous() or order == sorted(order) else order


def _laid_out(tensor: Tensor, order: list[int]) -> Tensor:
    """The same values, lying in memory as `axis_order` said."""
    if not order:
        return tensor
    return tensor.permute(order).contiguous().permute([order.index(k) for k in range(len(order))])


def _parse(file: Path, value: Any) -> Manifest:
    try:
        return Manifest.model_validate(value)
    except (ValidationError, RecursionError) as error:
        raise ArtefactError(
            f"{file} is no checkpoint's manifest: {_first(error)} (schema {SCHEMA}); {_REMEDY}"
        ) from error


def _first(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "it is nested too deeply"
    first = error.errors()[0]
    place = ".".join(str(part)[:80] for part in first["loc"]) or "the file"
    return f"{place} is wrong ({first['msg'].rstrip('.')})"


def _check_shard(manifest: Path, name: str, shard: Shard) -> None:
    if not _SHARD.fullmatch(name):
        raise ArtefactError(
            f"{manifest} is refused: it names the file {name[:80]!r}, wanted names like "
            f"{shard_name(0, 1)} in its own folder; {_REMEDY}"
        )
    file = manifest.parent / name
    if not os.path.lexists(file):
        raise ArtefactError(f"{file} is missing, wanted every shard of the manifest; {_REMEDY}")
    size = _not_linked(file).stat().st_size
    if size != shard.bytes:
        raise ArtefactError(
            f"{file} is damaged: it has {size} bytes, {shard.bytes} were written; {_REMEDY}"
        )


def _not_linked(file: Path) -> Path:
    """The file itself: a link could lead to any file of the machine."""
    mode = file.lstat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "no ordinary file"
        raise ArtefactError(f"{file} is {kind}, wanted a file of the checkpoint's own; {_REMEDY}")
    return file
