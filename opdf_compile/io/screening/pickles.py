"""The pickles inside a `.pt2`: sample inputs, and weights as older versions wrote them.

`torch.load(weights_only=True)` runs nothing that a file names, but it trusts its numbers: lengths,
indices, sizes. So a pickle is looked at three times before torch loads it:

1. opcode by opcode: only those that `torch.save` writes, only names of tensors and plain values;
2. with a reader whose every callable is a stand-in: each tensor must lie inside its own bytes;
3. as objects (`check_sample`, `check_state`): plain containers, not nested or repeated without end.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from opdf_compile.io.screening.container import form_problem, record_size
from opdf_compile.io.screening.extents import Extents
from opdf_compile.io.screening.syntax import NotPlain

LARGEST_PICKLE = 64 << 20
_OPCODES = frozenset(
    """
    PROTO STOP MARK GLOBAL REDUCE BUILD BINPERSID BINPUT LONG_BINPUT BINGET LONG_BINGET
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE
    """.split()  # noqa: SIM905
)
_STORAGE = re.compile(r"torch (\w+)Storage|torch\.storage (Untyped)Storage")
_STORAGE_BYTES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "Untyped"), 1),
    **dict.fromkeys(("Short", "Half", "BFloat16"), 2),
    **dict.fromkeys(("Int", "Float"), 4),
    **dict.fromkeys(("Long", "Double", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
_REBUILDERS = frozenset(
    f"torch._utils _rebuild_{name}"
    for name in ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")
)
_VALUES: dict[str, Any] = {
    "collections OrderedDict": OrderedDict,
    "__builtin__ complex": complex,
    "builtins complex": complex,
    "torch Size": tuple,
    "torch device": str,
}
_DTYPE = re.compile(r"torch (\w+)")


def load_plain(data: bytes) -> Any:
    """Load a pickle of tensors and plain values, or refuse it; nothing in it runs.

    Raises:
        NotPlain: It is more than that, or a tensor in it reaches outside its bytes.
    """
    reader, program = _open(data)
    _check_opcodes(program)
    try:
        _Stand(reader, program).load()
    except NotPlain:
        raise
    except Exception as error:  # Whatever the pickle provokes, the answer is the same.
        raise NotPlain("a damaged pickle was found") from error
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise NotPlain(_CODE) from error


_CODE = "a pickle was found that is more than tensors, so it could run code"


def _open(data: bytes) -> tuple[Any, bytes]:
    """The reader that torch uses, and the pickle proper, after the form of the archive."""
    if not data.startswith(b"PK"):
        raise NotPlain("a pickle was found that is not in the form that torch.save writes")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            problem = form_problem(archive.infolist(), len(data))
        if problem:
            raise NotPlain(f"a pickle was found that is refused: {problem}")
        reader = torch._C.PyTorchFileReader(io.BytesIO(data))
        names = reader.get_all_records()
        if "data.pkl" not in names or "constants.pkl" in names:
            raise NotPlain(_CODE)
        if record_size(reader, "data.pkl") > LARGEST_PICKLE:
            raise NotPlain(f"a pickle of more than {LARGEST_PICKLE} bytes was found")
        return reader, reader.get_record("data.pkl")
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError) as error:
        if isinstance(error, NotPlain):
            raise
        raise NotPlain("a damaged pickle was found") from error


def _check_opcodes(program: bytes) -> None:
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if opcode.name not in _OPCODES:
                raise NotPlain(_CODE)
            if opcode.name == "GLOBAL" and not _known(str(argument)):
                raise NotPlain(_CODE)
            # The reader in C allocates as many places as the largest index says.
            if "PUT" in opcode.name and isinstance(argument, int) and argument > count:
                raise NotPlain("a damaged pickle was found")
    except NotPlain:
        raise
    except Exception as error:  # genops raises whatever the bytes provoke.
        raise NotPlain("a damaged pickle was found") from error


def _known(name: str) -> bool:
    if name in _VALUES or name in _REBUILDERS:
        return True
    storage = _STORAGE.fullmatch(name)
    if storage:
        return (storage[1] or storage[2]) in _STORAGE_BYTES
    dtype = _DTYPE.fullmatch(name)
    return dtype is not None and isinstance(getattr(torch, dtype[1], None), torch.dtype)


class _Storage:
    """Stands for a storage class (bytes per item), and for one storage (its items)."""

    __slots__ = ("elements", "itemsize")

    def __init__(self, itemsize: int, elements: int = 0) -> None:
        self.itemsize, self.elements = itemsize, elements


class _Rebuild:
    """Stands for torch's functions that make a tensor of a storage: checks, makes nothing."""

    __slots__ = ("_extents", "_parameter", "_third")

    def __init__(self, name: str, extents: Extents) -> None:
        self._parameter, self._third = "parameter" in name, name.endswith("v3")
        self._extents = extents

    def __call__(self, *given: Any) -> None:
        if self._parameter:
            return  # Its first argument is a tensor that was checked when it was made.
        storage, offset, sizes, strides = given[:4]
        elements, itemsize = storage.elements, storage.itemsize
        if self._third:
            # The bytes are untyped; the dtype comes with the tensor.
            itemsize = given[6].itemsize
            elements = storage.elements // itemsize
        self._extents.check(
            "a tensor in a pickle",
            tuple(sizes),
            tuple(strides),
            offset,
            elements=elements,
            itemsize=itemsize,
        )


class _Stand(pickle.Unpickler):
    """Reads a pickle whose opcodes were checked, with a stand-in for every callable."""

    def __init__(self, reader: Any, program: bytes) -> None:
        super().__init__(io.BytesIO(program))
        self._reader = reader
        self._extents = Extents()

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in, or a harmless class of Python's own."""
        known = f"{module} {name}".replace("__builtin__", "builtins")
        if known in _VALUES:
            return _VALUES[known]
        if known in _REBUILDERS:
            return _Rebuild(name, self._extents)
        storage = _STORAGE.fullmatch(known)
        if storage:
            return _Storage(_STORAGE_BYTES[storage[1] or storage[2]])
        return getattr(torch, name)

    def persistent_load(self, identity: Any) -> Any:
        """A storage, whose length must be that of its bytes."""
        kind, storage, key, _, elements = identity
        if kind != "storage" or type(elements) is not int:
            raise NotPlain("a damaged pickle was found")
        size = record_size(self._reader, f"data/{key}")
        if elements * storage.itemsize != size:
            raise NotPlain(
                f"a tensor in a pickle claims {elements * storage.itemsize} bytes, the file holds "
                f"{size} for it"
            )
        return _Storage(storage.itemsize, elements)


def check_state(value: Any) -> None:
    """Accept tensors by name, as older versions pickled a program's weights and constants.

    Raises:
        NotPlain: It is something else.
    """
    if not isinstance(value, dict):
        raise NotPlain(f"a {type(value).__name__} stands where tensors by name belong")
    for name, tensor in value.items():
        if not isinstance(name, str) or type(tensor) not in (Tensor, torch.nn.Parameter):
            raise NotPlain(f"a {type(tensor).__name__} stands where tensors by name belong")
