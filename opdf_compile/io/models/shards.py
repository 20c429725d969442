"""Which safetensors files hold a model's weights: one file, or the shards that an index names.

    model.safetensors                   everything
    model.safetensors.index.json        {"weight_map": {name: file}}, the files beside it

An index is data that somebody wrote: a name in it must be a plain file of the index's own folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opdf_compile.errors import ArtefactError
from opdf_compile.files import load_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_INDEX = 64 << 20
# The cache of the Hugging Face hub links each file of a snapshot to a blob two folders above.
_BLOBS = ("..", "..", "blobs")


def weight_files(folder: Path) -> dict[Path, frozenset[str] | None]:
    """The safetensors files of a folder, each with the names that the index expects in it.

    Args:
        folder: As `save_pretrained` or timm wrote it, or a snapshot of the hub's cache.

    Returns:
        Files in a fixed order; None where there is no index and the whole file counts. Empty where
        the folder holds neither file.

    Raises:
        ArtefactError: The index is damaged, or names a file outside, missing, or not safetensors.
    """
    if (folder / WEIGHTS).is_file():
        return {_inside(folder, WEIGHTS, f"{folder}"): None}
    if not (folder / INDEX).is_file():
        return {}
    names: dict[str, set[str]] = {}
    for name, file in _weight_map(folder / INDEX).items():
        names.setdefault(file, set()).add(name)
    index = folder / INDEX
    return {_inside(folder, file, f"{index}"): frozenset(names[file]) for file in sorted(names)}


def read_json_object(file: Path, wanted: str, most: int = LARGEST_INDEX) -> dict[str, Any]:
    """A JSON object from a small file whose keys are all different.

    Raises:
        ArtefactError: As `load_json`, or it is no object.
    """
    found = load_json(file, wanted, most=most)
    if not isinstance(found, dict):
        raise ArtefactError(
            f"{file} holds a {type(found).__name__}, wanted {wanted}; write it again"
        )
    return found


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json_object(index, "an index of shards").get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ArtefactError(f"{index} has no weight_map, wanted an index of shards; write it again")
    for name, file in found.items():
        if not isinstance(file, str):
            raise ArtefactError(
                f"{index} gives {name!r} a {type(file).__name__}, wanted the name of a file; write "
                "it again"
            )
    return found


def _inside(folder: Path, name: str, source: str) -> Path:
    """A shard as a path, after checking where it lies."""
    file = folder / name
    if Path(name).name != name or "\0" in name or not name.endswith(".safetensors"):
        raise ArtefactError(
            f"{source} names the shard {name!r}, wanted a .safetensors file of its own folder; "
            "write it again"
        )
    if not file.is_file():
        raise ArtefactError(
            f"{source} names the shard {name!r}, which is not there; fetch or write it again"
        )
    real, home = file.resolve(), folder.resolve()
    if real.parent not in (home, home.joinpath(*_BLOBS).resolve()):
        raise ArtefactError(
            f"{source} names the shard {name!r}, which is a link out of the folder; copy the file "
            "into it"
        )
    return file
