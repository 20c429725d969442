"""The latency measurement refutes what is slower, and never what is the same."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from opdf_compile.artefacts.check_file import CheckData, Sample, write_check
from opdf_compile.artefacts.onnx_file import read_onnx
from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.parity.latency import race as race_module
from opdf_compile.parity.latency import timing as timing_module
from opdf_compile.parity.latency.inputs import BATCH, IMAGE, LENGTH, latency_inputs
from opdf_compile.parity.latency.latency_result import SESSION_ROLES, LatencyResult
from opdf_compile.parity.latency.measure import _notes, measure_latency
from opdf_compile.parity.latency.race import LEAST_GROUPS, LEAST_ROUNDS, LOOKS
from opdf_compile.parity.latency.shape_option import declared_inputs, parse_shapes
from opdf_compile.parity.runtime.ort import bound_session as binding_module
from opdf_compile.parity.runtime.ort.bound_session import bind
from opdf_compile.parity.runtime.ort.sessions import open_session
from opdf_compile.parity.runtime.protocol import Device
from opdf_compile.parity.runtime.registry import resolve_device

WIDTH = 64
WORST_FIRST = ("fail", "inconclusive", "pass")
KEYS = {
    *("verdict", "device", "provider", "ratio", "ci_low", "ci_high", "margin", "rule", "control"),
    *("sessions", "rounds", "reference_ms", "candidate_ms"),
    *("throughput", "memory", "cold_start_ms", "cold_start", "file_bytes", "shapes"),
}


def save_model(
    path: Path,
    *,
    extra: int = 0,
    seed: int = 0,
    kind: int = TensorProto.FLOAT,
    name: str = "x",
    shape: tuple[int | str, ...] = ("batch", WIDTH),
) -> Path:
    """A MatMul, and where wanted a detour through matrices of `extra` rows that costs far more."""
    rng = np.random.default_rng(seed)
    chain = [(WIDTH, WIDTH), *([(WIDTH, extra), (extra, extra), (extra, WIDTH)] if extra else [])]
    nodes, weights, value = [helper.make_node("Cast", [name], ["c"], to=TensorProto.FLOAT)], [], "c"
    for index, sizes in enumerate(chain):
        weight = (rng.standard_normal(sizes) / math.sqrt(sizes[0])).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"h{index}"]))
        # A Relu between two MatMuls, so that the runtime cannot fold them into one.
        nodes.append(helper.make_node("Relu", [f"h{index}"], [f"r{index}"]))
        value = f"r{index}"
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info(name, kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def cpu() -> Device:
    return resolve_device("cpu")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("latency") / "reference.onnx")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger model, whose input has another name."""
    return save_model(tmp_path_factory.mktemp("large") / "large.onnx", extra=1024, name="pixels")


@pytest.fixture(scope="module")
def least(large: Path, reference: Path, cpu: Device) -> LatencyResult:
    """The shortest measurement, of the larger model against the reference."""
    found = measure_latency(large, reference, cpu, margin=0.5, budget=1e-6, threads=1)
    for times in found.seconds.values():
        times.flags.writeable = False
    return found


def test_a_slowed_model_is_refuted(tmp_path: Path, reference: Path, cpu: Device) -> None:
    slow = save_model(tmp_path / "slow.onnx", extra=2048)
    result = measure_latency(slow, reference, cpu, margin=0.05, budget=15, threads=1)
    assert result.verdict == "fail"
    assert result.ratio is not None and result.ratio > 1.5
    assert result.candidate_ms is not None and result.reference_ms is not None
    assert result.candidate_ms > result.reference_ms


@pytest.mark.slow
def test_the_slower_reference_lets_the_candidate_pass_but_not_be_equal(
    tmp_path: Path, reference: Path, cpu: Device
) -> None:
    slow = save_model(tmp_path / "slow.onnx", extra=2048)
    one_sided = measure_latency(reference, slow, cpu, margin=0.3, budget=10, threads=1)
    assert one_sided.verdict != "fail"
    assert one_sided.ratio is not None and one_sided.ratio < 0.7
    both = measure_latency(reference, slow, cpu, margin=0.05, rule="equal", budget=10, threads=1)
    assert both.verdict == "fail"


def test_the_same_model_is_not_refuted(tmp_path: Path, reference: Path, cpu: Device) -> None:
    twin = save_model(tmp_path / "twin.onnx", seed=1)
    result = measure_latency(twin, reference, cpu, margin=0.05, budget=3, threads=1)
    assert result.verdict in ("pass", "inconclusive")
    assert result.ci_low is not None and result.ci_high is not None and result.ratio is not None
    assert result.ci_low <= result.ratio <= result.ci_high


def test_the_result_has_the_keys_of_the_contract(least: LatencyResult) -> None:
    values = least.to_json()
    assert set(values) == KEYS
    assert set(values["control"]) == {"ratio", "ci_low", "ci_high"}
    assert set(LatencyResult().to_json()) == KEYS
    assert values["device"] == "cpu" and values["provider"] == "CPUExecutionProvider"
    for role in SESSION_ROLES:
        assert least.seconds[role].shape == (least.sessions, least.rounds)
        assert (least.seconds[role] > 0).all()


