"""Archives that the screening refuses, each harmless, and the words of the refusal.

Where a guard keeps code from running, a name that does nothing and is on no whitelist stands in its
place; where it keeps memory from filling, the limit is lowered.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from archives import (
    CONSTANTS,
    MODEL,
    SAMPLES,
    WEIGHTS,
    Members,
    edit,
    saved,
    torch_zip,
)
from refused_texts import raising

from opdf_compile.io.screening import archive as screening
from opdf_compile.io.screening import container, extents, pickles, trees

# A name that unpickles harmlessly, and that no model file needs.
STRANGER = Counter("harmless")


@dataclass(frozen=True)
class Archive:
    """An archive that is refused: how the unharmed one is changed, the words, lowered limits."""

    craft: Callable[[Members], object]
    words: str
    limits: dict[tuple[Any, str], Any] = field(default_factory=dict)


def add(name: str, data: bytes = b"x") -> Callable[[Members], object]:
    return lambda members: members.update({name: data})


def remove(name: str) -> Callable[[Members], object]:
    return lambda members: members.pop(name)


def model(change: Callable[[Any], object]) -> Callable[[Members], object]:
    return lambda members: edit(members, MODEL, change)


def graph(change: Callable[[Any], object]) -> Callable[[Members], object]:
    return model(lambda document: change(document["graph_module"]["graph"]))


def signature(**changes: Any) -> Callable[[Members], object]:
    return model(
        lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(changes),
    )


def renamed(old: str, new: str) -> Callable[[Members], object]:
    """Another text wherever the program has this one, among keys and values."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {(new if k == old else k): walk(v) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        return new if value == old else value

    def craft(members: Members) -> None:
        for name in (MODEL, CONSTANTS):
            members[name] = json.dumps(walk(json.loads(members[name]))).encode()

    return craft


def first_size(expression: str) -> Callable[[Members], object]:
    value = {"as_expr": {"expr_str": expression, "hint": None}}
    return graph(lambda g: g["tensor_values"]["x"]["sizes"].__setitem__(0, value))


def target(name: str) -> Callable[[Members], object]:
    return graph(lambda g: g["nodes"][0].update(target=name))


def inner_target(name: str) -> Callable[[Members], object]:
    """The operator of a graph inside the graph."""

    def change(outer: Any) -> None:
        wrapped = next(n for n in outer["nodes"] if "wrap_with_set_grad" in n["target"])
        inner = wrapped["inputs"][1]["arg"]["as_graph"]["graph"]
        inner["nodes"][0]["target"] = name

    return graph(change)


def option(name: str) -> Callable[[Members], object]:
    def change(outer: Any) -> None:
        wrapped = next(n for n in outer["nodes"] if "wrap_with_set_grad" in n["target"])
        wrapped["inputs"][0].update(name=name, kind=2)

    return graph(change)


def meta(**changes: Any) -> Callable[[Members], object]:
    """The description of one weight of 4 x 4 numbers, changed."""
    return lambda members: edit(
        members, WEIGHTS, lambda d: d["config"]["layer.weight"]["tensor_meta"].update(changes)
    )


def ints(*values: int) -> list[dict[str, int]]:
    return [{"as_int": value} for value in values]


def weight_pickle(members: Members) -> None:
    def change(document: Any) -> None:
        entry = document["config"]["layer.weight"]
        entry["use_pickle"] = True
        members[f"data/weights/{entry['path_name']}"] = saved(STRANGER)

    edit(members, WEIGHTS, change)


def no_bytes(members: Members) -> None:
    entry = json.loads(members[WEIGHTS])["config"]["layer.weight"]
    members[f"data/weights/{entry['path_name']}"] = b""


def payload(name: str) -> Callable[[Members], object]:
    return lambda members: edit(
        members, WEIGHTS, lambda d: d["config"]["layer.weight"].update(path_name=name)
    )


