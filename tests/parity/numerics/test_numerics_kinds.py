"""Numerics by kind of operator, of output and of damage, and the rate of false refutations."""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from op_graphs import CPU, GRAPHS, build, evidence, judge, node, sample_of, save
from quick import covering, quick

from opdf_compile.artefacts.check_file import check_path, read_check, write_check
from opdf_compile.errors import ArtefactError
from opdf_compile.parity.numerics.checking import check_numerics
from opdf_compile.parity.numerics.floors import ORDER_FACTOR
from opdf_compile.parity.numerics.numerics_result import NumericsResult


def edit(path: Path, **changes: Any) -> None:
    """Change fields of every sample of the evidence."""
    data = read_check(check_path(path))
    samples = tuple(dataclasses.replace(sample, **changes) for sample in data.samples)
    write_check(check_path(path), dataclasses.replace(data, samples=samples))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", GRAPHS)
def test_a_correct_export_passes(tmp_path: Path, kind: str, dtype: str) -> None:
    for seed in range(6):
        found = judge(build(tmp_path / f"{seed}.onnx", kind, seed, dtype))
        assert found.verdict == "pass", found.worst
        assert found.samples == 3 and len(found.outputs) == 1
        assert found.max_abs_error is not None and found.tolerance is not None
        assert found.max_abs_error <= found.tolerance
        assert found.noise_floor is not None and found.noise_floor > 0


@pytest.mark.parametrize(("kind", "wrong"), covering(GRAPHS, [1e-2, 1e-3, -1e-3]))
def test_one_wrong_weight_is_refuted(tmp_path: Path, kind: str, wrong: float) -> None:
    for seed in range(6):
        found = judge(build(tmp_path / f"{seed}.onnx", kind, seed, wrong=wrong))
        assert found.verdict == "fail"
        assert "'y'" in found.worst and "tolerance" in found.worst


@pytest.mark.parametrize("kind", ["gemm", "conv"])
def test_one_weight_that_changed_sign_is_refuted_in_float16(tmp_path: Path, kind: str) -> None:
    for seed in range(4):
        assert judge(build(tmp_path / "m.onnx", kind, seed, "float16", wrong=-2.0)).verdict == (
            "fail"
        )


def test_the_tolerance_scales_with_the_output(tmp_path: Path) -> None:
    plain = judge(build(tmp_path / "plain.onnx", "gemm", 3))
    large = judge(build(tmp_path / "large.onnx", "gemm", 3, scale=2.0**20))
    assert plain.tolerance is not None and large.tolerance is not None
    assert large.tolerance == pytest.approx(plain.tolerance * 2.0**20, rel=0.5)
    assert large.verdict == plain.verdict == "pass"
    for scale in (2.0**-20, 2.0**20):
        wrong = build(tmp_path / "wrong.onnx", "gemm", 3, scale=scale, wrong=1e-3)
        assert judge(wrong).verdict == "fail"


def passing(tmp_path: Path, *truths: tuple[str, Any], computed: Any = None) -> Path:
    """Identity per output: the candidate gives the input, the evidence says what is right."""
    names = [f"y{i}" for i in range(len(truths))]
    given = {f"x{i}": np.asarray(value[1]) for i, value in enumerate(truths)}
    path = save(
        tmp_path / "identity.onnx",
        [node("Identity", f"x{i}", name) for i, name in enumerate(names)],
        {f"x{i}": (str(v.dtype), v.shape) for i, v in enumerate(given.values())},
        {f"y{i}": (str(v.dtype), v.shape) for i, v in enumerate(given.values())},
    )
    wide = {
        n: v.astype(np.float64) if v.dtype.kind == "f" else v
        for n, v in zip(names, given.values(), strict=True)
    }
    evidence(path, [sample_of(given, wide, wide if computed is None else computed)])
    return path


def test_integers_are_exact(tmp_path: Path) -> None:
    labels = np.array([3, 1, 4, 1], dtype=np.int64)
    path = passing(tmp_path, ("label", labels))
    assert judge(path).verdict == "pass"
    off = labels.copy()
    off[2] += 1
    edit(path, outputs={"y0": off})
    found = judge(path)
    assert found.verdict == "fail" and "(2,)" in found.worst and "'y0'" in found.worst


def test_an_argmax_that_torch_itself_decides_otherwise_is_no_fault(tmp_path: Path) -> None:
    """In the exported dtype two scores tie; the float64 truth tells them apart."""
    labels = np.array([3, 1, 4, 1], dtype=np.int64)
    path = passing(tmp_path, ("label", labels))
    off = labels.copy()
    off[2] += 1
    edit(path, outputs={"y0": off}, error={"y0": 1.0}, rms={"y0": 0.5})
    assert judge(path).verdict == "not_checked"


