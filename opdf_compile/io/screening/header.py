"""The header of a safetensors file: checked before its reader, or anything it claims, is believed.

    8 bytes length | JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__"}

Tensors must follow each other without gap or overlap and end where the file ends; safetensors
checks most of this as well, in less helpful words, and lets the last of two equal names win.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from opdf_compile.errors import ArtefactError
from opdf_compile.files import read_failure

# A header of 300,000 tensors; Python needs 20 times as much to hold it. safetensors allows 100 MB.
LARGEST_HEADER = 32 << 20
_MOST_AXES = 64
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_FIELDS = {"dtype", "shape", "data_offsets"}


def check_header(file: Path) -> None:
    """Refuse a file whose header is damaged, absurd, or contradicts itself or the file.

    Raises:
        ArtefactError: One sentence with what was found.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(8)
            length = int.from_bytes(head, "little")
            _check_length(file, len(head), length, size)
            text = stream.read(length)
    except OSError as error:
        raise ArtefactError(read_failure(file, error)) from error
    problem = _problem(text, size - 8 - length)
    if problem:
        raise ArtefactError(
            f"{file} is no readable safetensors file ({problem}); write it again with "
            "safetensors.torch.save_file"
        )


def _check_length(file: Path, head: int, length: int, size: int) -> None:
    if head < 8 or length > size - 8:
        raise ArtefactError(
            f"{file} is cut short or no safetensors file (its header claims {length} bytes, the "
            f"file has {size}); write it again"
        )
    if length > LARGEST_HEADER:
        raise ArtefactError(
            f"{file} is refused: its header claims {length} bytes, at most {LARGEST_HEADER} are "
            "read; write it again"
        )


def _problem(text: bytes, data: int) -> str | None:
    """What is wrong with a header, or None."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError:
        return "its header is not UTF-8"
    except RecursionError:
        return "its header is nested without end"
    except ValueError as error:
        return f"its header is no JSON: {str(error)[:80]}"
    if not isinstance(header, dict):
        return f"its header is a {type(header).__name__}, not an object"
    problem = _metadata_problem(header.pop("__metadata__", {}))
    if problem:
        return problem
    for name, entry in header.items():
        problem = _entry_problem(entry)
        if problem:
            return f"the tensor {name[:80]!r} {problem}"
    return _order_problem(header, data)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:80]!r} comes twice")
        found[name] = value
    return found


def _metadata_problem(metadata: object) -> str | None:
    if not isinstance(metadata, dict):
        return f"its metadata is a {type(metadata).__name__}, not texts by name"
    wrong = next((n for n, text in metadata.items() if not isinstance(text, str)), None)
    return None if wrong is None else f"its metadata {wrong[:80]!r} is no text"


def _entry_problem(entry: object) -> str | None:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        return "has no dtype, shape and data_offsets, or more than these"
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _BYTES:
        return f"has the unknown dtype {str(entry['dtype'])[:20]!r}"
    if not _counts(shape) or len(shape) > _MOST_AXES:
        return "has a shape that is no list of sizes"
    if not _counts(offsets) or len(offsets) != 2:
        return "has data_offsets that are no two numbers from 0 up"
    if offsets[1] < offsets[0]:
        return f"ends at byte {offsets[1]}, before it begins at {offsets[0]}"
    wanted = prod(shape) * _BYTES[entry["dtype"]]
    if offsets[1] - offsets[0] != wanted:
        return f"has {offsets[1] - offsets[0]} bytes, its shape and dtype want {wanted}"
    return None


def _counts(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _order_problem(header: dict[str, Any], data: int) -> str | None:
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, after = entry["data_offsets"]
        if begin != end:
            what = "overlaps another one" if begin < end else "leaves a gap before it"
            return f"the tensor {name[:80]!r} {what} (it begins at byte {begin}, not {end})"
        end = after
    if end != data:
        return f"its tensors end at byte {end}, the file holds {data} bytes of data"
    return None
