"""Names of initialisers -> keys of a state dict, one to one.

A key is the initialiser's own name wherever torch allows it: `encoder.layer.0.weight` is that key,
`onnx::MatMul_12` becomes `onnx__MatMul_12`. The keys follow from the file alone, so that a fold
finds the initialiser of each key again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from opdf_compile.artefacts import Address

_ODD = re.compile(r"[^0-9A-Za-z_.]")
# A key that looks like a core's would be taken for one.
_CORE = re.compile(r"_cores\.\d+$")


def keys_of(addresses: Iterable[Address]) -> dict[Address, str]:
    """A key for each address; equal ones have equal keys in every run."""
    keys: dict[Address, str] = {}
    used: set[str] = set()
    folders: set[str] = set()
    for address in addresses:
        if address in keys:
            continue
        key = _free(_plain(address[1]), used, folders)
        keys[address] = key
        used.add(key)
        folders.update(_above(key))
    return keys


def identifier(name: str) -> str:
    """A name as a Python identifier."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    return plain if plain and not plain[0].isdigit() else f"_{plain}"


def _plain(name: str) -> str:
    key = _ODD.sub("_", name)
    parts = key.split(".")
    if not all(parts) or _CORE.search(key):
        return key.replace(".", "_") or "_"
    return key


def _free(key: str, used: set[str], folders: set[str]) -> str:
    """The key, or one that is neither taken nor a folder of another."""
    for candidate in (key, key.replace(".", "_")):
        if _fits(candidate, used, folders):
            return candidate
    number = 2
    while not _fits(f"{key.replace('.', '_')}_{number}", used, folders):
        number += 1
    return f"{key.replace('.', '_')}_{number}"


def _fits(key: str, used: set[str], folders: set[str]) -> bool:
    return key not in used and key not in folders and not any(a in used for a in _above(key))


def _above(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