def sample(data: bytes) -> Callable[[Members], object]:
    return add(SAMPLES, data)


def opcodes(*parts: bytes) -> bytes:
    return torch_zip(b"\x80\x02" + b"".join(parts) + b".")


def one_tensor(claimed: int, size: int, stride: int, key: bytes = b"storage") -> bytes:
    """A tensor on a storage of four numbers whose pickle may say something else."""
    name = b"X" + struct.pack("<i", len(key)) + key
    program = b"".join(
        (
            b"\x80\x02(ctorch._utils\n_rebuild_tensor_v2\n((" + name + b"ctorch\nFloatStorage\n",
            b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ" + struct.pack("<i", claimed) + b"tQK\x00",
            b"J" + struct.pack("<i", size) + b"\x85J" + struct.pack("<i", stride) + b"\x85\x89",
            b"ccollections\nOrderedDict\n)RtR\x85}t.",
        )
    )
    return torch_zip(program, {"data/0": bytes(16), "byteorder": b"little"})


def without_pickle() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/version", b"3\n")
    return stream.getvalue()


LEAF = {"type": None, "context": None, "children_spec": []}
MODULE_KEY = {"__enum__": True, "fqn": "http:HTTPStatus", "name": "OK"}
BY_MODULE = json.dumps(
    [1, {"type": "builtins.dict", "context": json.dumps([MODULE_KEY]), "children_spec": [LEAF]}]
)
BY_DEFAULT = json.dumps(
    [
        1,
        {
            "type": "collections.defaultdict",
            "context": {
                "default_factory_module": "builtins",
                "default_factory_name": "list",
                "dict_context": ["a"],
            },
            "children_spec": [LEAF],
        },
    ]
)
_ARGUMENTS = {"type": "builtins.tuple", "context": "null", "children_spec": []}
_KEYWORDS = {
    "type": "builtins.dict",
    "context": json.dumps(["x", "two words"]),
    "children_spec": [LEAF, LEAF],
}
KEYWORDS = json.dumps(
    [
        1,
        {
            "type": "builtins.tuple",
            "context": "null",
            "children_spec": [_ARGUMENTS, _KEYWORDS],
        },
    ]
)
MORE = "more than tensors, so it could run code"

