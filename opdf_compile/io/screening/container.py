"""The form of a zip archive as torch writes it: stored, plain names, one folder, no overlaps."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import Any

MOST_MEMBERS = 200_000
_LONGEST_NAME = 512
_LINK = 0o120000
_KIND = 0o170000


def form_problem(
    entries: Sequence[zipfile.ZipInfo], size: int, *, one_folder: bool = True
) -> str | None:
    """What is wrong with an archive as a container, or None.

    Args:
        entries: Its members as the central directory lists them.
        size: Bytes of the whole file.
        one_folder: Whether all members must lie in one root folder, as in the formats since 2.8.
    """
    if not 0 < len(entries) <= MOST_MEMBERS:
        return f"it has {len(entries)} members; between 1 and {MOST_MEMBERS} are read"
    for entry in entries:
        problem = _entry_problem(entry)
        if problem:
            return f"the member {entry.filename[:80]!r} {problem}"
    if sum(entry.file_size for entry in entries) > size:
        return "its members add up to more than the file, so some overlap (a zip bomb)"
    if one_folder and len({entry.filename.partition("/")[0] for entry in entries}) != 1:
        return "its members lie in several root folders"
    # torch looks names up without regard to case, zip readers with.
    if len({entry.filename.lower() for entry in entries}) != len(entries):
        return "two members have the same name"
    return None


def _entry_problem(entry: zipfile.ZipInfo) -> str | None:
    name = entry.filename
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        return "is compressed, which torch never does (a zip bomb is)"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.external_attr >> 16 & _KIND == _LINK:
        return "is a symbolic link"
    parts = name.split("/")
    climbing = ".." in parts or name.startswith("/") or "\\" in name or ":" in parts[0]
    if climbing or len(name) > _LONGEST_NAME or "" in parts or "\0" in entry.orig_filename:
        return "points outside the archive or has no proper name"
    return None


def record_size(reader: Any, name: str) -> int:
    """Bytes of a member, as torch's own reader sees it."""
    # torch 2.11's reader does not tell sizes. Members are stored as they are, so reading one costs
    # no more memory than the file is long.
    told = getattr(reader, "get_record_size", None)
    return int(told(name)) if told is not None else len(reader.get_record(name))
