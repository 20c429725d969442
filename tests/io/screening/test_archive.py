"""Invariant 9: a model file is data.

Each hostile file below really runs code (or writes a file) when plain torch opens it: one
subprocess opens them all with `torch.export.load` and leaves a canary per file. Ours refuses each
with a sentence, and leaves no canary.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.errors import ArtefactError
from opdf_compile.io.programs import read_programs, write_programs
from opdf_compile.io.screening.archive import screen_archive
from opdf_compile.io.screening.container import record_size

Members = dict[str, bytes]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("shift", torch.ones(4), persistent=False)

    def forward(self, x: Tensor, mode: str, unused: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.layer(x)
        return y * 2 + self.shift + x.shape[0]


def read_members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}


def write_members(path: Path, members: Members, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Members:
    program = torch.export.export(
        Small().eval(),
        (torch.randn(3, 4), "plain", torch.ones(1)),
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}, "mode": None, "unused": None},
    )
    path = tmp_path_factory.mktemp("good") / "good.pt2"
    write_programs(path, {"model": program}, {"plan.json": "{}"})
    return read_members(path)


class Bomb:
    """Unpickling it touches a file: the shortest program a pickle can be."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def touch(canary: Path) -> str:
    return f"__import__('pathlib').Path('{canary}').touch()"


def pickled(canary: Path) -> bytes:
    stream = io.BytesIO()
    torch.save((Bomb(canary),), stream)
    return stream.getvalue()


def edit(members: Members, name: str, change: Callable[[Any], None]) -> None:
    document = json.loads(members[name])
    change(document)
    members[name] = json.dumps(document).encode()


def edit_model(change: Callable[[Any, Path], None]) -> Callable[[Members, Path], None]:
    def craft(members: Members, canary: Path) -> None:
        edit(members, "models/model.json", lambda document: change(document, canary))

    return craft


def rename_everywhere(document: Any, old: str, new: str) -> Any:
    if isinstance(document, dict):
        return {
            (new if k == old else k): rename_everywhere(v, old, new) for k, v in document.items()
        }
    if isinstance(document, list):
        return [rename_everywhere(v, old, new) for v in document]
    return new if document == old else document


def sample_pickle(members: Members, canary: Path) -> None:
    members["data/sample_inputs/model.pt"] = pickled(canary)


def weight_pickle(members: Members, canary: Path) -> None:
    def change(document: Any) -> None:
        entry = document["config"]["layer.weight"]
        entry["use_pickle"] = True
        members[f"data/weights/{entry['path_name']}"] = pickled(canary)

    edit(members, "data/weights/model_weights_config.json", change)


def legacy_constants(members: Members, canary: Path) -> None:
    members["data/constants/model.pt"] = pickled(canary)


def legacy_weights(members: Members, canary: Path) -> None:
    members["data/weights/model.pt"] = pickled(canary)