def test_a_tiny_budget_still_buys_the_minimum(least: LatencyResult) -> None:
    """Also where inputs are matched by position, since their names differ."""
    assert least.sessions == LEAST_GROUPS
    assert least.rounds == LEAST_ROUNDS
    assert "budget" in least.notes[0]


@pytest.mark.slow
def test_it_looks_only_where_it_said_it_would(
    reference: Path, cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every verdict before the end of the budget falls at one of the announced looks."""
    looked = []
    clear = race_module.Race._clear

    def spy(race: race_module.Race) -> bool:
        looked.append(race.groups)
        return clear(race)

    monkeypatch.setattr(race_module.Race, "_clear", spy)
    measure_latency(reference, reference, cpu, margin=0.9, budget=30, threads=1)
    assert looked == list(LOOKS[: len(looked)])
    assert len(looked) >= 1


@pytest.mark.slow
def test_progress_is_told_and_never_goes_back(reference: Path, cpu: Device) -> None:
    heard: list[tuple[str, float]] = []
    measure_latency(
        reference,
        reference,
        cpu,
        margin=0.9,
        budget=1,
        threads=1,
        progress=lambda text, share: heard.append((text, share)),
    )
    shares = [share for _, share in heard]
    assert shares == sorted(shares)
    assert shares[0] >= 0.0 and shares[-1] <= 1.0


def test_the_first_sample_of_the_check_data_is_the_input(
    tmp_path: Path, reference: Path, cpu: Device
) -> None:
    value = np.ones((5, WIDTH), np.float32)
    check = tmp_path / "x.check.npz"
    truth = {"y": np.zeros((5, WIDTH))}
    numbers = {"y": 0.0}
    sample = Sample({"x": value}, truth, numbers, numbers, numbers)
    write_check(check, CheckData(("x",), ("y",), "float32", (sample,)))
    found = latency_inputs(declared_inputs(read_onnx(reference)), check, np.random.default_rng(0))
    assert np.array_equal(found["x"], value)


@pytest.mark.parametrize(
    ("kind", "shape", "wanted", "dtype"),
    [
        (TensorProto.FLOAT, ("batch", 8), (BATCH, 8), "float32"),
        (TensorProto.FLOAT, ("n", 3, "h", "w"), (BATCH, 3, IMAGE, IMAGE), "float32"),
        (TensorProto.FLOAT, (2, "length", 8), (2, LENGTH, 8), "float32"),
        (TensorProto.FLOAT, ("length", "batch_size", 4), (BATCH, BATCH, 4), "float32"),
        (TensorProto.INT64, ("B", "S"), (BATCH, LENGTH), "int64"),
        (TensorProto.INT32, (4,), (4,), "int32"),
        (TensorProto.BOOL, ("B", 4), (BATCH, 4), "bool"),
        (TensorProto.FLOAT16, (1, 4), (1, 4), "float16"),
        (TensorProto.DOUBLE, (), (), "float64"),
    ],
)
def test_inputs_are_drawn_in_the_declared_form(
    tmp_path: Path,
    cpu: Device,
    kind: int,
    shape: tuple[int | str, ...],
    wanted: tuple[int, ...],
    dtype: str,
) -> None:
    inputs = [helper.make_tensor_value_info("v", kind, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    node = helper.make_node("Cast", ["v"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph([node], "cast", inputs, outputs)
    path = tmp_path / "cast.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    drawn = latency_inputs(declared_inputs(read_onnx(path)), None, np.random.default_rng(0))["v"]
    assert drawn.shape == wanted
    assert drawn.dtype.name == dtype
    if drawn.dtype.kind in "iu":
        assert set(np.unique(drawn)) <= {0, 1}


def test_a_model_that_rejects_the_inputs_is_named(tmp_path: Path, cpu: Device) -> None:
    """The open axis is drawn as 64 wide, and the model's matrix wants another width."""
    odd = save_model(tmp_path / "odd.onnx", shape=("b", "c", "h", "w"))
    with pytest.raises(
        InputError, match=r"does not run on the inputs x \[1, 64, 224, 224\] \(.*check="
    ):
        measure_latency(odd, odd, cpu, margin=0.05, budget=1e-6, threads=1)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf, True])
def test_a_budget_must_be_a_positive_time(reference: Path, cpu: Device, budget: float) -> None:
    with pytest.raises(InputError, match="seconds above 0"):
        measure_latency(reference, reference, cpu, margin=0.05, budget=budget)


def test_an_unknown_rule_is_refused(reference: Path, cpu: Device) -> None:
    with pytest.raises(InputError, match="no-slower or equal"):
        measure_latency(reference, reference, cpu, margin=0.05, rule="faster")  # type: ignore[arg-type]


def test_a_missing_model_is_named(tmp_path: Path, reference: Path, cpu: Device) -> None:
    with pytest.raises(ArtefactError, match="gone.onnx does not exist"):
        measure_latency(tmp_path / "gone.onnx", reference, cpu, margin=0.05)


