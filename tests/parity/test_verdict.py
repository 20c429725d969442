"""`verify` joins the parts, refutes what was tampered with, and refuses what makes no sense."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quick import covering

from opdf_compile.artefacts.check_file import CheckData, Sample, check_path, write_check
from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.files.atomic import sha256
from opdf_compile.parity.request import auto_margin
from opdf_compile.parity.runtime.registry import resolve_device
from opdf_compile.parity.verdict import verify

WIDTH, BATCH = 16, 3
FAST = ("structure", "numerics")
# Enough for the minimum of groups; the tests that need a latency verdict set their own margin.
SECOND = 1.0


def weight_of(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)) / math.sqrt(WIDTH)
    return np.asarray(values.astype(np.float32))


def save_model(path: Path, seed: int, *, activation: str = "Relu", check: bool = True) -> Path:
    """y = activation(x W), with the evidence for numerics beside it."""
    weight = weight_of(seed)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node(activation, ["h"], ["y"]),
    ]
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in "xy"
    ]
    graph = helper.make_graph(
        nodes, "layer", value[:1], value[1:], [numpy_helper.from_array(weight, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model.metadata_props.add(key="opdf.parameters", value=json.dumps(["w"]))
    model.metadata_props.add(key="opdf.exporter", value="torch.onnx 2.13")
    onnx.save(model, path)
    if check:
        write_check(check_path(path), evidence(weight, sha256(path)))
    return path


def evidence(weight: np.ndarray, onnx_hash: str) -> CheckData:
    samples = []
    for index in range(2):
        x = np.random.default_rng(index).standard_normal((BATCH, WIDTH)).astype(np.float32)
        truth = np.maximum(x.astype(np.float64) @ weight.astype(np.float64), 0.0)
        error = np.abs(np.maximum(x @ weight, 0.0) - truth)
        samples.append(
            Sample(
                {"x": x},
                {"y": truth},
                {"y": float(error.max())},
                {"y": float(np.sqrt((error**2).mean()))},
                {"y": float(np.abs(truth).max())},
            )
        )
    return CheckData(("x",), ("y",), "float32", tuple(samples), onnx_hash)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return save_model(tmp_path / "student.onnx", 1), save_model(tmp_path / "reference.onnx", 2)


@pytest.fixture(params=["opdf-bundle/1", "opdf-bundle/2"])
def bundle(pair: tuple[Path, Path], request: pytest.FixtureRequest) -> Path:
    """A bundle as 0.1 wrote it, and as it is written now."""
    folder = pair[0].parent
    (folder / "plan.json").write_text("{}\n")
    if request.param == "opdf-bundle/2":
        (folder / "reference").mkdir()
        for file in folder.glob("reference.*"):
            file.rename(folder / "reference" / file.name)
    files = {
        file.relative_to(folder).as_posix(): {"sha256": sha256(file), "bytes": file.stat().st_size}
        for file in sorted(folder.rglob("*.*"))
    }
    manifest = {"schema": request.param, "files": files, "opset": 18}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def part_of(bundle: Path, name: str) -> str:
    """The name of a file in a bundle of either layout."""
    inner = f"reference/{name}"
    return inner if (bundle / inner).exists() else name


def test_parity_of_two_files(pair: tuple[Path, Path]) -> None:
    report = verify(*pair, device="cpu", margin=0.9, budget=20.0)
    assert report.structure.verdict == "pass" and report.structure.nodes == 2
    assert report.numerics.verdict == "pass" and report.numerics.samples == 2
    assert report.latency.verdict in ("pass", "inconclusive")
    assert report.verdict == report.latency.verdict
    assert report.exit_code in (0, 3)
    assert report.files["student.onnx"] == {
        "sha256": sha256(pair[0]),
        "bytes": pair[0].stat().st_size,
        "opset": 18,
        "exporter": "torch.onnx 2.13",
    }
    assert set(report.files) == {
        *("student.onnx", "student.check.npz", "reference.onnx", "reference.check.npz")
    }


def test_parity_of_a_bundle(bundle: Path) -> None:
    report = verify(bundle, device="cpu", only=FAST)
    assert report and report.exit_code == 0
    assert report.latency.verdict == "not_asked"
    assert "plan.json" in report.files


@pytest.mark.parametrize(
    ("name", "only"),
    covering(
        ["student.onnx", "reference.onnx", "student.check.npz", "plan.json"],
        [("structure",), ("numerics",), FAST],
    ),
)
def test_a_changed_file_of_a_bundle_is_refuted_whatever_was_asked(
    bundle: Path, name: str, only: tuple[str, ...]
) -> None:
    name = part_of(bundle, name)
    if name.endswith(".onnx"):
        # The same graph with other weights: only the hash and the outputs can tell.
        save_model(bundle / name, 9, check=False)
    elif name.endswith(".npz"):
        write_check(bundle / name, evidence(weight_of(1), "0" * 64))
    else:
        (bundle / name).write_text('{"edited": true}\n')
    report = verify(bundle, device="cpu", only=only)
    assert report.verdict == "fail" and report.exit_code == 1
    assert report.structure.verdict == "fail"
    assert any(
        line.startswith(f"{name} is not the file that was exported")
        for line in report.structure.differences
    )


@pytest.mark.parametrize("name", ["student.check.npz", "reference.onnx", "reference.check.npz"])
def test_a_file_slipped_into_a_bundle_is_refuted(bundle: Path, name: str) -> None:
    name = part_of(bundle, name)
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"][name]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    report = verify(bundle, device="cpu", only=FAST)
    assert report.verdict == "fail"
    assert f"{name} is not part of what was exported" in str(report)


@pytest.mark.parametrize("name", ["../outside.onnx", "/elsewhere.onnx", "a/b.onnx"])
def test_a_manifest_cannot_name_files_elsewhere(bundle: Path, name: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    report = verify(bundle, device="cpu", only="structure")
    assert report.verdict == "fail"
    assert name not in report.files


@pytest.mark.parametrize("name", ["student.onnx", "plan.json", "student.check.npz"])
def test_a_missing_file_of_a_bundle_is_an_error(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(ArtefactError, match=f"{name} is missing although manifest.json lists it"):
        verify(bundle, device="cpu", only="numerics")


def test_a_folder_that_is_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        verify(tmp_path, device="cpu")


def test_another_graph_is_refuted_by_structure(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    other = save_model(tmp_path / "other.onnx", 1, activation="Sigmoid", check=False)
    report = verify(other, pair[1], device="cpu", only="structure")
    assert report.verdict == "fail" and report.exit_code == 1
    assert report.structure.differences


def test_wrong_numbers_are_refuted_by_numerics(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    """The structure is the same; one weight in a hundred parts tells."""
    off = weight_of(1)
    off[0, 0] *= 1.01
    check = tmp_path / "off.check.npz"
    write_check(check, evidence(off, sha256(pair[0])))
    report = verify(*pair, device="cpu", check=check, only=FAST)
    assert report.structure.verdict == "pass"
    assert report.numerics.verdict == "fail"
    assert report.verdict == "fail"
    assert "numerics: output 'y': error" in str(report)


def test_evidence_of_another_file_is_said(pair: tuple[Path, Path]) -> None:
    write_check(check_path(pair[0]), evidence(weight_of(1), "0" * 64))
    report = verify(*pair, device="cpu", only="numerics")
    assert report.numerics.verdict == "not_checked" and report.exit_code == 4
    sentence = "student.onnx was rewritten after export"
    assert sentence in str(report) and sentence in report.to_markdown()


def test_a_pass_gives_no_reasons(pair: tuple[Path, Path]) -> None:
    report = verify(*pair, device="cpu", only="numerics")
    assert report.verdict == "pass" and "numerics: " not in str(report)


def test_without_check_data_numerics_is_not_checked(pair: tuple[Path, Path]) -> None:
    check_path(pair[0]).unlink()
    report = verify(*pair, device="cpu", only=FAST)
    assert report.numerics.verdict == "not_checked"
    assert report.verdict == "inconclusive" and report.exit_code == 4
    assert not report


def test_numerics_alone_needs_no_reference(pair: tuple[Path, Path]) -> None:
    assert verify(pair[0], device="cpu", only="numerics")


@pytest.mark.slow
def test_latency_of_a_pair_is_reported_with_its_protocol(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    heard: list[float] = []
    report = verify(
        *pair,
        device="cpu",
        only="latency",
        budget=SECOND,
        plot=tmp_path / "latency.png",
        progress=lambda text, share: heard.append(share),
    )
    assert report.latency.margin == auto_margin(resolve_device("cpu")) == 0.05
    assert report.latency.rule == "no-slower"
    options: Mapping[str, Any] = report.environment["options"]
    assert options["budget"] == SECOND and options["seed"] and options["spinning"] is False
    assert report.environment["device"]["provider"] == "CPUExecutionProvider"
    assert (tmp_path / "latency.png").stat().st_size > 0
    assert heard == sorted(heard) and heard
    saved = tmp_path / "report.json"
    report.save(saved)
    assert json.loads(saved.read_text())["latency"]["sessions"] >= 3


def test_models_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        save_model(tmp_path / folder / "model.onnx", seed)
    paths = [tmp_path / folder / "model.onnx" for folder in "ab"]
    report = verify(*paths, device="cpu", only=FAST)
    assert {path.as_posix() for path in paths} <= set(report.files)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"margin": 0}, "margin is 0; give auto or a number above 0"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"margin": 1.5}, "margin is 1.5"),
        ({"margin": math.nan}, "margin is nan"),
        ({"margin": math.inf}, "margin is inf"),
        ({"margin": "wide"}, "margin is 'wide'"),
        ({"margin": True}, "margin is True"),
        ({"latency": "faster"}, "latency is 'faster'; give no-slower or equal"),
        ({"on_inconclusive": "ignore"}, "on_inconclusive is 'ignore'; give warn or fail"),
        ({"device": "tpu"}, "'tpu' is unknown; give auto, cpu or cuda"),
        ({"budget": 0}, "budget is 0; give seconds above 0"),
        ({"budget": math.nan}, "budget is nan"),
        ({"only": ()}, "only is empty; give one or more of structure, numerics, latency"),
        ({"only": "structure,colour"}, "only is 'colour'"),
        ({"only": ["numerics", "size"]}, "only is 'size'"),
        ({"plot": "latency.gif"}, r"no \.png, \.svg, \.pdf file"),
        ({"plot": "no/such/folder/latency.png"}, "folder no/such/folder of the plot"),
        ({"plot": "latency.png", "only": "numerics"}, "ask for one of them"),
        ({"shapes": ["x=1x8"], "only": "structure"}, "ask for latency too"),
        ({"shapes": "x=1xy"}, "wanted sizes from 1 up"),
        ({"shapes": ["x=1x8", {"x": (1, 8)}]}, "shapes mixes text and mappings"),
    ],
)
def test_options_without_meaning_are_refused_before_anything_runs(
    options: dict[str, Any], sentence: str
) -> None:
    """The model does not even exist: the option is what the sentence is about."""
    with pytest.raises(InputError, match=sentence):
        verify("gone.onnx", "gone too.onnx", **{"device": "cpu", **options})


def test_a_margin_may_be_words_of_a_command_line(pair: tuple[Path, Path]) -> None:
    report = verify(*pair, device="cpu", margin="0.9", only="latency", budget=SECOND)
    assert report.latency.margin == 0.9


@pytest.mark.parametrize("only", [None, "structure", "latency", "numerics,latency"])
def test_a_missing_reference_is_said_before_time_is_spent(
    pair: tuple[Path, Path], only: str | None
) -> None:
    with pytest.raises(InputError, match="without the export of the untouched student"):
        verify(pair[0], device="cpu", only=only)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("gone.onnx", "reference.onnx"), "gone.onnx does not exist"),
        (("student.onnx", "gone.onnx"), "gone.onnx does not exist"),
        (("student.onnx", "."), "is a folder"),
    ],
)
def test_missing_files_are_named(
    pair: tuple[Path, Path], arguments: tuple[str, str], sentence: str
) -> None:
    paths = [pair[0].parent / name for name in arguments]
    with pytest.raises(ArtefactError, match=sentence):
        verify(*paths, device="cpu")


def test_missing_check_data_that_was_asked_for_is_named(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ArtefactError, match=r"gone\.npz does not exist"):
        verify(*pair, device="cpu", check=pair[0].parent / "gone.npz")
