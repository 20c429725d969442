"""Hostile `.pt2` archives."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile_case import Build, Case

Members = dict[str, bytes]
MODEL = "models/model.json"
CONFIG = "data/weights/model_weights_config.json"
SAMPLES = "data/sample_inputs/model.pt"


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}


def write(path: Path, members: Members) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)


def members(change: Callable[[Members], object]) -> Build:
    """model.pt2 with changed members, as bad.pt2."""

    def build(good: Path, here: Path) -> None:
        found = members_of(good / "model.pt2")
        change(found)
        write(here / "bad.pt2", found)

    return build


def document(change: Callable[[Any], object], name: str = MODEL) -> Build:
    """model.pt2 with one changed JSON member."""

    def build(found: Members) -> None:
        value = json.loads(found[name])
        change(value)
        found[name] = json.dumps(value).encode()

    return members(build)


def entries(change: Callable[[zipfile.ZipFile], object]) -> Build:
    """model.pt2 with something added by zipfile itself."""

    def build(good: Path, here: Path) -> None:
        write(here / "bad.pt2", members_of(good / "model.pt2"))
        with zipfile.ZipFile(here / "bad.pt2", "a") as archive:
            change(archive)

    return build


def linked(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("archive/extra/link")
    entry.external_attr = 0o120777 << 16
    archive.writestr(entry, "/etc/passwd")


def two_directories(good: Path, here: Path) -> None:
    """A member that Python's reader does not list: its place is taken by another name."""
    write(here / "bad.pt2", members_of(good / "model.pt2") | {"extra/aaaa": b"1"})
    data = (here / "bad.pt2").read_bytes()
    place = data.rindex(b"archive/extra/aaaa")
    size = len(b"archive/extra/aaaa")
    # In the central directory only: the name ends at a NUL for Python, at its length for torch.
    changed = data[:place] + b"archive/extra/aa\0a" + data[place + size :]
    (here / "bad.pt2").write_bytes(changed)


def flipped(good: Path, here: Path) -> None:
    data = (good / "model.pt2").read_bytes()
    place = data.index(b'"graph_module"')
    (here / "bad.pt2").write_bytes(data[:place] + b'"graph_modulf"' + data[place + 14 :])


class Bomb:
    """Unpickling it would touch a file named evil."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


def torch_zip(program: bytes, records: dict[str, bytes] | None = None, method: int = 0) -> bytes:
    """A file of torch.save with a pickle of one's own."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in {"data.pkl": program, "version": b"3\n", **(records or {})}.items():
            archive.writestr(f"archive/{name}", data)
    return stream.getvalue()


def sample(data: bytes) -> Build:
    return members(lambda found: found.update({SAMPLES: data}))


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def repeated_lists() -> bytes:
    """60 lists, each of which holds the one before it twice: 2^60 values in a few hundred bytes."""
    value: list[Any] = [1]
    for _ in range(60):
        value = [value, value]
    return torch_zip(pickle.dumps(((value,), {}), protocol=2))


def tensor_claims(elements: int, size: int, stride: int) -> bytes:
    """A tensor of 16 bytes whose pickle says something else."""
    number = b"J" + struct.pack("<i", elements)
    program = opcodes(
        b"(ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n",
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number + b"tQK\x00",
        b"J" + struct.pack("<i", size) + b"\x85J" + struct.pack("<i", stride) + b"\x85\x89",
        b"ccollections\nOrderedDict\n)RtR\x85}t",
    )
    return torch_zip(program, {"data/0": bytes(16), "byteorder": b"little"})


def meta(change: Callable[[Any], object]) -> Build:
    """The description of the first weight, changed."""
    return document(lambda d: change(d["config"]["0.weight"]["tensor_meta"]), CONFIG)


def ints(*values: int) -> list[dict[str, int]]:
    return [{"as_int": value} for value in values]


def nodes(value: Any) -> list[Any]:
    found: list[Any] = value["graph_module"]["graph"]["nodes"]
    return found


def target(name: str) -> Build:
    return document(lambda d: nodes(d)[0].update(target=name))


