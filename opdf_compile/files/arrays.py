"""Arrays by name from an `.npz` file that nobody vouches for.

numpy reads the header of an array, allocates what it claims, and only then notices that the bytes
are not there; and a compressed entry may unpack to a thousand times its size. So every header is
compared with the size of its entry, and all sizes with a limit, before numpy sees the file.
Objects, which would be pickles, are refused.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any

LARGEST_BYTES = 8 << 30
# Numbers rarely compress below a tenth; zeros, of which a bomb is made, to a thousandth.
MOST_INFLATION = 100
_SMALL = 64 << 20
_MOST_ARRAYS = 100_000
# A damaged archive fails wherever the damage is: in its directory, an entry's compression or
# encryption flags, its stream, or the array header, each with an exception of its own.
DAMAGE = (
    *(OSError, ValueError, TypeError, EOFError, LookupError, MemoryError, RuntimeError),
    *(SyntaxError, OverflowError, struct.error, zipfile.BadZipFile, zlib.error),
)


def read_npz(file: Path) -> dict[str, Any]:
    """Read every array of the file.

    Returns:
        numpy arrays by name.

    Raises:
        ValueError: It is no such file, or claims more than it holds or may hold. Damage
            makes zipfile and numpy raise any of `DAMAGE`.
    """
    import numpy as np

    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        _check_sizes(entries, file.stat().st_size)
        for entry in entries:
            _check_header(archive, entry)
    arrays = {}
    with np.load(file, allow_pickle=False) as stored:
        for name in stored.files:
            arrays[name] = stored[name]
            # numpy hands out an entry that is no array as its bytes.
            if not isinstance(arrays[name], np.ndarray):
                raise ValueError(f"its entry {name!r} is no array")
    return arrays


def _check_sizes(entries: list[zipfile.ZipInfo], size: int) -> None:
    if len(entries) > _MOST_ARRAYS:
        raise ValueError(f"it holds {len(entries)} arrays, at most {_MOST_ARRAYS} are read")
    if len({entry.filename for entry in entries}) != len(entries):
        raise ValueError("two of its arrays have one name")
    total = sum(entry.file_size for entry in entries)
    if total > LARGEST_BYTES:
        raise ValueError(f"it would unpack to {total} bytes, at most {LARGEST_BYTES} are read")
    if total > max(_SMALL, MOST_INFLATION * size):
        raise ValueError(
            f"it would unpack to {total} bytes, more than {MOST_INFLATION} times the file (a zip "
            "bomb)"
        )


def _check_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Compare what an array's header claims with the bytes that are there."""
    from numpy.lib import format as npy

    if not entry.filename.endswith(".npy"):
        raise ValueError(f"its entry {entry.filename[:80]!r} is no array")
    with archive.open(entry) as stream:
        version = npy.read_magic(stream)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"its entry {entry.filename[:80]!r} has an unknown version")
        shape, _, dtype = readers[version](stream)
        held = entry.file_size - stream.tell()
    if dtype.hasobject:
        raise ValueError(f"its entry {entry.filename[:80]!r} holds objects, that is a pickle")
    claimed = prod(shape) * dtype.itemsize
    if claimed != held or any(length < 0 for length in shape):
        raise ValueError(
            f"its entry {entry.filename[:80]!r} claims {claimed} bytes and holds {held}"
        )
