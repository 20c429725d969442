"""Pretrained formats: shards, prefixes, nested checkpoints, timm folders, older `.pt2` files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.errors import ArtefactError
from opdf_compile.io.models.example_inputs import InputOptions
from opdf_compile.io.models.program_archive import read_programs
from opdf_compile.io.models.safetensors_file import read_tensors, write_tensors
from opdf_compile.io.models.spec import load_model
from opdf_compile.io.models.weight_loading import load_weights

State = dict[str, Tensor]


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu())
        return out


class Headed(nn.Module):
    """As transformers builds it: the bare model under a name, a head beside it."""

    base_model_prefix = "bert"

    def __init__(self) -> None:
        super().__init__()
        self.bert = Backbone()
        self.head = nn.Linear(4, 2)


def trained() -> State:
    torch.manual_seed(5)
    return {name: tensor.clone() for name, tensor in Backbone().state_dict().items()}


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def same(model: nn.Module, state: State) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "student.", "_orig_mod.", "module._orig_mod.", "model.student.module."],
)
def test_wrappers_prefixes_come_off_in_any_order(prefix: str, tmp_path: Path) -> None:
    write_tensors(tmp_path / "w.safetensors", under(prefix, trained()))
    model = Backbone()
    (note,) = load_weights(model, tmp_path / "w.safetensors")
    assert note.startswith(f"took the prefix {prefix!r} off every name")
    assert same(model, trained())


def test_a_prefix_that_is_the_models_own_stays(tmp_path: Path) -> None:
    wrapped = nn.ModuleDict({"model": Backbone()})
    write_tensors(tmp_path / "w.safetensors", under("model.", trained()))
    assert load_weights(wrapped, tmp_path / "w.safetensors") == ()
    assert same(wrapped["model"], trained())
    write_tensors(tmp_path / "d.safetensors", under("model.model.", trained()))
    assert load_weights(wrapped, tmp_path / "d.safetensors")[0].startswith(
        "took the prefix 'model.'"
    )


@pytest.mark.parametrize("prefix", ["backbone.", "student.encoder."])
def test_a_backbone_with_a_head_beside_it_is_a_sentence(prefix: str, tmp_path: Path) -> None:
    state = under(prefix, trained()) | {"head.weight": torch.ones(2, 4)}
    write_tensors(tmp_path / "w.safetensors", state)
    words = rf"holds all of them under the prefix '{prefix}', beside head.weight, so save that part"
    with pytest.raises(ArtefactError, match=words):
        load_weights(Backbone(), tmp_path / "w.safetensors")


def test_the_name_of_a_bare_model_comes_and_goes(tmp_path: Path) -> None:
    head = {"head.weight": torch.ones(2, 4), "head.bias": torch.ones(2)}
    write_tensors(tmp_path / "bare.safetensors", trained() | head)
    model = Headed()
    (note,) = load_weights(model, tmp_path / "bare.safetensors")
    assert note.startswith("put the prefix 'bert.' before") and same(model.bert, trained())
    assert torch.equal(model.head.weight, head["head.weight"])
    write_tensors(tmp_path / "full.safetensors", under("bert.", trained()))
    bare = Backbone()
    bare.base_model_prefix = "bert"  # type: ignore[assignment]
    (note,) = load_weights(bare, tmp_path / "full.safetensors")
    assert note.startswith("took the prefix 'bert.' off") and same(bare, trained())


def test_shards_are_one_file(tmp_path: Path) -> None:
    state = trained()
    files = {name: f"part-{place % 2}.safetensors" for place, name in enumerate(state)}
    for file in set(files.values()):
        write_tensors(tmp_path / file, {n: t for n, t in state.items() if files[n] == file})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    model = Backbone()
    assert load_weights(model, tmp_path) == ()
    assert same(model, state)
    # A snapshot of the hub's cache: links to blobs two folders above.
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    write_tensors(blobs / "b.safetensors", state)
    (snapshot / "model.safetensors").symlink_to("../../blobs/b.safetensors")
    again = Backbone()
    assert load_weights(again, snapshot) == ()
    assert same(again, state)


def test_a_folder_without_weights_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="holds no weights, wanted model.safetensors"):
        load_weights(Backbone(), tmp_path)
    torch.save(trained(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ArtefactError, match="is a pickle, and loading it would run code"):
        load_weights(Backbone(), tmp_path)
    model = Backbone()
    load_weights(model, tmp_path, trust_pickle=True)
    assert same(model, trained())


NESTS: list[Callable[[State], Any]] = [
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"model": under("module.", state), "optimizer": {}},
    lambda state: {"ema": state},
    lambda state: {"model": {"state_dict": state}},
    lambda state: {"state_dict": state, "ema": {k: t + 1 for k, t in state.items()}},
]


@pytest.mark.parametrize("nest", NESTS)
def test_checkpoints_around_a_state_dict(nest: Callable[[State], Any], tmp_path: Path) -> None:
    torch.save(nest(trained()), tmp_path / "c.pth")
    with pytest.raises(ArtefactError, match="give --trust-pickle"):
        load_weights(Backbone(), tmp_path / "c.pth")
    model = Backbone()
    load_weights(model, tmp_path / "c.pth", trust_pickle=True)
    assert same(model, trained())


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    torch.manual_seed(5)
    return torch.export.export(Backbone(), (torch.randn(3, 4),), strict=False)


def write_older(path: Path, program: Any, change: Callable[[Any], object] = lambda _: None) -> None:
    """The same program as torch 2.7 laid it out, from the parts that its serializer made."""
    from torch._export.serde.serialize import serialize

    artifact = serialize(program)
    document = json.loads(artifact.exported_program)
    change(document)
    version = document["schema_version"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", f"{version['major']}.{version['minor']}")
        archive.writestr("serialized_exported_program.json", json.dumps(document))
        archive.writestr("serialized_state_dict.pt", artifact.state_dict)
        archive.writestr("serialized_constants.pt", artifact.constants)
        archive.writestr("serialized_example_inputs.pt", artifact.example_inputs)
        archive.writestr("extra_files/note.txt", "caf\u00e9")


def without_newer_fields(document: Any) -> None:
    """As an early minor version of the schema wrote it: no names of nodes, no guards."""
    document["schema_version"]["minor"] = 1
    del document["guards_code"]
    for node in document["graph_module"]["graph"]["nodes"]:
        del node["name"], node["is_hop_single_tensor_return"]


@pytest.mark.parametrize("change", [lambda _: None, without_newer_fields])
def test_archives_of_torch_2_7_load(
    change: Callable[[Any], object], program: Any, tmp_path: Path
) -> None:
    write_older(tmp_path / "older.pt2", program, change)
    loaded = read_programs(tmp_path / "older.pt2")
    assert loaded.extra == {"note.txt": "caf\u00e9"}
    x = torch.randn(3, 4)
    assert torch.equal(loaded.model.module()(x), program.module()(x))
    assert load_model(str(tmp_path / "older.pt2")).args[0].shape == (3, 4)


def edited(path: Path, program: Any, change: Callable[[Any], object]) -> Path:
    """An archive in this torch's form, with a changed program."""
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("models/model.json"))
    document = json.loads(members[name])
    change(document)
    members[name] = json.dumps(document).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return path