SPECIAL = np.array([1.0, math.nan, math.inf, -math.inf, 2.0], dtype=np.float32)


def test_nan_and_infinity_where_the_truth_has_them_pass(tmp_path: Path) -> None:
    found = judge(passing(tmp_path, ("y", SPECIAL)))
    assert found.verdict == "pass" and found.max_abs_error == 0.0


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        (0, math.nan, "NaN"),
        (1, 1.0, "NaN"),
        (4, math.inf, "infinity"),
        (2, 5.0, "infinity"),
        (2, -math.inf, "other sign"),
    ],
)
def test_nan_and_infinity_elsewhere_are_refuted(
    tmp_path: Path, place: int, value: float, word: str
) -> None:
    path = passing(tmp_path, ("y", SPECIAL))
    truth = SPECIAL.astype(np.float64)
    truth[place] = value
    edit(path, outputs={"y0": truth})
    found = judge(path)
    assert found.verdict == "fail" and word in found.worst
    assert found.max_abs_error == math.inf


@pytest.mark.parametrize("error", [math.inf, math.nan])
def test_where_torch_overflows_nothing_is_claimed(tmp_path: Path, error: float) -> None:
    path = passing(tmp_path, ("y", np.ones((2, 3), dtype=np.float32)))
    edit(path, outputs={"y0": np.full((2, 3), 7e4)}, error={"y0": error}, rms={"y0": error})
    found = judge(path)
    assert found.verdict == "not_checked" and "overflows" in found.worst


def test_an_output_that_cannot_be_judged_hides_no_wrong_one(tmp_path: Path) -> None:
    ones = np.ones((2, 3), dtype=np.float32)
    path = passing(tmp_path, ("y", ones), ("z", ones))
    edit(
        path,
        outputs={"y0": np.ones((2, 3)), "y1": np.full((2, 3), 1.01)},
        error={"y0": math.inf, "y1": 1e-7},
        rms={"y0": math.inf, "y1": 1e-7},
    )
    found = judge(path)
    assert found.verdict == "fail" and "'y1'" in found.worst


def test_another_shape_is_refuted_in_a_sentence(tmp_path: Path) -> None:
    path = passing(tmp_path, ("y", np.ones((2, 3), dtype=np.float32)))
    edit(path, outputs={"y0": np.ones((3, 2))})
    found = judge(path)
    assert found.verdict == "fail"
    assert found.worst == "output 'y0': has shape (2, 3), the truth has (3, 2)"


def test_another_kind_of_number_is_refuted(tmp_path: Path) -> None:
    path = passing(tmp_path, ("y", np.ones((2, 3), dtype=np.float32)))
    edit(path, outputs={"y0": np.ones((2, 3), dtype=np.int64)})
    found = judge(path)
    assert found.verdict == "fail" and "dtype float32" in found.worst


def test_a_small_wrong_output_is_not_hidden_by_a_large_one(tmp_path: Path) -> None:
    large = np.full((4, 3), 1e6, dtype=np.float32)
    small = np.full((4, 3), 1e-3, dtype=np.float32)
    path = passing(tmp_path, ("large", large), ("small", small))
    assert judge(path).verdict == "pass"
    edit(path, outputs={"y0": large.astype(np.float64), "y1": small.astype(np.float64) * 1.01})
    found = judge(path)
    assert found.verdict == "fail" and "'y1'" in found.worst
    assert [error.excess > 1 for error in found.outputs] == [False, True]


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (0, 4)])
def test_empty_outputs_pass(tmp_path: Path, shape: tuple[int, ...]) -> None:
    found = judge(passing(tmp_path, ("y", np.zeros(shape, dtype=np.float32))))
    assert found.verdict == "pass" and found.max_abs_error == 0.0


def test_an_output_of_zeros_passes_and_must_stay_zero(tmp_path: Path) -> None:
    path = passing(tmp_path, ("y", np.zeros((2, 3), dtype=np.float32)))
    assert judge(path).verdict == "pass"
    edit(path, inputs={"x0": np.full((2, 3), 1e-30, dtype=np.float32)})
    assert judge(path).verdict == "fail"


def test_scalars_keep_their_rank(tmp_path: Path) -> None:
    path = passing(tmp_path, ("y", np.float32(3.0)), ("n", np.int64(5)))
    assert judge(path).verdict == "pass"


