"""Plan files. A plan is a small JSON text, so this layer reads and writes it alone."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from opdf_compile.errors import PlanError

# A plan of ten thousand weights is about 5 MB.
MAX_BYTES = 64 * 2**20


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step; a failure leaves the former file as it was.

    Raises:
        PlanError: The file cannot be written.
    """
    name: str | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        raise PlanError(
            f"cannot write the plan to {path}: {error.strerror}; choose another file"
        ) from error


def read_plan(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        PlanError: There is no such file, it is too large, or it is no JSON.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PlanError(
                f"{path} has {path.stat().st_size:,} bytes, a plan has at most {MAX_BYTES:,}; "
                "pass the file that opdf-compile plan wrote"
            )
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise PlanError(
            f"cannot read the plan {path}: {error.strerror}; "
            "write one with opdf-compile plan MODEL -o plan.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise PlanError(
            f"{path} is not a plan: {error}; write one with opdf-compile plan MODEL -o plan.json"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that comes twice: JSON keeps the last one, whoever reads it the first."""
    found = dict(pairs)
    if len(found) != len(pairs):
        again = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise ValueError(f"it gives the key {again[:80]!r} twice")
    return found