def size(expression: str) -> Build:
    def change(value: Any) -> None:
        tensors = value["graph_module"]["graph"]["tensor_values"]
        first = next(iter(tensors))
        tensors[first]["sizes"][0] = {"as_expr": {"expr_str": expression, "hint": None}}

    return document(change)


def renamed(value: Any) -> None:
    outputs = nodes(value)[0]["outputs"]
    outputs[0]["as_tensor"]["name"] = "a = __import__('os').system('touch evil'); b"


def enum_key(value: Any) -> None:
    key = {"__enum__": True, "fqn": "evil_module:Key", "name": "A"}
    leaf = {"type": None, "context": None, "children_spec": []}
    node = {"type": "builtins.dict", "context": json.dumps([key]), "children_spec": [leaf]}
    signature = value["graph_module"]["module_call_graph"][0]["signature"]
    signature["out_spec"] = json.dumps([1, node])


def deep(found: Members) -> None:
    found[MODEL] = b'{"graph_module":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


def older(change: Callable[[Members], object]) -> Build:
    """The same program in the form of torch 2.7, changed."""

    def build(good: Path, here: Path) -> None:
        from torch._export.serde.serialize import serialize

        artifact = serialize(torch.export.load(good / "model.pt2"))
        found = {
            "version": b"8.3",
            "serialized_exported_program.json": artifact.exported_program,
            "serialized_state_dict.pt": artifact.state_dict,
            "serialized_constants.pt": artifact.constants,
            "serialized_example_inputs.pt": artifact.example_inputs,
        }
        change(found)
        with zipfile.ZipFile(here / "bad.pt2", "w") as archive:
            for name, data in found.items():
                archive.writestr(name, data)

    return build


def aliases(value: Any) -> Build:
    """expanded.pt2 with other notes about tied names."""

    def build(good: Path, here: Path) -> None:
        found = members_of(good / "expanded.pt2")
        notes = {"schema": "opdf-program/1", "axes": {}, "aliases": value}
        found["extra/opdf.json"] = json.dumps(notes).encode()
        write(here / "bad.pt2", found)

    return build


def misfit(good: Path, here: Path) -> None:
    """expanded.pt2 whose first reshape asks for another number of entries."""
    found = members_of(good / "expanded.pt2")
    value = json.loads(found[MODEL])
    shaping = next(n for n in nodes(value) if "view" in n["target"] or "reshape" in n["target"])
    shaping["inputs"][1]["arg"] = {"as_ints": [7]}
    found[MODEL] = json.dumps(value).encode()
    write(here / "bad.pt2", found)


POWER = "Pow(Integer(10), Mul(Integer(64), Integer(64), Integer(64), Integer(64), Integer(64)))"
INSPECT = "inspect bad.pt2"
FOLD = "fold bad.pt2 -o out/o.pt2"