def test_bfloat16_goes_through(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    # Sixteen rows: of a single one, two roundings of 8 bits say next to nothing.
    x = np.full((16, 3), [1.0, -2.5, 0.1], dtype=np.float32).astype(ml_dtypes.bfloat16)
    value = {"x": ("bfloat16", [16, 3])}
    path = save(tmp_path / "b.onnx", [node("Identity", "x", "y")], value, {"y": value["x"]})
    wide = x.astype(np.float64)
    evidence(path, [sample_of({"x": x}, {"y": wide}, {"y": wide})], "bfloat16")
    assert judge(path).verdict == "pass"
    edit(path, outputs={"y": wide * 2})
    assert judge(path).verdict == "fail"


def test_evidence_of_another_file_is_refuted_by_its_numbers(tmp_path: Path) -> None:
    path = build(tmp_path / "a.onnx", "gemm", 0)
    other = build(tmp_path / "b.onnx", "gemm", 1)
    found = check_numerics(path, check_path(other), CPU)
    assert found.verdict == "fail"
    assert "SHA-256" in found.worst and "b.check.npz" in found.worst
    assert "its numbers are not those that were exported: output 'y'" in found.worst


def test_without_evidence_nothing_is_checked(tmp_path: Path) -> None:
    found = check_numerics(build(tmp_path / "a.onnx", "soft", 0), None, CPU)
    assert found == NumericsResult("not_checked", worst="there is no check data")


@pytest.mark.parametrize("change", ["input", "output", "more inputs", "more outputs", "width"])
def test_evidence_of_another_interface_is_an_error(tmp_path: Path, change: str) -> None:
    nodes = [node("Add", "x x", "y")]
    inputs: dict[str, Any] = {"x": ("float32", ["n", 3])}
    outputs: dict[str, Any] = {"y": ("float32", ["n", 3])}
    if change == "more inputs":
        inputs["m"] = ("float32", ["n", 3])
        nodes = [node("Add", "x m", "y")]
    elif change == "more outputs":
        outputs["z"] = ("float32", ["n", 3])
        nodes.append(node("Mul", "x x", "z"))
    path = save(tmp_path / "m.onnx", nodes, inputs, outputs)
    x = np.ones((2, 4 if change == "width" else 3), dtype=np.float32)
    names = {"input": ("q", "y"), "output": ("x", "q")}.get(change, ("x", "y"))
    wide = {names[1]: x.astype(np.float64) * 2}
    evidence(path, [sample_of({names[0]: x}, wide, wide)])
    with pytest.raises(ArtefactError, match="give the check data that was exported with"):
        judge(path)


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def repack(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def as_npy(value: Any, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value, allow_pickle=allow_pickle)
    return stream.getvalue()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sound") / "m.onnx", "soft", 0)


def refuse(model: Path, check: Path) -> None:
    with pytest.raises(ArtefactError) as caught:
        check_numerics(model, check, CPU)
    assert str(check) in str(caught.value) and "again" in str(caught.value)


def test_bytes_that_are_no_npz_are_an_error(tmp_path: Path, sound: Path) -> None:
    check = tmp_path / "c.check.npz"
    for content in (b"", b"PK\x03\x04", np.random.default_rng(0).bytes(5000), b"\0" * 100):
        check.write_bytes(content)
        refuse(sound, check)


def test_a_pickle_is_refused(tmp_path: Path, sound: Path) -> None:
    check = tmp_path / "c.check.npz"
    stranger = Counter("harmless")
    pickled = as_npy(np.array([stranger], dtype=object), allow_pickle=True)
    for content in (pickled, pickle.dumps(stranger)):
        repack(check, {**entries(check_path(sound)), "s0.in.x.npy": content})
        refuse(sound, check)
        check.write_bytes(content)
        refuse(sound, check)


def test_a_missing_entry_is_an_error(tmp_path: Path, sound: Path) -> None:
    check = tmp_path / "c.check.npz"
    whole = entries(check_path(sound))
    for name in whole:
        repack(check, {n: content for n, content in whole.items() if n != name})
        refuse(sound, check)


@pytest.mark.parametrize(
    "value", [np.array("word"), np.zeros(3), np.zeros((0,)), np.array([b"x"])], ids=repr
)
@pytest.mark.parametrize("name", ["s0.err.y", "s0.rms.y", "s1.maxabs.y", "schema"])
def test_an_entry_of_another_kind_is_an_error(
    tmp_path: Path, sound: Path, name: str, value: Any
) -> None:
    check = tmp_path / "c.check.npz"
    repack(check, {**entries(check_path(sound)), f"{name}.npy": as_npy(value)})
    refuse(sound, check)


def test_names_and_truths_of_another_kind_are_an_error(tmp_path: Path, sound: Path) -> None:
    check = tmp_path / "c.check.npz"
    for name, value in (
        ("input_names", np.array("x")),
        ("output_names", np.array("y")),
        ("output_names", np.zeros((0,))),
        ("s0.out.y", np.array(["a", "b"])),
        ("s0.out.y", np.zeros((4, 10), dtype=np.int64)),
    ):
        repack(check, {**entries(check_path(sound)), f"{name}.npy": as_npy(value)})
        refuse(sound, check)


def test_a_truncated_file_is_an_error(tmp_path: Path, sound: Path) -> None:
    check = tmp_path / "c.check.npz"
    content = check_path(sound).read_bytes()
    for length in range(0, len(content) - 1, len(content) // 40):
        check.write_bytes(content[:length])
        refuse(sound, check)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_bytes_are_read_or_refused(tmp_path: Path, sound: Path, method: int) -> None:
    """Whatever a flipped byte hits, the answer is check data or an ArtefactError."""
    check = tmp_path / "c.check.npz"
    repack(check, entries(check_path(sound)), method)
    content, refused = check.read_bytes(), 0
    rng = np.random.default_rng(7)
    for _ in range(400):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=3):
            damaged[place] = rng.integers(256)
        check.write_bytes(bytes(damaged))
        try:
            read_check(check)
        except ArtefactError:
            refused += 1
    assert refused > 200


def shift(path: Path, factor: float) -> None:
    """Move the truth of a model away from what it computes."""
    data = read_check(check_path(path))
    samples = tuple(
        dataclasses.replace(s, outputs={n: v * (1 + factor) for n, v in s.outputs.items()})
        for s in data.samples
    )
    write_check(check_path(path), dataclasses.replace(data, samples=samples))


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e6])
def test_a_wrong_reference_cannot_excuse_a_wrong_candidate(tmp_path: Path, factor: float) -> None:
    candidate = build(tmp_path / "candidate.onnx", "gemm", 0, wrong=1e-3)
    reference = build(tmp_path / "reference.onnx", "gemm", 1)
    shift(reference, factor)
    alone = judge(candidate)
    found = judge(candidate, reference=reference, reference_check=check_path(reference))
    assert found.verdict == "fail"
    assert alone.tolerance is not None and found.tolerance is not None
    assert alone.tolerance < found.tolerance <= alone.tolerance * ORDER_FACTOR * (1 + 1e-12)


