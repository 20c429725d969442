"""What a run was started with, so that it is only ever gone on with as the same run."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.distill.recipe import Job
from opdf_compile.errors import ArtefactError
from opdf_compile.files import read_failure
from opdf_compile.version import __version__, installed_version

SCHEMA = "opdf-run/1"
OWN = "opdf-compile"
_PACKAGES = ("torch", "accelerate", "numpy", "safetensors")
# What their loading changes in a run; recorded where the run uses them.
_MODEL_PACKAGES = ("timm", "transformers", "datasets", "scikit-learn")
# A change of these changes nothing that is trained.
_FREE = {
    "training": {"log_with", "keep", "checkpoint_every", "device"},
    "export": None,
    "verify": None,
}


def lock_of(job: Job, student: nn.Module) -> dict[str, Any]:
    """The lock of a job."""
    data = job.data
    return {
        "schema": SCHEMA,
        "recipe": job.recipe.model_dump(mode="json"),
        "seed": job.recipe.training.seed,
        "data": {
            "source": data.source,
            "sha256": data.fingerprint,
            "examples": {n: len(getattr(data, n)) for n in ("train", "validation", "test")},
        },
        "student": module_hash(student),
        "teacher": None if job.teacher is None else module_hash(job.teacher),
        "versions": _versions(),
    }


def module_hash(module: nn.Module) -> str:
    """SHA-256 over the class's name and all tensors of the state dict with names, dtypes, shapes.

    Not over the module that the class lies in: for a FILE.py that name depends on its folder.
    """
    digest = hashlib.sha256(type(module).__qualname__.encode())
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"\0{name} {value.dtype} {tuple(value.shape)}\0".encode())
            # As bytes: numpy knows no bfloat16.
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), OWN: __version__}
    others = {name: installed_version(name) for name in (*_PACKAGES, *_MODEL_PACKAGES)}
    return found | {name: version for name, version in others.items() if version is not None}


def read_lock(file: Path) -> dict[str, Any]:
    """Read a run's lock.

    Raises:
        ArtefactError: It is none.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError(read_failure(file, error)) from error
    except (ValueError, RecursionError) as error:
        raise ArtefactError(
            f"{file} is damaged ({str(error)[:80].rstrip('.')}), wanted the lock of a run; give "
            "another folder with -o, or delete this one if its run is not needed"
        ) from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise ArtefactError(
            f"{file} has the schema {found!r}, wanted {SCHEMA!r}; give another folder with -o"
        )
    return value


def require_same(file: Path, now: Mapping[str, Any]) -> None:
    """Compare the lock in a folder with that of the job that wants to go on.

    Raises:
        ArtefactError: They differ in something that the result depends on.
    """
    saved = read_lock(file)
    odd = list(_differences(_bound(saved), _bound(now)))
    if not odd:
        return
    listed = "; ".join(odd[:3]) + (f"; and {len(odd) - 3} more" if len(odd) > 3 else "")
    raise ArtefactError(
        f"{file.parent} holds the run of something else: {listed}; put it back as it was to go on "
        "with that run, or give another folder with -o"
    )


def _bound(lock: Mapping[str, Any]) -> dict[str, Any]:
    """The lock without what may change between two parts of one run."""
    recipe = {
        section: {k: v for k, v in keys.items() if k not in (_FREE.get(section) or ())}
        if isinstance(keys, dict)
        else keys
        for section, keys in dict(lock.get("recipe") or {}).items()
        if not (section in _FREE and _FREE[section] is None)
    }
    return {**lock, "recipe": recipe}


def _differences(saved: Any, now: Any, place: str = "") -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in sorted({*saved, *now}):
            inner = f"{place}.{key}" if place else str(key)
            yield from _differences(saved.get(key), now.get(key), inner)
    elif saved != now:
        yield _said(place, saved, now)


def _said(place: str, saved: Any, now: Any) -> str:
    short = {"student": "the start weights of the student", "teacher": "the teacher's weights"}
    if place in short:
        return f"{short[place]} are others"
    if place == "data.sha256":
        return "the contents of the data are others"
    section, _, key = place.partition(".")
    if section == "versions":
        # It is on no index.
        back = "install its wheel" if key == OWN else f"pip install {key}=={saved}"
        return f"it was started with {key} {saved}, this is {now} ({back})"
    if section == "recipe":
        table, _, entry = key.partition(".")
        return f"its recipe has [{table}] {entry} = {json.dumps(saved)}, this one {json.dumps(now)}"
    return f"{place} was {json.dumps(saved)} and is {json.dumps(now)}"