_TABLE: list[tuple[str, Build, str]] = [
    ("unexpected member", members(lambda m: m.update({"data/x.bin": b""})), "unexpected member"),
    (
        "compiled code",
        members(lambda m: m.update({"data/aotinductor/m/a.so": b""})),
        "compiled code",
    ),
    (
        "compressed bomb",
        entries(lambda z: z.writestr("archive/extra/a", bytes(1 << 24), zipfile.ZIP_DEFLATED)),
        "(a zip bomb is)",
    ),
    ("climbing member", entries(lambda z: z.writestr("archive/../../evil", "")), "points outside"),
    ("absolute member", entries(lambda z: z.writestr("/tmp/evil", "")), "points outside"),
    (
        "two members of one name",
        entries(lambda z: z.writestr("archive/extra/PLAN.json", "")),
        "same name",
    ),
    ("link member", entries(linked), "is a symbolic link"),
    ("two directories", two_directories, "no proper name"),
    ("wrong checksum", flipped, "cannot be opened by torch"),
    ("pickle that runs code", sample(saved(((Bomb(),), {}))), "so it could run code"),
    (
        "pickle that allocates",
        sample(torch_zip(opcodes(b"c__builtin__\nbytearray\n\x8a\x05\xff\xff\xff\xff\x0f\x85R"))),
        "so it could run code",
    ),
    (
        "pickle with a huge index",
        sample(torch_zip(opcodes(b"Nr\xff\xff\xff\x7f"))),
        "a damaged pickle",
    ),
    ("pickle of 2^60 values", sample(repeated_lists()), "hold more than 100000 values"),
    ("pickle that reads foreign memory", sample(tensor_claims(1 << 30, 4, 1)), "claims 4294967296"),
    ("pickle with a view outside", sample(tensor_claims(4, 9, 1)), "reaches item 8 of the 4"),
    (
        "pickle with a view that repeats",
        sample(tensor_claims(4, (1 << 31) - 1, 0)),
        "repeats its bytes",
    ),
    (
        "pickle in a bomb",
        sample(torch_zip(bytes(1 << 22), method=zipfile.ZIP_DEFLATED)),
        "a pickle was found that is refused",
    ),
    ("pickle of no archive", sample(pickle.dumps(Bomb(), protocol=2)), "not in the form"),
    ("size that is a call", size("__import__('os').system('touch evil')"), "not allowed in a size"),
    ("size without end", size(POWER), "a number of more than 4000 digits"),
    (
        "guard that is a call",
        document(lambda d: d.update(guards_code=["__import__('os').system('touch evil')"])),
        "not allowed in a guard",
    ),
    (
        "number of 5000 digits",
        members(lambda m: m.update({MODEL: b'{"schema_version": %s}' % (b"9" * 5000)})),
        "it is no JSON",
    ),
    ("operator that opens files", target("torch.ops.aten.from_file.default"), "opens files"),
    ("operator that prints", target("torch.ops.aten._print.default"), "computes no tensor"),
    ("operator of nobody", target("torch.ops.evil.run.default"), "not registered in this process"),
    ("function of Python", target("torch.serialization.os.system"), "not the name of an operator"),
    (
        "kernel as text",
        target("torch.ops.higher_order.triton_kernel_wrapper_functional"),
        "not arithmetic or control flow",
    ),
    ("name that is code", document(renamed), "is not a plain name"),
    ("key that imports a module", document(enum_key), "neither text nor number"),
    ("unknown dtype", meta(lambda m: m.update(dtype=99)), "unknown dtype"),
    ("device without values", meta(lambda m: m["device"].update(type="meta")), "has no values"),
    (
        "unknown device",
        meta(lambda m: m["device"].update(type="evil")),
        "cannot be opened by torch",
    ),
    (
        "huge size on little storage",
        meta(lambda m: m.update(sizes=ints(1 << 40, 8))),
        "of the 128 that the file holds",
    ),
    (
        "huge size without strides",
        meta(lambda m: m.update(sizes=ints(1 << 20, 1 << 20), strides=ints(0, 0))),
        "repeats its bytes",
    ),
    (
        "offset beyond the storage",
        meta(lambda m: m.update(storage_offset={"as_int": 1 << 20})),
        "reaches item",
    ),
    (
        "negative offset",
        meta(lambda m: m.update(storage_offset={"as_int": -8})),
        "absurd sizes, strides or offset",
    ),
    (
        "text that is none",
        members(lambda m: m.update({"extra/plan.json": b"\xff\xfe"})),
        "other than UTF-8 text",
    ),
    (
        "newer schema",
        document(lambda d: d["schema_version"].update(major=9)),
        "reads version 8; update torch",
    ),
    ("JSON without end", members(deep), "it is no JSON"),
    (
        "older archive with code",
        older(lambda m: m.update({"serialized_state_dict.pt": saved({"a": Bomb()})})),
        "so it could run code",
    ),
    (
        "older archive with a stranger",
        older(lambda m: m.update({"../evil": b""})),
        "points outside the archive",
    ),
]
PT2 = (
    *(Case(name, build, INSPECT, words) for name, build, words in _TABLE),
    Case("notes with a number", aliases({"0.weight": 7}), FOLD, "notes about tied weights"),
    Case("cores that do not fit", misfit, FOLD, "cannot be folded"),
    Case("notes over a weight", aliases({"0.weight": ["2.weight"]}), FOLD, "notes about tied"),
)