def opaque_object(members: Members, canary: Path) -> None:
    def change(document: Any) -> None:
        document["config"]["extra"] = {
            "path_name": "opaque_obj_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }

    edit(members, "data/constants/model_constants_config.json", change)
    members["data/constants/opaque_obj_0"] = pickle.dumps(Bomb(canary))


def symbolic_call(document: Any, canary: Path) -> None:
    values = document["graph_module"]["graph"]["tensor_values"]
    values["x"]["sizes"][0] = {"as_expr": {"expr_str": touch(canary), "hint": None}}


def guard_code(document: Any, canary: Path) -> None:
    document["guards_code"] = [f"{touch(canary)} is None"]


def name_of_tensor(document: Any, canary: Path) -> None:
    # The name is pasted into `def forward(self, ..., NAME):`, which is executed at load.
    name = f"unused, a={touch(canary)}"
    document["graph_module"] = rename_everywhere(document["graph_module"], "unused", name)


def name_of_parameter(members: Members, canary: Path) -> None:
    # torch writes `getattr(self, "NAME")` for a name that is no identifier.
    new = f'shift", open({str(canary)!r}, "w")) if 1 else getattr(self, "shift'

    def change(document: Any) -> Any:
        return rename_everywhere(document, "shift", new)

    for name in ("models/model.json", "data/constants/model_constants_config.json"):
        members[name] = json.dumps(change(json.loads(members[name]))).encode()


def name_of_option(document: Any, canary: Path) -> None:
    node = wrapped(document)
    node["inputs"][0].update(name=f"enabled={touch(canary)}, b", kind=2)


def constant_text(document: Any, canary: Path) -> None:
    text = f"plain' and {touch(canary)} or 'x"
    document["graph_module"] = rename_everywhere(document["graph_module"], "plain", text)


def wrapped(document: Any) -> Any:
    nodes = document["graph_module"]["graph"]["nodes"]
    return next(node for node in nodes if "wrap_with_set_grad" in node["target"])


def file_operator(document: Any, canary: Path) -> None:
    nodes = document["graph_module"]["graph"]["nodes"]
    node = next(node for node in nodes if node["target"] == "torch.ops.aten.mul.Tensor")
    node["target"] = "torch.ops.aten.from_file.default"
    values = {"as_string": str(canary)}, {"as_bool": True}, {"as_int": 16}
    node["inputs"] = [
        {"name": name, "arg": value, "kind": 1}
        for name, value in zip(("filename", "shared", "size"), values, strict=True)
    ]


def enum_key(document: Any, canary: Path) -> None:
    key = {"__enum__": True, "fqn": f"evil_{canary.name}:Key", "name": "A"}
    (canary.parent / f"evil_{canary.name}.py").write_text(f"open({str(canary)!r}, 'w')")
    spec = document["graph_module"]["module_call_graph"][0]["signature"]
    leaf = {"type": None, "context": None, "children_spec": []}
    node = {"type": "builtins.dict", "context": json.dumps([key]), "children_spec": [leaf]}
    spec["out_spec"] = json.dumps([1, node])


def default_factory(document: Any, canary: Path) -> None:
    (canary.parent / f"evil_{canary.name}.py").write_text(f"open({str(canary)!r}, 'w')")
    context = {
        "default_factory_module": f"evil_{canary.name}",
        "default_factory_name": "A",
        "dict_context": ["a"],
    }
    leaf = {"type": None, "context": None, "children_spec": []}
    node = {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}
    spec = document["graph_module"]["module_call_graph"][0]["signature"]
    spec["out_spec"] = json.dumps([1, node])


# name: (how the good file is changed, words of our refusal)
HOSTILE: dict[str, tuple[Callable[[Members, Path], None], str]] = {
    "sample_pickle": (sample_pickle, "sample_inputs/model.pt, a pickle was found"),
    "weight_pickle": (weight_pickle, "weights_config.json, a pickle was found"),
    "legacy_weights": (legacy_weights, "data/weights/model.pt, a pickle was found"),
    "legacy_constants": (legacy_constants, "data/constants/model.pt, a pickle was found"),
    "opaque_object": (opaque_object, "is no payload of this archive|a custom object"),
    "symbolic_call": (edit_model(symbolic_call), "SymExpr.expr_str: .*not allowed in a size"),
    "guard_code": (edit_model(guard_code), "guards_code: .*not allowed in a guard"),
    "name_of_tensor": (edit_model(name_of_tensor), "is not a plain name"),
    "name_of_parameter": (name_of_parameter, "is not a plain name"),
    "name_of_option": (edit_model(name_of_option), "NamedArgument.name: .*not a plain name"),
    "constant_text": (edit_model(constant_text), "could end a quotation"),
    "file_operator": (edit_model(file_operator), "from_file.default' opens files"),
    "enum_key": (edit_model(enum_key), "neither text nor number"),
    "default_factory": (edit_model(default_factory), "a defaultdict, which names a module"),
}

PLAIN_TORCH = """
import logging, sys, warnings
from pathlib import Path
import torch
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
for path in sorted(Path(sys.argv[1]).glob("*.pt2")):
    try:
        module = torch.export.load(str(path)).module()
        module(torch.ones(3, 4), "plain", torch.ones(1))
    except Exception as error:
        print(path.stem, type(error).__name__, str(error)[-300:].replace(chr(10), " "))
"""


@pytest.fixture(scope="module")
def zoo(good: Members, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    for name, (craft, _) in HOSTILE.items():
        members = copy.deepcopy(good)
        craft(members, folder / name)
        write_members(folder / f"{name}.pt2", members)
    return folder


@pytest.fixture(scope="module")
def ran(zoo: Path) -> tuple[set[str], str]:
    """Which hostile files ran in plain torch (the positive control), and what it said."""
    environment = {**os.environ, "PYTHONPATH": str(zoo)}
    run = subprocess.run(
        [sys.executable, "-c", PLAIN_TORCH, str(zoo)],
        capture_output=True,
        text=True,
        check=True,
        cwd=zoo,
        env=environment,
    )
    canaries = {name for name in HOSTILE if (zoo / name).exists()}
    for name in canaries:
        (zoo / name).unlink()
    return canaries, run.stdout


@pytest.mark.parametrize("name", HOSTILE)
def test_invariant_9_hostile_files_run_in_plain_torch_and_not_here(
    name: str, zoo: Path, ran: tuple[set[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name in ran[0], f"the control did not run: {ran[1]}"
    monkeypatch.syspath_prepend(zoo)
    with pytest.raises(ArtefactError, match=HOSTILE[name][1]) as caught:
        read_programs(zoo / f"{name}.pt2")
    assert not (zoo / name).exists()
    message = str(caught.value)
    assert message.startswith(str(zoo / f"{name}.pt2")) and "\n" not in message
    assert "--trust-pickle" in message


def test_the_untouched_file_passes(good: Members, tmp_path: Path) -> None:
    path = write_members(tmp_path / "good.pt2", good)
    loaded = read_programs(path)
    assert loaded.extra == {"plan.json": "{}"}
    assert loaded.model.module()(torch.ones(5, 4), "plain", torch.ones(1)).shape == (5, 4)


def test_guards_that_pass_are_dropped_all_the_same(good: Members, tmp_path: Path) -> None:
    members = copy.deepcopy(good)
    edit_model(lambda d, _: d.update(guards_code=["L['x'].size()[0] == 3"]))(members, tmp_path)
    program = read_programs(write_members(tmp_path / "guard.pt2", members)).model
    assert program._guards_code == []
    program.module()(torch.ones(5, 4), "plain", torch.ones(1))


def test_trust_pickle_opens_what_is_refused_otherwise(good: Members, tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(((Bomb(tmp_path / "canary"), "plain", torch.ones(1)), {}), stream)
    members = {**good, "data/sample_inputs/model.pt": stream.getvalue()}
    path = write_members(tmp_path / "trusted.pt2", members)
    with pytest.raises(ArtefactError, match="sample_inputs/model.pt, a pickle was found"):
        read_programs(path)
    assert not (tmp_path / "canary").exists()
    assert read_programs(path, trust_pickle=True).model is not None
    assert (tmp_path / "canary").exists()


def add(name: str, data: bytes = b"x") -> Callable[[Members], None]:
    return lambda members: members.update({name: data})


def no_values(members: Members) -> None:
    def change(document: Any) -> None:
        entry = document["config"]["layer.weight"]
        entry["tensor_meta"]["sizes"] = [{"as_int": 10**9}, {"as_int": 10**9}]
        members[f"data/weights/{entry['path_name']}"] = b""

    edit(members, "data/weights/model_weights_config.json", change)


def name_of_argument(document: Any, canary: Path) -> None:
    spec = document["graph_module"]["module_call_graph"][0]["signature"]
    spec["forward_arg_names"][1] = f"mode, a={touch(canary)}"


def name_of_keyword(document: Any, canary: Path) -> None:
    spec = document["graph_module"]["module_call_graph"][0]["signature"]
    spec["forward_arg_names"] = None
    leaf = {"type": None, "context": None, "children_spec": []}
    keys = json.dumps(["x", "mode, a=breakpoint()"])
    args = {"type": "builtins.tuple", "context": "null", "children_spec": []}
    kwargs = {"type": "builtins.dict", "context": keys, "children_spec": [leaf, leaf]}
    root = {"type": "builtins.tuple", "context": "null", "children_spec": [args, kwargs]}
    spec["in_spec"] = json.dumps([1, root])


def operator_name(document: Any, canary: Path) -> None:
    graph = wrapped(document)["inputs"][1]["arg"]["as_graph"]["graph"]
    graph["nodes"][0]["target"] = "torch.os.system"
    graph["nodes"][0]["inputs"] = [
        {"name": "", "arg": {"as_string": f"touch '{canary}'"}, "kind": 1}
    ]


def symbolic_in_payload(members: Members) -> None:
    def change(document: Any) -> None:
        meta = document["config"]["layer.bias"]["tensor_meta"]
        meta["storage_offset"] = {"as_expr": {"expr_str": touch(Path("never")), "hint": None}}

    edit(members, "data/weights/model_weights_config.json", change)


def wrong_type(members: Members) -> None:
    def change(document: Any) -> None:
        document["range_constraints"] = {"s77": {"min_val": "2", "max_val": None}}

    edit(members, "models/model.json", change)


def endless_counter(members: Members) -> None:
    def change(document: Any) -> None:
        document["range_constraints"]["u99999999999"] = {"min_val": 0, "max_val": None}

    edit(members, "models/model.json", change)


def deep_json(members: Members) -> None:
    members["models/model.json"] = b"[" * 100_000


# Torch itself would trip over the last ones here, by luck or by design; we do not rely on it.
MALFORMED: dict[str, tuple[Callable[[Members], None], str]] = {
    "climbing": (add("../../evil"), "points outside the archive"),
    "absolute": (add("/etc/evil"), "points outside the archive"),
    "backslash": (add("data\\..\\evil"), "points outside the archive"),
    "unexpected": (add("data/evil.pkl"), "unexpected member 'data/evil.pkl'"),
    "compiled": (add("data/aotinductor/model/a.so"), "compiled code"),
    "library": (add("extra/a.so"), "compiled code"),
    "custom_object": (add("data/constants/custom_obj_0"), "a custom object"),
    "same_name": (add("MODELS/model.json"), "two members have the same name"),
    "extra_bytes": (add("extra/plan.bin", b"\xff\xfe"), "other than UTF-8"),
    "no_format": (lambda members: members.pop("archive_format"), "is a zip file but no .pt2"),
    "no_values": (no_values, "is empty although a size is declared"),
    "symbolic_in_payload": (symbolic_in_payload, "SymExpr.expr_str: .*not allowed in a size"),
    "name_of_argument": (
        lambda m: edit_model(name_of_argument)(m, Path("never")),
        "forward_arg_names: .*not a plain name",
    ),
    "name_of_keyword": (
        lambda m: edit_model(name_of_keyword)(m, Path("never")),
        "the input name .* is not a plain name",
    ),
    "operator_name": (
        lambda m: edit_model(operator_name)(m, Path("never")),
        "'torch.os.system' is not the name",
    ),
    "wrong_type": (wrong_type, "a str stands where int belongs"),
    "endless_counter": (endless_counter, "absurd number"),
    "deep_json": (deep_json, "it is no JSON"),
    "no_json": (add("models/model.json", b"\xff"), "it is no JSON"),
    "no_program": (lambda members: members.pop("models/model.json"), "no program called 'model'"),
    "no_weights": (
        lambda members: members.pop("data/weights/model_weights_config.json"),
        "cannot be opened by torch",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_archives_are_sentences(name: str, good: Members, tmp_path: Path) -> None:
    members = copy.deepcopy(good)
    craft, words = MALFORMED[name]
    craft(members)
    path = write_members(tmp_path / f"{name}.pt2", members)
    with pytest.raises(ArtefactError, match=words) as caught:
        read_programs(path)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_zip_bombs_are_refused(good: Members, tmp_path: Path) -> None:
    members = {**good, "extra/zeros": b"0" * 10_000_000}
    bomb = write_members(tmp_path / "bomb.pt2", members, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ArtefactError, match="is compressed"):
        screen_archive(bomb)
    with pytest.raises(ArtefactError, match="is compressed"):
        screen_archive(bomb, trust_pickle=True)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10_000_000)
    members = {**good, "data/sample_inputs/model.pt": inner.getvalue()}
    with pytest.raises(ArtefactError, match="a pickle was found that is refused: .*compressed"):
        screen_archive(write_members(tmp_path / "inner.pt2", members))


def test_overlapping_members_are_refused(good: Members, tmp_path: Path) -> None:
    path = tmp_path / "overlap.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/extra/a", b"0" * 1_000_000)
        entry = archive.infolist()[0]
        for index in range(50):
            again = copy.copy(entry)
            again.filename = again.orig_filename = f"archive/extra/{index}"
            archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(ArtefactError, match="some overlap"):
        screen_archive(path)


def test_archives_of_an_odd_form_are_refused(good: Members, tmp_path: Path) -> None:
    roots = tmp_path / "roots.pt2"
    write_members(roots, good)
    with zipfile.ZipFile(roots, "a") as archive:
        archive.writestr("elsewhere/extra/a", b"x")
    locked = tmp_path / "locked.pt2"
    whole = write_members(locked, good).read_bytes()
    entry = whole.index(b"PK\x01\x02")
    locked.write_bytes(whole[: entry + 8] + b"\x01" + whole[entry + 9 :])
    none = tmp_path / "none.pt2"
    none.write_bytes(b"PK\x05\x06" + b"\0" * 18)
    for path, words in (
        (roots, "several root folders"),
        (locked, "encrypted"),
        (none, "0 members"),
    ):
        with pytest.raises(ArtefactError, match=words):
            screen_archive(path)


def test_damaged_members_are_sentences(good: Members, tmp_path: Path) -> None:
    path = write_members(tmp_path / "flipped.pt2", good)
    whole = path.read_bytes()
    place = whole.index(b'"graph_module"') + 3
    path.write_bytes(whole[:place] + b"Z" + whole[place + 1 :])
    with pytest.raises(ArtefactError, match="flipped.pt2 cannot be opened by torch"):
        read_programs(path)
    odd = {**good, "data/sample_inputs/model.pt": b"PK\x03\x04junk"}
    with pytest.raises(ArtefactError, match="a damaged pickle was found"):
        read_programs(write_members(tmp_path / "odd.pt2", odd))


@pytest.mark.parametrize("cut", [10, 1000, 0.5, -1])
def test_truncated_archives_are_sentences(cut: float, good: Members, tmp_path: Path) -> None:
    whole = write_members(tmp_path / "whole.pt2", good).read_bytes()
    end = int(cut * len(whole)) if cut == 0.5 else int(cut)
    (tmp_path / "cut.pt2").write_bytes(whole[:end])
    with pytest.raises(ArtefactError, match="cut.pt2 is damaged or cut short"):
        read_programs(tmp_path / "cut.pt2")


def test_other_files_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "random.pt2").write_bytes(bytes(range(256)) * 10)
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pt2")
    (tmp_path / "empty.pt2").touch()
    for name, words in [
        ("random.pt2", "is no .pt2 archive"),
        ("pickled.pt2", "unexpected member 'data.pkl'|no .pt2 archive"),
        ("empty.pt2", "is empty"),
        ("none.pt2", "does not exist"),
    ]:
        with pytest.raises(ArtefactError, match=words):
            read_programs(tmp_path / name)


def test_sizes_of_members_as_an_older_torch_tells_them(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(7), "b": torch.zeros(3, 5)}, tmp_path / "weights.pt")
    reader = torch._C.PyTorchFileReader(str(tmp_path / "weights.pt"))

    class Older:
        """The reader of torch 2.11, which has no `get_record_size`."""

        def get_record(self, name: str) -> bytes:
            return bytes(reader.get_record(name))

    names = reader.get_all_records()
    sizes = [record_size(Older(), name) for name in names]
    assert sizes == [record_size(reader, name) for name in names]
    assert sizes[names.index("data/0")] == 7 * 8