def test_an_older_minor_schema_loads(program: Any, tmp_path: Path) -> None:
    path = edited(tmp_path / "minor.pt2", program, without_newer_fields)
    x = torch.randn(3, 4)
    assert torch.equal(read_programs(path).model.module()(x), program.module()(x))


@pytest.mark.parametrize(("major", "cure"), [(9, "update torch"), (7, "export it again with")])
@pytest.mark.parametrize("older", [False, True])
def test_another_major_schema_is_a_sentence(
    older: bool, major: int, cure: str, program: Any, tmp_path: Path
) -> None:
    def change(document: Any) -> None:
        document["schema_version"]["major"] = major

    path = tmp_path / "major.pt2"
    if older:
        write_older(path, program, change)
    else:
        edited(path, program, change)
    with pytest.raises(ArtefactError, match=f"version {major} of torch's program schema.*{cure}"):
        read_programs(path)


def test_an_older_archive_that_is_cut_is_a_sentence(program: Any, tmp_path: Path) -> None:
    write_older(tmp_path / "older.pt2", program)
    with (
        zipfile.ZipFile(tmp_path / "older.pt2") as whole,
        zipfile.ZipFile(tmp_path / "part.pt2", "w") as part,
    ):
        for name in whole.namelist()[:2]:
            part.writestr(name, whole.read(name))
    with pytest.raises(ArtefactError, match="lacks the member 'serialized_state_dict.pt'"):
        read_programs(tmp_path / "part.pt2")