MEMBERS = {
    "a name above the archive": Archive(add("../../notes.txt"), "points outside the archive"),
    "an absolute name": Archive(add("/notes.txt"), "points outside the archive"),
    "a name of another system": Archive(add("data\\..\\notes.txt"), "points outside the archive"),
    "a long name": Archive(add("extra/" + "a" * 600), "has no proper name"),
    "an unexpected member": Archive(add("data/notes.pkl"), "unexpected member 'data/notes.pkl'"),
    "compiled code": Archive(add("data/aotinductor/model/a.so"), "compiled code"),
    "a library": Archive(add("extra/a.so"), "compiled code"),
    "a custom object": Archive(add("data/constants/custom_obj_0"), "a custom object"),
    "an opaque object": Archive(add("data/constants/opaque_obj_0"), "a custom object"),
    "two members of one name": Archive(add("MODELS/model.json"), "have the same name"),
    "bytes for a text": Archive(add("extra/plan.bin", b"\xff\xfe"), "other than UTF-8"),
    "no format": Archive(remove("archive_format"), "is a zip file but no .pt2"),
    "more members than are read": Archive(
        lambda _: None, "members; between 1 and 3", {(container, "MOST_MEMBERS"): 3}
    ),
    "more text than is read": Archive(
        add("extra/plan.json", b"a" * 100_001),
        "100001 bytes of text were found; at most 100000",
        {(screening, "LARGEST_TEXT"): 100_000},
    ),
    "more JSON than is read": Archive(
        remove("extra/plan.json"),
        "bytes of JSON were found; at most 8",
        {(screening, "LARGEST_TEXT"): 8},
    ),
    "JSON that is none": Archive(add(MODEL, b"\xff"), "it is no JSON"),
    "half a program": Archive(add(MODEL, b'{"graph_module": '), "it is no JSON"),
    "no program": Archive(remove(MODEL), "no program called 'model'"),
    "no weights": Archive(remove(WEIGHTS), "cannot be opened by torch"),
    "an archive that torch cannot open": Archive(
        lambda _: None,
        "is damaged or cut short",
        {(torch._C, "PyTorchFileReader"): raising(RuntimeError)},
    ),
    "a member that torch cannot read": Archive(
        lambda _: None,
        "is damaged or cut short",
        {(screening, "parse_json"): raising(RuntimeError)},
    ),
    "another list of members": Archive(
        lambda _: None,
        "its two lists of members differ",
        {(screening, "record_size"): lambda *_: 7},
    ),
    "a newer schema": Archive(
        model(lambda d: d["schema_version"].update(major=9)), "reads version 8; update torch"
    ),
    "an older schema": Archive(
        model(lambda d: d["schema_version"].update(major=7)), "export it again with this torch"
    ),
}
TEXTS_OF_PROGRAMS = {
    "a size of an unknown function": Archive(
        first_size("double(s0)"), "SymExpr.expr_str: .*not allowed in a size"
    ),
    "a size of a weight": Archive(
        meta(storage_offset={"as_expr": {"expr_str": "double(s0)", "hint": None}}),
        "SymExpr.expr_str: .*not allowed in a size",
    ),
    "a guard of an unknown function": Archive(
        model(lambda d: d.update(guards_code=["double(L['x'].size()[0]) == 2"])),
        "guards_code: .*not allowed in a guard",
    ),
    "a symbol that is counted up to": Archive(
        model(lambda d: d["range_constraints"].update(u1000000={"min_val": 0, "max_val": None})),
        "absurd number",
    ),
    "a tensor of two words": Archive(renamed("unused", "two words"), "is not a plain name"),
    "a buffer with a quote": Archive(renamed("shift", 'sh"ift'), "is not a plain name"),
    "an option of two words": Archive(
        option("two words"), "NamedArgument.name: .*not a plain name"
    ),
    "an argument of two words": Archive(
        signature(forward_arg_names=["x", "two words", "unused"]),
        "forward_arg_names: .*not a plain name",
    ),
    "a keyword of two words": Archive(
        signature(forward_arg_names=None, in_spec=KEYWORDS),
        "the input name 'two words' is not a plain name",
    ),
    "an input text with a quote": Archive(renamed("plain", "pla'in"), "could end a quotation"),
    "an operator that opens files": Archive(
        target("torch.ops.opdf_screening_test.load.default"), "opens files"
    ),
    "a function of torch": Archive(
        target("torch.nn.functional.relu"), "'torch.nn.functional.relu' is not the name"
    ),
    "a function of torch inside": Archive(
        inner_target("torch.nn.functional.relu"), "'torch.nn.functional.relu' is not the name"
    ),
    "a key of a module": Archive(signature(out_spec=BY_MODULE), "neither text nor number"),
    "a default of a module": Archive(
        signature(out_spec=BY_DEFAULT), "a defaultdict, which names a module"
    ),
    "a text for an integer": Archive(
        model(lambda d: d.update(range_constraints={"s77": {"min_val": "2", "max_val": None}})),
        "a str stands where int belongs",
    ),
}
TENSORS = {
    "no bytes": Archive(no_bytes, "is empty although a size is declared"),
    "another payload": Archive(payload("weight_99"), "'weight_99' is no payload"),
    "a payload by another name": Archive(payload("notes"), "'notes' is no payload"),
    "an unknown dtype": Archive(meta(dtype=99), "unknown dtype"),
    "no values": Archive(meta(device={"type": "meta", "index": None}), "has no values"),
    "a size above its bytes": Archive(meta(sizes=ints(5, 4)), "item 19 of the 16"),
    "an offset above its bytes": Archive(meta(storage_offset={"as_int": 1}), "item 16 of the 16"),
    "a negative offset": Archive(
        meta(storage_offset={"as_int": -1}), "absurd sizes, strides or offset"
    ),
    "a size without a stride": Archive(meta(sizes=ints(4, 2, 2)), "malformed sizes or strides"),
    "a view that repeats its bytes": Archive(
        meta(sizes=ints(5, 4), strides=ints(0, 1)),
        "repeats its bytes: copied, such tensors would need 80",
        {(extents, "LARGEST_REPEATED"): 79},
    ),
}
PICKLES = {
    "another global": Archive(sample(saved(((STRANGER,), {}))), MORE),
    "another global in a weight": Archive(
        weight_pickle, "weights_config.json, a pickle was found that is more"
    ),
    "another global in older weights": Archive(
        add("data/weights/model.pt", saved({"a": STRANGER})),
        "data/weights/model.pt, a pickle .*more",
    ),
    "another global in older constants": Archive(
        add("data/constants/model.pt", saved({"a": STRANGER})),
        "data/constants/model.pt, a pickle .*more",
    ),
    "an opcode that torch never writes": Archive(
        sample(torch_zip(pickle.dumps((1,), protocol=4))), MORE
    ),
    "a pickle that torch refuses": Archive(
        sample(saved((({1: 2},), {}))),
        MORE,
        {(torch, "load"): raising(pickle.UnpicklingError)},
    ),
    "another member for the pickle": Archive(sample(without_pickle()), MORE),
    "a memo beyond its opcodes": Archive(sample(opcodes(b"Nq\x09")), "a damaged pickle"),
    "half a pickle": Archive(sample(torch_zip(b"\x80\x02(")), "a damaged pickle"),
    "a pickle of nothing": Archive(sample(opcodes(b"K\x01K\x02\x86R")), "a damaged pickle"),
    "half an archive": Archive(sample(b"PK\x03\x04junk"), "a damaged pickle"),
    "a pickle without its archive": Archive(
        sample(pickle.dumps(STRANGER, protocol=2)), "not in the form that torch.save writes"
    ),
    "a compressed pickle": Archive(
        sample(torch_zip(b"N" * 999, compression=zipfile.ZIP_DEFLATED)),
        "a pickle was found that is refused: .*compressed",
    ),
    "a large pickle": Archive(
        sample(saved(((1,), {}))),
        "a pickle of more than 8 bytes",
        {(pickles, "LARGEST_PICKLE"): 8},
    ),
    "another number of values": Archive(sample(one_tensor(3, 3, 1)), "claims 12 bytes, .* 16"),
    "another kind of storage": Archive(
        sample(one_tensor(4, 4, 1, key=b"stowage")), "a damaged pickle"
    ),
    "a view outside": Archive(sample(one_tensor(4, 5, 1)), "reaches item 4 of the 4"),
    "a view that repeats": Archive(
        sample(one_tensor(4, 5, 0)), "repeats its bytes", {(extents, "LARGEST_REPEATED"): 19}
    ),
    "more values than are read": Archive(
        sample(saved((([1] * 9,), {}))), "more than 5 values", {(trees, "MOST_VALUES"): 5}
    ),
    "a list for the weights": Archive(
        add("data/weights/model.pt", saved([1])), "a list stands where tensors by name belong"
    ),
    "a number for a weight": Archive(
        add("data/weights/model.pt", saved({"a": 1})), "a int stands where tensors by name belong"
    ),
}
ARCHIVES: dict[str, Archive] = {
    f"{kind}: {name}": row
    for kind, table in (
        ("member", MEMBERS),
        ("text", TEXTS_OF_PROGRAMS),
        ("tensor", TENSORS),
        ("pickle", PICKLES),
    )
    for name, row in table.items()
}
