"""The folder that ships: ONNX, reference, check data, plan and the hashes of all of them.

    bundle/
      student.onnx  student.check.npz     what ships; the only ONNX file that a loader meets here
      reference/
        reference.onnx  reference.check.npz
      plan.json  manifest.json  README.md  and the extra files
      config.json  model.safetensors      where transformers or timm knows the student

A loader that is given the folder picks an ONNX file by itself, and it need not be `student.onnx`:
the reference therefore lies one folder deeper. Bundles of 0.1 have both side by side and stay
readable.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opdf_compile.errors import ArtefactError
from opdf_compile.files import load_json, sha256

# The first schema has no folder in the names of its files.
SCHEMA, READABLE = "opdf-bundle/2", ("opdf-bundle/1", "opdf-bundle/2")
STUDENT, REFERENCE = "student.onnx", "reference.onnx"
REFERENCE_FOLDER = "reference"
PLAN, MANIFEST = "plan.json", "manifest.json"
# A name and a hash for each file.
_MOST_BYTES = 1 << 20
# What other commands put beside a bundle; a new export replaces these with the bundle.
_ADDED = ("README.md", "report.html", "report.json", "report.md", "*.png")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a bundle's manifest.

    Raises:
        ArtefactError: The folder has none, or one of another schema.
    """
    file = path / MANIFEST
    manifest = load_json(file, "a bundle's manifest.json", most=_MOST_BYTES, remedy="export again")
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema not in READABLE or not isinstance(manifest.get("files"), dict):
        raise ArtefactError(f"{file} has the schema {schema!r}, wanted {SCHEMA!r}; export again")
    return dict(manifest)


def is_inside(name: str) -> bool:
    """Whether a manifest's name is that of a file of the bundle.

    A manifest is data: a name that leaves the folder is never opened.
    """
    folder, slash, file = name.rpartition("/")
    at_home = folder == REFERENCE_FOLDER if slash else True
    return at_home and Path(file).name == file


def reference_of(path: Path) -> Path | None:
    """The reference of a bundle, wherever its version keeps it; None without one."""
    places = (path / REFERENCE_FOLDER / REFERENCE, path / REFERENCE)
    return next((place for place in places if place.exists()), None)


def digests_of(path: Path) -> dict[str, str]:
    """The SHA-256 of the files that a bundle lists and has, by name.

    Raises:
        ArtefactError: The manifest cannot be read.
    """
    names = [name for name in read_manifest(path)["files"] if is_inside(name)]
    return {name: sha256(path / name) for name in names if (path / name).is_file()}


def changed_files(path: Path, digests: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Names of files of a bundle that are missing or differ from the manifest.

    Args:
        path: The bundle.
        digests: Those of its files, where they are known.

    Raises:
        ArtefactError: The manifest cannot be read.
    """
    found = digests_of(path) if digests is None else digests
    return tuple(
        name
        for name, entry in read_manifest(path)["files"].items()
        if name not in found or not isinstance(entry, dict) or found[name] != entry.get("sha256")
    )


def is_bundle(path: Path) -> bool:
    """Whether a folder holds a bundle and nothing that somebody else put there."""
    try:
        listed = set(read_manifest(path)["files"])
    except ArtefactError:
        return False
    return all(
        name == MANIFEST or name in listed or any(Path(name).match(pattern) for pattern in _ADDED)
        for name in names_in(path)
    )


def planned_weights(plan: Any) -> tuple[str, ...]:
    """The weights that a plan's JSON over-parameterises; none where it is no plan."""
    try:
        return tuple(str(entry["key"]) for entry in (*plan["entries"], *plan.get("sites", ())))
    except (KeyError, TypeError, AttributeError):
        return ()


def names_in(folder: Path) -> list[str]:
    """What lies in a bundle: files, and folders in which nothing of it can lie."""
    names: list[str] = []
    for entry in folder.iterdir():
        inner = entry.iterdir() if entry.name == REFERENCE_FOLDER and entry.is_dir() else [entry]
        names.extend(found.relative_to(folder).as_posix() for found in inner)
    return sorted(names)