@pytest.mark.slow
def test_a_folder_that_timm_saved(tmp_path: Path) -> None:
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    import timm
    from timm.models._hub import save_for_hf

    arguments = {"num_classes": 7, "in_chans": 1}
    torch.manual_seed(3)
    model = timm.create_model("resnet10t", **arguments).eval()
    save_for_hf(model, tmp_path / "saved", safe_serialization=True, model_args=arguments)
    loaded = load_model(f"hf:{tmp_path / 'saved'}")
    assert isinstance(loaded.model, nn.Module) and loaded.kind == "timm"
    assert loaded.args[0].shape[:2] == (2, 1)
    x = torch.randn(1, 1, 64, 64)
    assert torch.equal(loaded.model.eval()(x), model(x))
    for weights in ("saved", "saved/model.safetensors"):
        spec = "timm:resnet10t?num_classes=7&in_chans=1"
        other = load_model(spec, weights=tmp_path / weights).model
        assert isinstance(other, nn.Module) and torch.equal(other.eval()(x), model(x))
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config | {"num_classes": 9}))
    # The arguments win over what stands beside them, as in timm.
    assert load_model(f"hf:{tmp_path / 'saved'}").model is not None
    config["model_args"]["num_classes"] = 9
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtefactError, match=r"fc.* has shape \(7,.*wanted \(9,"):
        load_model(f"hf:{tmp_path / 'saved'}")


@pytest.mark.slow
def test_transformers_folders_sharded_tied_and_bare(tmp_path: Path) -> None:
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=64, intermediate_size=64, **sizes)
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).eval()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    loaded = load_model(f"hf:{tmp_path / 'sharded'}", inputs=InputOptions(("input_ids=2x4:int64",)))
    again = loaded.model
    assert isinstance(again, nn.Module) and loaded.notes == ()
    ids = torch.arange(6)[None]
    assert torch.equal(again.eval()(ids).logits, model(ids).logits)
    # The tied decoder is not in the file; it comes back tied.
    model.save_pretrained(tmp_path / "whole")
    names = read_tensors(tmp_path / "whole" / "model.safetensors")[0]
    assert not any("decoder.weight" in name for name in names)
    fresh = transformers.BertForMaskedLM(config).eval()
    load_weights(fresh, tmp_path / "whole")
    assert torch.equal(fresh(ids).logits, model(ids).logits)
    # The bare model's file lacks "bert.", the headed model's names have it.
    bare = transformers.BertModel(config, add_pooling_layer=False).eval()
    bare.save_pretrained(tmp_path / "bare")
    folder = tmp_path / "bare"
    headless = transformers.BertModel(config, add_pooling_layer=False).eval()
    write_tensors(tmp_path / "prefixed.safetensors", under("bert.", dict(bare.state_dict())))
    load_weights(headless, tmp_path / "prefixed.safetensors")
    assert torch.equal(headless(ids)[0], bare(ids)[0])
    config_file = json.loads((folder / "config.json").read_text())
    config_file["architectures"] = ["BertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config_file))
    headed = load_model(f"hf:{folder}", inputs=InputOptions(("input_ids=2x4:int64",)))
    assert isinstance(headed.model, nn.Module)
    assert torch.equal(headed.model.eval().bert(ids)[0], bare(ids)[0])
    assert "were drawn at random" in headed.notes[0]
