"""The MODEL argument: each form, the same weights every time, a sentence for each failure."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opdf_compile.errors import ArtefactError, InputError, UserError
from opdf_compile.io.models.example_inputs import InputOptions
from opdf_compile.io.models.from_archive import axis_letters
from opdf_compile.io.models.program_archive import write_programs
from opdf_compile.io.models.safetensors_file import write_tensors
from opdf_compile.io.models.spec import load_model

SOURCE = """
import random, sys
import numpy as np
import torch
import neighbour
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4, name="a", flag=False):
        super().__init__()
        self.layer = nn.Linear(4, width)
        self.said = (width, name, flag)
        self.drawn = (random.random(), float(np.random.rand()))
    def forward(self, x, scale=None):
        y = self.layer(x)
        return y if scale is None else y * scale

def frozen():
    return Net().eval()
def with_args(width=4):
    return Net(width), (torch.ones(2, 4),)
def with_tensor():
    return Net(), torch.ones(2, 4)
def with_batch():
    return Net(), {"x": torch.ones(2, 4)}
def with_kwargs():
    return Net(), (torch.ones(2, 4),), {"scale": torch.ones(1)}
def raises():
    raise RuntimeError("no weights today\\nsecond line")
def leaves():
    sys.exit(3)
def wrong():
    return 3
