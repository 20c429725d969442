"""JSON from a small file that nobody vouches for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opdf_compile.errors import ArtefactError
from opdf_compile.files.atomic import existing_file, read_failure


def load_json(file: Path, wanted: str, *, most: int, remedy: str = "write it again") -> Any:
    """The JSON value in a file, in which no key comes twice.

    Args:
        file: The file.
        wanted: What it should be, for the sentence ("an index of shards").
        most: How many bytes are read; Python needs many times that to hold them.
        remedy: What to do where it is something else.

    Raises:
        ArtefactError: It is missing, too large, or no such JSON.
    """
    existing_file(file, wanted=wanted)
    size = file.stat().st_size
    if size > most:
        raise ArtefactError(f"{file} has {size} bytes, at most {most} are read; {remedy}")
    try:
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise ArtefactError(read_failure(file, error)) from error
    except (ValueError, RecursionError) as error:
        reason = str(error)[:100].rstrip(".")
        raise ArtefactError(f"{file} is no JSON ({reason}), wanted {wanted}; {remedy}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON keeps the last of two equal keys; another reader may keep the first.
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it gives a key twice")
    return found