def test_several_shapes_are_measured_in_the_same_sessions(reference: Path, cpu: Device) -> None:
    shapes = parse_shapes([f"x=1x{WIDTH},16x{WIDTH}"])
    result = measure_latency(
        reference, reference, cpu, margin=0.5, budget=1e-6, threads=1, shapes=shapes
    )
    assert [dict(row.shape) for row in result.per_shape] == [dict(shape) for shape in shapes]
    found = {shape.verdict for shape in result.per_shape}
    assert result.verdict == next(word for word in WORST_FIRST if word in found)
    assert (result.ratio, result.seconds) in [(s.ratio, s.seconds) for s in result.per_shape]
    for shape, batch in zip(result.per_shape, (1, 16), strict=True):
        assert shape.sessions == result.sessions == LEAST_GROUPS
        assert shape.throughput["candidate"] == pytest.approx(1e3 * batch / shape.candidate_ms)
    assert [row["shape"] for row in result.to_json()["shapes"]] == [
        {"x": [1, WIDTH]},
        {"x": [16, WIDTH]},
    ]


def test_what_comes_with_sessions_is_reported(least: LatencyResult, large: Path) -> None:
    """The larger file takes more memory, and at least its weights."""
    assert least.file_bytes["candidate"] == large.stat().st_size
    assert least.cold_start_ms["reference"] > 0 and least.cold_start is not None
    assert least.cold_start.low <= least.cold_start.ratio <= least.cold_start.high
    small, big = (least.memory[side] for side in ("reference", "candidate"))
    if small is None or big is None:
        pytest.skip("the C library of this system does not count its memory")
    assert big > small and big > 1024 * 1024 * 4


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_every_dtype_is_bound_with_its_own_values(tmp_path: Path, cpu: Device, kind: int) -> None:
    value = helper.make_tensor_value_info("v", kind, [2, 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    node = helper.make_node("Cast", ["v"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph([node], "cast", [value], [out])
    path = tmp_path / "cast.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    rng = np.random.default_rng(0)
    inputs = latency_inputs(declared_inputs(read_onnx(path)), None, rng)
    bound = bind(open_session(path, cpu), inputs, "cpu")
    bound.run()
    found = bound.binding.copy_outputs_to_cpu()[0]
    np.testing.assert_array_equal(found, inputs["v"].astype(np.float32))


def test_on_cuda_inputs_and_outputs_are_bound_on_the_first_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A recorded session stands in for the GPU."""
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(binding_module, "to_runtime", lambda array, kind: (kind, array.shape))
    binding = SimpleNamespace(
        bind_ortvalue_input=lambda name, value: asked.append((name, value)),
        bind_output=lambda name, kind: asked.append((name, kind)),
        synchronize_outputs=lambda: asked.append(("waited",)),
    )
    session = SimpleNamespace(
        io_binding=lambda: binding,
        get_inputs=lambda: [SimpleNamespace(name="x")],
        get_outputs=lambda: [SimpleNamespace(name="y")],
        run_with_iobinding=lambda bound: asked.append(("ran",)),
    )
    bind(session, {"x": np.zeros((4, 5), np.float32)}, "cuda:0")
    assert asked == [("x", ("cuda", (4, 5))), ("y", "cuda"), ("ran",), ("waited",)]


def test_an_interrupted_block_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two blocks see the core taken away; the third one counts."""
    counts = iter([0, 1, 1, 3, 3, 3])
    monkeypatch.setattr(timing_module, "_preemptions", lambda: next(counts))
    blocks = iter([9.0, 8.0, 7.0])
    session = SimpleNamespace(seconds=lambda runs: next(blocks), run=lambda: None)
    assert timing_module.calm_seconds(session, 1, 0.001) == 7.0  # type: ignore[arg-type]


def test_a_machine_that_is_never_calm_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long runs are not repeated, short ones eight times at most."""
    monkeypatch.setattr(timing_module, "_preemptions", itertools.count().__next__)
    for single, wanted in ((0.001, 8), (0.02, 2), (1.0, 1)):
        blocks = itertools.count(1.0)
        session = SimpleNamespace(seconds=lambda runs, blocks=blocks: next(blocks))
        assert timing_module.calm_seconds(session, 1, single) == wanted  # type: ignore[arg-type]


@pytest.mark.gpu
def test_cuda_binds_inputs_and_outputs_on_the_device(tmp_path: Path, reference: Path) -> None:
    twin = save_model(tmp_path / "twin.onnx", seed=1)
    result = measure_latency(twin, reference, resolve_device("cuda"), margin=0.5, budget=5)
    assert result.provider == "CUDAExecutionProvider"
    assert result.verdict != "fail"


@pytest.mark.parametrize(
    ("runs", "note"), [([1], "1 run per block"), ([1, 8], "1, 8 runs per block")]
)
def test_the_note_counts_runs_in_words_that_agree(runs: list[int], note: str) -> None:
    race: Any = SimpleNamespace(tracks=[SimpleNamespace(runs=number) for number in runs])
    assert _notes(race, [], 0.05) == [note]
