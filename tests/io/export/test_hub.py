"""A bundle that a hub's libraries load: their classes and `hf:` give the exported student."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.artefacts import CARD, changed_files
from opdf_compile.cli import main
from opdf_compile.io import load_model
from opdf_compile.io.export.hub import hub_files
from opdf_compile.io.models.from_timm import zoo_package


def bert(head: bool = False) -> Any:
    transformers = zoo_package("transformers", "a test")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    return (transformers.BertForMaskedLM if head else transformers.BertModel)(config).eval()


def ids() -> Tensor:
    return torch.arange(18).reshape(2, 9)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def library(folder: Path) -> str:
    return str(yaml.safe_load((folder / CARD).read_text().split("---\n")[1])["library_name"])


def test_transformers_and_hf_load_the_bundle_of_its_model(tmp_path: Path) -> None:
    """The class with tied weights too, and the student rather than the reference."""
    student = bert(head=True)
    untouched = copy.deepcopy(student)
    with torch.no_grad():
        student.bert.encoder.layer[0].output.dense.weight.mul_(3.0)
    before = student.config.to_json_string()
    out = Path(opdf.export_onnx(student, (ids(),), tmp_path / "out", reference=untouched))
    assert student.config.to_json_string() == before
    assert library(out) == "transformers" and changed_files(out) == ()
    again = type(student).from_pretrained(out)
    assert same_state(again, student)
    assert again.cls.predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight
    loaded = load_model(f"hf:{out}")
    assert type(loaded.model) is type(student)
    assert isinstance(loaded.model, nn.Module) and same_state(loaded.model, student)


def test_a_program_takes_its_class_from_the_reference(tmp_path: Path) -> None:
    """`export student.pt2 --reference hf:DIR`: its configuration and weights go along."""
    student = bert()
    student.config._name_or_path = "apples/bert"
    student.save_pretrained(tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "apples/bert"}))
    loaded = load_model(f"hf:{tmp_path / 'base'}")
    assert isinstance(loaded.model, nn.Module)
    with torch.no_grad():
        loaded.model.get_parameter("pooler.dense.weight").mul_(2.0)
    program = torch.export.export(loaded.model, loaded.args, loaded.kwargs)
    torch.export.save(program, tmp_path / "student.pt2")
    out = tmp_path / "out"
    arguments = ["export", str(tmp_path / "student.pt2"), "-o", str(out)]
    arguments += ["--reference", f"hf:{tmp_path / 'base'}"]
    assert main([*arguments, "-q"]) == 0
    assert (out / "config.json").read_bytes() == config.read_bytes()
    assert same_state(type(student).from_pretrained(out), loaded.model)
    told = yaml.safe_load((out / CARD).read_text().split("---\n")[1])
    assert told["base_model"] == "apples/bert" and told["library_name"] == "transformers"


def test_timm_loads_the_bundle_of_its_folder(tmp_path: Path) -> None:
    timm = zoo_package("timm", "a test")
    from timm.models._hub import save_for_hf

    student = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    arguments = {"img_size": 32}
    save_for_hf(student, tmp_path / "base", safe_serialization=True, model_args=arguments)
    out = tmp_path / "out"
    assert main(["export", f"hf:{tmp_path / 'base'}", "-o", str(out), "-q"]) == 0
    assert library(out) == "timm"
    loaded = load_model(f"hf:{out}")
    assert loaded.kind == "timm" and isinstance(loaded.model, nn.Module)
    assert same_state(loaded.model, student)


def test_hf_loads_any_other_bundle_from_its_onnx_file(tmp_path: Path) -> None:
    student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    args = (torch.rand(3, 4),)
    out = Path(opdf.export_onnx(student, args, tmp_path / "out", reference=student))
    assert library(out) == "onnx" and not (out / "model.safetensors").exists()
    loaded = load_model(f"hf:{out}")
    assert loaded.kind == "onnx" and isinstance(loaded.model, nn.Module)
    torch.testing.assert_close(loaded.model(*args), student(*args))


def test_a_configuration_that_nobody_reads_goes_along_as_it_is(tmp_path: Path) -> None:
    """It is the user's file, found only when the export has run."""
    for text in ("[" * 200_000, "{", "[]"):
        (tmp_path / "config.json").write_text(text)
        found = hub_files(bert(), None, [tmp_path / "config.json"])
        assert found.library == "transformers" and found.config == ""


def test_a_model_that_no_library_finds_brings_no_weights() -> None:
    """A wrapper's keys are not those of the class in config.json."""
    wrapped = nn.Sequential(bert())
    assert hub_files(wrapped, wrapped, ()).weights == {}

    class Own(type(bert())):  # type: ignore[misc]
        """A class that only this file has."""

    own = Own(bert().config)
    assert hub_files(own, None, ()).library == "onnx"
    # A program of another model than the reference.
    program = torch.export.export(nn.Linear(2, 2), (torch.rand(1, 2),))
    assert hub_files(program, bert(), ()).weights == {}
