"""The bundle folder: what is in it, what is replaced, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from opdf_compile.artefacts.bundle import changed_files, is_bundle, read_manifest, reference_of
from opdf_compile.artefacts.check_file import read_check
from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.files.atomic import sha256
from opdf_compile.io.export.build import Export, build_export
from opdf_compile.io.export.bundling import write_bundle, write_file
from opdf_compile.io.export.exporting import export_onnx


@pytest.fixture(scope="module")
def exported() -> Export:
    return build_export(nn.Linear(4, 2), (torch.rand(2, 4),))


def names(folder: Path) -> list[str]:
    """Every file, those of the reference with their folder."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file.relative_to(folder).as_posix() for file in files)


def test_folder_holds_both_models_their_evidence_and_hashes(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    out = export_onnx(
        nn.Linear(4, 2),
        (torch.rand(2, 4),),
        tmp_path / "out",
        reference=nn.Linear(4, 2),
        plan={"schema": "plan"},
        extra_files=[tokenizer],
    )
    assert names(out) == [
        "README.md",
        "manifest.json",
        "plan.json",
        "reference/reference.check.npz",
        "reference/reference.onnx",
        "student.check.npz",
        "student.onnx",
        "tokenizer.json",
    ]
    manifest = read_manifest(out)
    assert set(manifest) == {"schema", "files", "opset", "exporter", "versions"}
    assert set(manifest["files"]) == set(names(out)) - {"manifest.json", "README.md"}
    for name, entry in manifest["files"].items():
        assert entry == {"sha256": sha256(out / name), "bytes": (out / name).stat().st_size}
    for stem in ("student", "reference/reference"):
        assert read_check(out / f"{stem}.check.npz").onnx_sha256 == sha256(out / f"{stem}.onnx")
    assert changed_files(out) == () and is_bundle(out)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "tokenizer.json"]


def test_the_student_is_the_only_onnx_file_of_the_folder(exported: Export, tmp_path: Path) -> None:
    """A loader that is given a folder takes a file of it by itself, and not by our names."""
    write_bundle(tmp_path / "out", exported, exported)
    assert [file.name for file in (tmp_path / "out").glob("*.onnx")] == ["student.onnx"]
    write_bundle(tmp_path / "flat", exported, exported, side_by_side=True)
    flat = sorted(file.name for file in (tmp_path / "flat").glob("*.onnx"))
    assert flat == ["reference.onnx", "student.onnx"]


def test_the_reference_is_found_in_both_layouts(exported: Export, tmp_path: Path) -> None:
    new, old, alone = tmp_path / "new", tmp_path / "old", tmp_path / "alone"
    write_bundle(new, exported, exported)
    write_bundle(old, exported, exported, side_by_side=True)
    write_bundle(alone, exported)
    assert reference_of(new) == new / "reference" / "reference.onnx"
    assert reference_of(old) == old / "reference.onnx"
    assert reference_of(alone) is None


def test_a_bundle_of_the_first_schema_stays_readable(exported: Export, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_bundle(out, exported, exported, side_by_side=True)
    manifest = read_manifest(out)
    (out / "manifest.json").write_text(json.dumps({**manifest, "schema": "opdf-bundle/1"}))
    assert changed_files(out) == () and is_bundle(out)
    write_bundle(out, exported, exported)
    assert "reference.onnx" not in names(out) and "reference/reference.onnx" in names(out)


def test_reference_of_a_single_file_lies_beside_it(exported: Export, tmp_path: Path) -> None:
    write_file(tmp_path / "m.onnx", exported, exported)
    assert names(tmp_path) == [
        "m.check.npz",
        "m.onnx",
        "m.reference.check.npz",
        "m.reference.onnx",
    ]


def test_a_changed_file_is_seen(exported: Export, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_bundle(out, exported, exported)
    with (out / "student.onnx").open("ab") as stream:
        stream.write(b"x")
    (out / "reference/reference.check.npz").unlink()
    assert changed_files(out) == ("reference/reference.check.npz", "student.onnx")


@pytest.mark.parametrize("name", ["../secret", "reference/../../secret", "other/../../secret"])
def test_a_manifest_cannot_point_outside(name: str, exported: Export, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_bundle(out, exported, exported)
    outside = tmp_path / "secret"
    outside.write_text("x")
    manifest = read_manifest(out)
    manifest["files"][name] = {"sha256": sha256(outside), "bytes": 1}
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert changed_files(out) == (name,)


def test_an_older_bundle_is_replaced_with_its_report(exported: Export, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_bundle(out, exported, exported, plan="{}")
    (out / "report.json").write_text("{}")
    (out / "latency.png").write_bytes(b"png")
    write_bundle(out, exported)
    assert names(out) == ["README.md", "manifest.json", "student.check.npz", "student.onnx"]


@pytest.mark.parametrize("name", ["thesis.tex", "reference/thesis.tex", "chapters/thesis.tex"])
def test_a_folder_with_other_files_is_left_alone(
    name: str, exported: Export, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_bundle(out, exported, exported)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("years of work")
    with pytest.raises(ArtefactError, match="holds other files"):
        write_bundle(out, exported)
    assert (out / name).read_text() == "years of work"
    assert changed_files(out) == ()


def test_a_failed_export_keeps_the_former_bundle(exported: Export, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_bundle(out, exported)
    with pytest.raises(InputError):
        export_onnx(nn.Linear(4, 2), {"nonsense": torch.rand(2, 4)}, out)
    assert changed_files(out) == ()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "name",
    [
        *("student.onnx", "student.check.npz", "student.onnx.data", "Student.ONNX"),
        *("reference", "reference.onnx", "reference.check.npz", "reference.onnx.data"),
        *("manifest.json", "plan.json"),
    ],
)
def test_extra_files_cannot_take_a_place(name: str, exported: Export, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(ArtefactError, match="has the name of a part of the bundle"):
        write_bundle(tmp_path / "out", exported, extra_files=[tmp_path / name])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("second", ["vocab.txt", "Vocab.txt"])
def test_extra_files_cannot_take_each_others_place(second: str, tmp_path: Path) -> None:
    """Asked before the export: the model here could not be exported."""
    for name in ("one/vocab.txt", f"other/{second}"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    extra = [tmp_path / "one" / "vocab.txt", tmp_path / "other" / second]
    with pytest.raises(ArtefactError, match=".ocab.txt would both be .ocab.txt in the bundle"):
        export_onnx(nn.Linear(4, 2), {"nonsense": 1}, tmp_path / "out", extra_files=extra)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is no JSON"),
        ("[]", "has the schema None"),
        ('{"schema": "opdf-bundle/9", "files": {}}', "has the schema 'opdf-bundle/9'"),
    ],
)
def test_other_manifests_are_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtefactError, match=sentence):
        read_manifest(tmp_path)
    assert not is_bundle(tmp_path)


def test_a_bundle_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        read_manifest(tmp_path)


def test_versions_name_the_libraries(exported: Export, tmp_path: Path) -> None:
    write_bundle(tmp_path / "out", exported)
    versions: dict[str, Any] = read_manifest(tmp_path / "out")["versions"]
    assert versions["torch"] == torch.__version__
    assert set(versions) == {"opdf-compile", "torch", "onnx", "onnxscript", "onnx-ir"}