def test_a_correct_reference_leaves_a_correct_candidate_alone(tmp_path: Path) -> None:
    candidate = build(tmp_path / "candidate.onnx", "conv", 0)
    reference = build(tmp_path / "reference.onnx", "conv", 1)
    found = judge(candidate, reference=reference, reference_check=check_path(reference))
    assert found.verdict == "pass"


def small_model(path: Path, seed: int) -> Path:
    """A random chain of layers, down to a single output element; unbatched and flat ones too."""
    rng = np.random.default_rng([41, seed])
    flat = seed % 4 == 3
    widths = [int(rng.integers(1, 200)), *rng.integers(1, 60, size=rng.integers(1, 4)).tolist()]
    widths[-1] = [1, 1, 2, 7][int(rng.integers(4))]
    batch = [] if flat else [int(rng.integers(1, 5))]
    ops = ["Relu", "Tanh", "Sigmoid", "Identity", "Exp"]
    chosen = [ops[int(i)] for i in rng.integers(len(ops), size=len(widths) - 1)]
    chosen[-1] = "Identity"
    call = {"Identity": lambda h: h, "Exp": torch.exp, "Relu": torch.relu, "Tanh": torch.tanh,
            "Sigmoid": torch.sigmoid}  # fmt: skip
    weights, nodes, name = {}, [], "x"
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        values = rng.standard_normal((a, b)) / math.sqrt(a)
        weights[f"w{i}"] = values.astype(np.float32)
        nodes += [node("MatMul", f"{name} w{i}", f"m{i}"), node(chosen[i], f"m{i}", f"h{i}")]
        name = f"h{i}"
    nodes.append(node("Identity", name, "y"))

    def run(x: torch.Tensor) -> torch.Tensor:
        for i, op in enumerate(chosen):
            x = call[op](x @ torch.from_numpy(weights[f"w{i}"]).to(x.dtype))
        return x

    samples = []
    for _ in range(4):
        x = rng.standard_normal([*batch, widths[0]]).astype(np.float32)
        truth = run(torch.from_numpy(x).double()).numpy()
        samples.append(sample_of({"x": x}, {"y": truth}, {"y": run(torch.from_numpy(x))}))
    save(path, nodes, {"x": ("float32", x.shape)}, {"y": ("float32", truth.shape)}, weights)
    evidence(path, samples)
    return path


@pytest.mark.parametrize("seeds", quick([range(50), range(50, 200)], {range(50)}))
def test_no_correct_model_of_many_is_refuted(seeds: range, tmp_path: Path) -> None:
    refuted = {}
    for seed in seeds:
        found = judge(small_model(tmp_path / "m.onnx", seed))
        if found.verdict != "pass":
            refuted[seed] = found.worst
    assert not refuted