number = 3
model = Net()
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "zoo_of_ours.py").write_text(SOURCE)
    (tmp_path / "neighbour.py").write_text("")
    (tmp_path / "broken_of_ours.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("zoo_of_ours", "broken_of_ours", "neighbour"):
        sys.modules.pop(name, None)


def test_callables_of_a_file_and_of_a_module(code: Path) -> None:
    for prefix in (f"{code}/zoo_of_ours.py", "zoo_of_ours.py", "zoo_of_ours"):
        loaded = load_model(f"{prefix}:Net?width=8&name=b c&flag=True")
        assert isinstance(loaded.model, nn.Module)
        assert loaded.model.said == (8, "b c", True)
        assert (loaded.kind, loaded.name, loaded.args) == ("callable", "Net", ())
    assert str(code) not in sys.path


@pytest.mark.parametrize(
    ("name", "args", "kwargs"),
    [
        ("with_args", 1, []),
        ("with_tensor", 1, []),
        ("with_batch", 0, ["x"]),
        ("with_kwargs", 1, ["scale"]),
    ],
)
def test_callables_may_bring_inputs(code: Path, name: str, args: int, kwargs: list[str]) -> None:
    loaded = load_model(f"zoo_of_ours.py:{name}")
    assert len(loaded.args) == args and list(loaded.kwargs) == kwargs


def test_the_same_argument_has_the_same_weights(code: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = load_model("zoo_of_ours.py:Net").model
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()
    torch.manual_seed(4)
    second = load_model("zoo_of_ours:Net").model
    assert torch.equal(first.layer.weight, second.layer.weight)
    assert first.drawn == second.drawn


def test_flags_are_those_of_the_callable(code: Path) -> None:
    assert load_model("zoo_of_ours.py:Net").model.training
    assert not load_model("zoo_of_ours.py:frozen").model.training


CODE_ERRORS = [
    ("zoo_of_ours.py:raises", "raised RuntimeError: no weights today; correct"),
    ("zoo_of_ours.py:leaves", "raised SystemExit: 3"),
    ("zoo_of_ours.py:wrong", "returned a int, wanted a torch.nn.Module"),
    ("zoo_of_ours.py:number", "names a int, wanted a callable"),
    ("zoo_of_ours.py:model", "names a model that is there already"),
    ("zoo_of_ours.py:Nett", "does not have; callables there: Net"),
    ("zoo_of_ours.py:Net?width", "has the argument 'width', wanted key=value"),
    ("zoo_of_ours.py:Net?width=1&width=2", "gives the argument 'width' twice"),
    ("zoo_of_ours.py:Net?depth=1", "raised TypeError: .*unexpected keyword argument 'depth'"),
    ("broken_of_ours.py:Net", "cannot be imported .ModuleNotFoundError: No module named 'no_such"),
    ("broken_of_ours:Net", "cannot be imported .ModuleNotFoundError"),
    ("no_such_module_anywhere:Net", "cannot be imported"),
    ("none.py:Net", "none.py does not exist"),
]


@pytest.mark.parametrize(("spec", "words"), CODE_ERRORS)
def test_code_that_fails_is_a_sentence(code: Path, spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


FILE_ERRORS: list[tuple[str, bytes | None, str]] = [
    ("none.pt2", None, "does not exist; a .pt2 archive"),
    ("empty.pt2", b"", "is empty"),
    ("random.pt2", bytes(range(256)), "is no .pt2 archive"),
    ("cut.pt2", b"PK\x03\x04" + b"\0" * 100, "damaged or cut short"),
    ("model.pth", b"x", "is a pickle, and loading it would run code"),
    ("none.pth", None, "does not exist"),
    ("model.onnx", b"x", "is not an ONNX model or is truncated"),
    ("w.safetensors", b"x", "holds weights and no model"),
    ("model.h5", b"x", "is a file of an unknown kind .\\.h5.; wanted file.pt2"),
    ("README", b"x", "unknown kind .no suffix."),
    ("code.py", b"x", "unknown kind"),
    ("none.py", None, "names a Python file without a callable"),
    ("nothing", None, "is no file and no known form of a model; wanted file.pt2"),
    ("x" * 5000, None, "is no (file|path) and no known form"),
    ("hf:none", None, "none does not exist, wanted a local folder"),
    ("hf:", None, "wanted a local folder"),
]


@pytest.mark.parametrize(("name", "content", "words"), FILE_ERRORS)
def test_files_that_are_no_models_are_sentences(
    name: str,
    content: bytes | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_a_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(InputError, match="is a folder; .* given as hf:DIR"):
        load_model(str(tmp_path))
    with pytest.raises(ArtefactError, match="is a folder; a .pt2 archive"):
        load_model(str(tmp_path / "folder.pt2"))


def test_trusted_pickles_hold_a_module(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "state.bin")
    assert isinstance(load_model(f"{tmp_path}/model.pth", trust_pickle=True).model, nn.Linear)
    with pytest.raises(ArtefactError, match="holds a OrderedDict, wanted a torch.nn.Module"):
        load_model(f"{tmp_path}/state.bin", trust_pickle=True)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        out: Tensor = self.drop(self.layer(x)) * scale
        return out


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "two.pt2"
    model, batch = Two(), torch.export.Dim("batch")
    inputs: Any = ((torch.ones(3, 4),), {"scale": torch.ones(1)})
    shapes = {"x": {0: batch}, "scale": None}
    programs = {
        name: torch.export.export(model.train(flag), *inputs, dynamic_shapes=shapes)
        for name, flag in (("model", True), ("eval", False))
    }
    axes = {"x": {"0": "batch_size"}, "scale": {}}
    write_programs(path, programs, {"opdf.json": json.dumps({"axes": axes})})
    return path


def test_archives_keep_both_phases_inputs_and_axes(archive: Path) -> None:
    loaded = load_model(str(archive))
    assert list(loaded.programs) == ["model", "eval"] and loaded.kind == "pt2"
    assert loaded.dynamic == {"x": ("batch_size", None), "scale": (None,)}
    assert loaded.args[0].shape == (3, 4) and list(loaded.kwargs) == ["scale"]
    program = loaded.programs["eval"].module()
    assert program(*loaded.args, **loaded.kwargs).shape == (3, 4)


@pytest.mark.parametrize(
    "specs",
    [("5x4:float32", "scale=1:float32"), ("x=5x4", "scale=1"), ("scale=1", "x=5x4"), ("5x4", "1")],
)
def test_a_program_is_called_as_it_was_exported(archive: Path, specs: tuple[str, ...]) -> None:
    loaded = load_model(str(archive), inputs=InputOptions(specs))
    assert [tuple(a.shape) for a in loaded.args] == [(5, 4)]
    assert loaded.programs["eval"].module()(*loaded.args, **loaded.kwargs).shape == (5, 4)


def test_a_program_keeps_the_names_of_its_axes(archive: Path) -> None:
    options = InputOptions(("x=Nx4:float32", "scale=K:float32"), None, "N=5,K=1")
    loaded = load_model(str(archive), inputs=options)
    assert loaded.dynamic == {"x": ("batch_size", 4), "scale": ("K",)}


def test_weights_reach_both_programs(archive: Path, tmp_path: Path) -> None:
    state = {"layer.weight": torch.eye(4), "layer.bias": torch.zeros(4)}
    write_tensors(tmp_path / "w.safetensors", state)
    loaded = load_model(str(archive), weights=tmp_path / "w.safetensors")
    x = torch.randn(2, 4)
    assert torch.equal(loaded.programs["eval"].module()(x, scale=torch.ones(1)), x)
    assert torch.equal(loaded.programs["model"].state_dict["layer.weight"], torch.eye(4))


@pytest.mark.parametrize(
    "notes", [None, "{", "[]", "null", '{"axes": 3}', '{"axes": {"y": {}}}', "["]
)
def test_damaged_axis_names_cost_the_names_only(notes: str | None) -> None:
    assert axis_letters(notes, {"x": 2}) is None


def test_axis_names_fit_the_programs_inputs() -> None:
    notes = json.dumps({"axes": {"x": {"0": "B", "7": "Z", "1": "no name"}, "gone": {"0": "B"}}})
    assert axis_letters(notes, {"x": 2, "y": 1}) == {"x": ("B", None)}


def test_inputs_replace_those_of_a_callable(code: Path) -> None:
    options = InputOptions(("Bx4:float32",), None, "B=3")
    loaded = load_model("zoo_of_ours.py:with_args", inputs=options)
    assert loaded.args[0].shape == (3, 4) and loaded.dynamic == {"x": ("B", 4)}


def test_inputs_that_the_model_does_not_have_are_sentences(code: Path, archive: Path) -> None:
    options = InputOptions(("picture=2x4:float32",))
    for spec, names in (("zoo_of_ours.py:Net", "x, scale"), (str(archive), "x, scale")):
        with pytest.raises(InputError, match=f"has no input 'picture', its inputs are {names};"):
            load_model(spec, inputs=options)
    with pytest.raises(InputError, match="positional input number 3, the model takes 2 .x, scale"):
        load_model("zoo_of_ours.py:Net", inputs=InputOptions(("1", "1", "1")))


def test_timm() -> None:
    loaded = load_model("timm:resnet18?num_classes=10")
    again = load_model("timm:resnet18?num_classes=10")
    assert loaded.model.fc.out_features == 10 and loaded.args[0].shape == (2, 3, 224, 224)
    assert torch.equal(loaded.model.fc.weight, again.model.fc.weight)
    small = load_model("timm:vit_tiny_patch16_224?img_size=32&in_chans=1&num_classes=3")
    assert small.args[0].shape == (2, 1, 32, 32)
    with pytest.raises(InputError, match="no model of timm .*; did you mean resnet18"):
        load_model("timm:resnt18")
    with pytest.raises(InputError, match="no model of timm .*; timm.list_models"):
        load_model("timm:?")
    with pytest.raises(InputError, match="cannot be built .TypeError: .*'depthh'"):
        load_model("timm:resnet18?depthh=3")


ABSENT = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("timm", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from opdf_compile.errors import InputError
from opdf_compile.io.models.spec import load_model
for spec in ("timm:resnet18", f"hf:{sys.argv[1]}"):
    try:
        load_model(spec)
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
def test_missing_packages_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_tensors(tmp_path / "model.safetensors", {"a": torch.ones(1)})
    run = subprocess.run(
        [sys.executable, "-c", ABSENT, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert "needs timm" in lines[0] and "pip install 'timm>=" in lines[0]
    assert "needs transformers" in lines[1]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    transformers = pytest.importorskip("transformers")
    folder: Path = tmp_path_factory.mktemp("hf") / "bert"
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
    )
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "own.py").write_text("class Config:\n    pass\n")
    return folder


def test_hf_folders_bring_inputs_names_and_files(bert: Path) -> None:
    loaded = load_model(f"hf:{bert}")
    axes = ("batch_size", "sequence_length")
    assert loaded.dynamic == {"input_ids": axes, "attention_mask": axes}
    assert loaded.kwargs["input_ids"].shape == (2, 12)
    assert int(loaded.kwargs["input_ids"].max()) < 50
    assert [file.name for file in loaded.extra_files] == ["config.json", "tokenizer.json"]
    assert (loaded.name, loaded.kind, loaded.folder, loaded.notes) == ("bert", "hf", bert, ())
    assert loaded.model(**loaded.kwargs).logits.shape == (2, 2)


def test_hf_takes_the_users_inputs_with_valid_ids(bert: Path) -> None:
    specs = ("input_ids=BxS:int64", "attention_mask=BxS:int64")
    loaded = load_model(f"hf:{bert}", inputs=InputOptions(specs, None, "B=3,S=9"))
    assert loaded.kwargs["input_ids"].shape == (3, 9)
    assert int(loaded.kwargs["input_ids"].max()) > 2
    assert loaded.dynamic is not None
    assert loaded.dynamic["attention_mask"] == ("batch_size", "sequence_length")


def test_hf_folders_that_cannot_be_used_are_sentences(
    bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((bert / "config.json").read_text())

    def folder(name: str, weights: str | None = "model.safetensors", **changes: Any) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **changes}))
        if weights:
            data = (bert / "model.safetensors").read_bytes()
            (tmp_path / name / weights).write_bytes(data)
        return f"hf:{tmp_path / name}"

    (tmp_path / "bare").mkdir()
    code = {"AutoConfig": "own.Config"}
    cases = [
        (f"hf:{tmp_path / 'bare'}", "holds no config.json"),
        (folder("pickled", "pytorch_model.bin"), "holds only pickled weights, wanted safetensors"),
        (folder("weightless", None), "holds no weights"),
        (folder("unknown", architectures=["NoSuchModel"]), "is a NoSuchModel, which transformers"),
        (folder("remote", model_type="own", auto_map=code), "config.json cannot be read"),
        (folder("shapes", hidden_size=32), "the weights cannot be loaded"),
    ]
    for spec, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            load_model(spec)
        assert "\n" not in str(caught.value)
    caplog.set_level(logging.WARNING)
    grown = load_model(folder("grown", num_hidden_layers=2))
    assert "weights of BertForSequenceClassification are not in" in grown.notes[0]
    assert grown.notes[0] in caplog.text
