"""Every benchmark runs in seconds at a tiny setting, and its JSON follows the schema."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.blocks import stack
from bench.forms import FORMS

import opdf_compile as opdf

ROOT = Path(__file__).parents[2]
SHARED = {"model", "form", "accumulation", "cores", "ratio", "ci_low", "ci_high", "floor"}
TINY = ("--models", "tiny", "--threads", "1")


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def require_rows(value: dict[str, Any], schema: str) -> list[dict[str, Any]]:
    """The rows of a report that follows the schema."""
    assert value["schema"] == schema
    assert {"versions", "device", "threads", "load_average", "options"} <= set(value["environment"])
    assert value["rows"]
    for row in value["rows"]:
        assert set(row) >= SHARED
        assert isinstance(row["model"], str) and isinstance(row["form"], str)
        for key in ("accumulation", "cores"):
            assert row[key] is None or (type(row[key]) is int and row[key] >= 1)
        if None not in (row["ratio"], row["ci_low"], row["ci_high"]):
            assert row["ci_low"] <= row["ratio"] <= row["ci_high"]
    return value["rows"]


def report(script: str, schema: str, *words: str, path: Path) -> list[dict[str, Any]]:
    """Run a benchmark in this process and read its JSON."""
    importlib.import_module(script).main([*TINY, *words, "--json", str(path)])
    return require_rows(json.loads(path.read_text()), schema)


def test_methods_step(tmp_path: Path):
    path = tmp_path / "methods.json"
    words = ("--methods", "gains,repvgg", "--rounds", "3")
    rows = report("methods_step", "opdf-methods-step/1", *words, path=path)
    assert [(row["form"], row["against"]) for row in rows] == [("gains", "plain")]
    # A network of linear layers has no site, and the report says so.
    assert "branches" in json.loads(path.read_text())["refused"]["tiny"]["repvgg"]
    assert [row["planned"] for row in rows] == [[2, 2]]


def test_what_each_method_costs_goes_between_the_marks_of_a_page(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: methods -->\n<!-- end -->\nafter\n")
    words = ("--methods", "default,gains,repvgg", "--rounds", "2", "--page", str(page))
    path = tmp_path / "methods.json"
    rows = report("methods_step", "opdf-methods-step/1", *words, path=path)
    before, _mark, *lines, end, after = page.read_text().splitlines()
    assert (before, end, after) == ("before", "<!-- end -->", "after")
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line]
    assert cells[0] == ["method", "tiny"]
    wanted = [
        [f"`{r['form']}`", f"{r['ratio']:.2f} [{r['ci_low']:.2f}, {r['ci_high']:.2f}], 2 of 2"]
        for r in rows
    ]
    assert cells[2:] == wanted and len(wanted) == 2


@pytest.mark.slow
def test_methods_step_of_blocks(tmp_path: Path):
    words = ("--models", "blocks", "--rounds", "3")
    rows = report("methods_step", "opdf-methods-step/1", *words, path=tmp_path / "methods.json")
    assert {row["form"]: row["against"] for row in rows} == {
        "repvgg, by hand": "plain",
        "repvgg, modules": "repvgg, by hand",
        "repvgg, inline": "repvgg, by hand",
        "mobileone, by hand": "plain",
        "mobileone, modules": "mobileone, by hand",
        "mobileone, inline": "mobileone, by hand",
    }


def test_blocks_by_hand_have_the_layers_of_the_branches():
    """So that they are compared with their like: parameters, and outputs of equal weights."""
    torch.manual_seed(0)
    plain = stack((4, 4, 8))
    x = torch.randn(2, 3, 8, 8)
    plan = opdf.plan(opdf.trace(plain, (x,)), parametrization="mobileone(copies=2)", min_size=1)
    branched, by_hand = opdf.branch(plain, plan), stack((4, 4, 8), 2)
    counts = [sum(p.numel() for p in model.parameters()) for model in (branched, by_hand)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": "opdf-training-step/2"},
        {"rows": []},
        {"rows": [dict.fromkeys(SHARED - {"floor"})]},
        {"rows": [{**dict.fromkeys(SHARED), "model": "m", "form": "f", "cores": 0}]},
        {
            "rows": [
                {**dict.fromkeys(SHARED), "model": "m", "form": "f"}
                | {"ratio": 2.0, "ci_low": 2.5, "ci_high": 3.0}
            ]
        },
        {"environment": {}},
    ],
)
def test_the_schema_check_rejects_what_is_wrong(damage: dict[str, Any]):
    environment = dict.fromkeys(("versions", "device", "threads", "load_average", "options"))
    good = {
        "schema": "opdf-training-step/1",
        "environment": environment,
        "rows": [{**dict.fromkeys(SHARED), "model": "m", "form": "f"}],
    }
    require_rows(good, "opdf-training-step/1")
    with pytest.raises(AssertionError):
        require_rows({**good, **damage}, "opdf-training-step/1")


def test_training_step(tmp_path: Path):
    words = ("--accumulation", "1,2", "--rounds", "3", "--profile")
    path = tmp_path / "step.json"
    rows = report("training_step", "opdf-training-step/1", *words, path=path)
    assert [(row["accumulation"], row["form"]) for row in rows] == [
        (accumulation, form) for accumulation in (1, 2) for form in FORMS
    ]
    for row in rows:
        if row["form"] == "plain":
            assert row["ratio"] == row["floor"] == 1.0
        else:
            assert row["ratio"] > 0 and row["floor"] > 0 and row["over_floor"] > 0
        assert row["rounds"] == 3 and row["cores"] == 3 and row["scale"] > 1
        assert 0 < row["optimizer_share"] < 1 and row["optimizer_ratio"] > 0
        assert 0 < row["optimizer_seconds"] < row["seconds"]
        rate = row["compose_gflop"] / row["compose_seconds"]
        assert rate == pytest.approx(row["gemm_gflops"])
    profiles = json.loads(path.read_text())["profiles"]
    assert [profile["form"] for profile in profiles] == ["hoisted", "batched"]
    assert profiles[0]["phases"]["pull"]["seconds"] > 0


@pytest.mark.slow
def test_training_step_of_some_forms_with_json_on_stdout():
    words = ("--accumulation", "2", "--rounds", "2", "--forms", "hoisted", "--json", "-")
    done = run("training_step.py", *TINY, *words)
    assert done.returncode == 0, done.stderr
    rows = require_rows(json.loads(done.stdout), "opdf-training-step/1")
    assert [row["form"] for row in rows] == ["plain", "hoisted"]
    assert "over floor" in done.stderr


def weight_scale(path: Path, *words: str) -> dict[str, Any]:
    from weight_scale import main

    main([*words, "--rounds", "2", "--threads", "1", "--clock", "cpu", "--json", str(path)])
    value = json.loads(path.read_text())
    require_rows(value, "opdf-weight-scale/1")
    return value


@pytest.mark.slow
def test_weight_scale(tmp_path: Path):
    plot = tmp_path / "scale.png"
    words = ("--weights", "4,2", "--forms", "default", "--plot", str(plot))
    value = weight_scale(tmp_path / "scale.json", *words)
    found = [(row["form"], row["weights"]) for row in value["rows"]]
    assert found == [("default", 2), ("default", 4)]
    for row in value["rows"]:
        assert row["build"] == "this" and row["rounds"] == 2
        low, high = row["added_quartiles"]
        assert low <= row["added_seconds"] <= high
        assert row["micros_per_weight"] == pytest.approx(
            row["added_seconds"] / row["weights"] * 1e6
        )
    assert [s["form"] for s in value["slopes"]] == ["default"]
    # The plan has a weight for each layer.
    assert {facts["weights"] for facts in value["builds"]} == {2, 4}
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_weight_scale_against_a_checkout(tmp_path: Path):
    words = ("--weights", "2", "--forms", "default", "--against", str(ROOT))
    value = weight_scale(tmp_path / "scale.json", *words, "--against-python", sys.executable)
    assert [row["build"] for row in value["rows"]] == ["this", "other"]
    assert [(b["build"], b["weights"]) for b in value["builds"]] == [("this", 2), ("other", 2)]


@pytest.mark.parametrize(("power", "met"), [(0.9, True), (1.04, True), (1.06, False), (2.0, False)])
def test_a_slope_above_the_target_is_missed(power: float, met: bool):
    from weight_scale import slope

    rows = [{"weights": n, "added_seconds": 1e-4 * n**power} for n in (10, 30, 100)]
    found = slope(rows)
    assert (found["slope"], found["end"]) == pytest.approx((power, power))
    assert found["met"] is met
    # What is bent at the end only shows there first.
    bent = slope([*rows, {"weights": 300, "added_seconds": 1e-4 * 300 ** (power + 0.1)}])
    assert bent["end"] > bent["slope"] > power
    free = [{"weights": n, "added_seconds": -1e-6} for n in (10, 30)]
    assert slope(free) == {"slope": None, "end": None, "met": None}


def test_decompose(tmp_path: Path):
    path = tmp_path / "decompose.json"
    rows = report("decompose", "opdf-decompose/1", "--rounds", "2", path=path)
    assert [row["form"] for row in rows] == ["decompose", "one SVD per bond"]
    assert all(row["seconds"] > 0 and row["matrices"] == 2 for row in rows)


def test_memory(tmp_path: Path):
    rows = report("memory", "opdf-memory/1", path=tmp_path / "memory.json")
    by_form = {(row["form"], row["recompute"]): row for row in rows}
    plain, hoisted = by_form["plain", False], by_form["hoisted", False]
    assert plain["ratio"] == 1.0 and plain["cores_bytes"] == 0
    # tiny: value, gradient and two moments of the cores in float32, and a step count each.
    values = 4 * 4 * 15_360
    assert values <= hoisted["cores_bytes"] <= values + 6 * 64
    assert 0 < hoisted["beyond_bytes"] < hoisted["peak_bytes"]
    assert by_form["hoisted", True]["beyond_bytes"] < hoisted["beyond_bytes"]


def test_alignment(tmp_path: Path):
    words = ("--accumulation", "1,2", "--rounds", "3")
    rows = report("alignment", "opdf-alignment/1", *words, path=tmp_path / "alignment.json")
    assert [row["accumulation"] for row in rows] == [1, 2]
    for row in rows:
        # Two weights of 48 x 64, two of three cores of each, with bonds of 48.
        assert row["form"] == "aligned" and row["cores"] == row["rounds"] == 3
        assert 0 < row["compared_parameters"] < row["core_parameters"] == 15_360
        assert row["share_alone"] > 0 and row["alignment_seconds"] > 0


@pytest.mark.slow
def test_ddp(tmp_path: Path):
    """Ten processes; `test_traffic.py` has the arithmetic and the counting without them."""
    rows = report("ddp", "opdf-ddp/1", path=tmp_path / "ddp.json")
    plain, inline, hoisted, shared = rows
    student = 4 * (2 * 48 * 64 + 48 + 64)  # Gradients of tiny: two weights, two biases.
    assert plain["gradient_bytes"] == hoisted["gradient_bytes"] == student
    assert plain["ratio"] == hoisted["ratio"] == 1.0 and hoisted["met"] is True
    assert inline["gradient_bytes"] == 4 * (15_360 + 48 + 64)
    assert shared["ranks"] == 4 and shared["broadcast_bytes"] == 4 * 2 * 48 * 64
    wanted = 1 + shared["broadcast_bytes"] / (2 * student)
    # Whether a weight was changed is agreed on with a few bytes more.
    assert wanted <= shared["ratio"] <= wanted + 2 * 16 / (2 * student)
    # Two weights on four ranks: one rank has half, however well they are dealt.
    assert shared["core_and_state_share"] == pytest.approx(0.5, abs=0.01)
    assert shared["met"] is False


@pytest.mark.slow
def test_graph_scale(tmp_path: Path):
    path, picture = tmp_path / "scale.json", tmp_path / "scale.png"
    words = ("--rounds", "1", "--plot", str(picture))
    rows = report("graph_scale", "opdf-graph-scale/1", *words, path=path)
    assert [(row["layers"], row["weights"]) for row in rows] == [(2, 2), (4, 4), (8, 8)]
    for row in rows:
        times = row["cpu_seconds"]
        assert row["ratio"] == pytest.approx(sum(times.values()) / times["export"])
        assert row["ratio"] > 1 and min(times.values()) >= 0
    slopes = json.loads(path.read_text())["slopes"]["tiny"]
    assert set(slopes) == {"export", "unlift", "trace", "match", "plan", "expand", "own"}
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_cold_start(tmp_path: Path):
    from cold_start import main

    path = tmp_path / "cold.json"
    words = ("--commands", "verify", "--rounds", "2", "--clock", "cpu", "--json", str(path))
    main(["--against", str(ROOT), *words])
    (row,) = require_rows(json.loads(path.read_text()), "opdf-cold-start/1")
    for side in (row["seconds"], row["against"]):
        assert side["cpu"] > 0 and side["wall"] > 0 and 10 < side["mib"] < 300
    # The same checkout twice.
    assert row["ratio"] > 0 and 0.9 < row["memory_ratio"] < 1.1
    assert row["met"] is False


@pytest.mark.parametrize(
    ("clock", "mib", "ratio", "met"),
    [("cpu", 50.0, 0.25, True), ("wall", 50.0, 0.5, False), ("cpu", 60.0, 0.25, False)],
)
def test_a_cold_start_meets_its_targets_in_time_and_memory(
    clock: str, mib: float, ratio: float, met: bool
):
    from cold_start import Cost, measured

    costs = [[Cost(1.0, 0.5, mib)] * 3, [Cost(2.0, 2.0, 100.0)] * 3]
    found = measured("verify", costs, clock)
    assert (found["ratio"], found["memory_ratio"], found["met"]) == (ratio, mib / 100, met)
    assert measured("help", costs, clock)["met"] is None


def test_cold_start_takes_a_failing_command_for_no_measurement(tmp_path: Path, capsys: Any):
    from cold_start import main

    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "--commands", "verify", "--rounds", "2"])
    assert stopped.value.code == 2 and "ended with 2" in capsys.readouterr().err


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_is_that_of_the_power(power: float):
    from bench.growth import exponent

    sizes = [125, 250, 500, 1000]
    assert exponent(sizes, [3e-4 * size**power for size in sizes]) == pytest.approx(power)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA device")
@pytest.mark.parametrize("script", ["training_step", "decompose", "memory", "ddp"])
def test_cuda_is_never_replaced_in_silence(script: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(script).main(["--models", "tiny", "--device", "cuda"])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    (sentence,) = printed.err.splitlines()
    assert not printed.out and sentence.startswith("error: --device is cuda, but")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--models", "bert,robert"), "--models names 'robert'; give some of bert, resnet"),
        (("--accumulation", "1,0"), "--accumulation is '0'; give whole numbers from 1"),
        (("--accumulation", "two"), "--accumulation is 'two'"),
        (("--forms", "fast"), "--forms names 'fast'; give some of plain, inline"),
        (("--cores", "1"), "--cores is '1'; give whole numbers from 2"),
        (("--budget", "-3"), "--budget is '-3'; give seconds above 0"),
        (("--budget", "nan"), "--budget is 'nan'"),
        (("--device", "tpu"), "--device is 'tpu'; give cpu or cuda"),
        (("--clock", "sun"), "invalid choice: 'sun'"),
        (("--json", "no/such/folder.json"), "whose folder does not exist"),
    ],
)
def test_bad_words_are_one_sentence(words: tuple[str, ...], sentence: str, capsys):
    from bench import options, students

    made = options.parser("x.py", "A benchmark.", models=("bert",), known=students.NAMES)
    options.accumulations(made, 1)
    options.add_rounds(made, budget=1.0)
    options.choices(made, "--forms", FORMS, FORMS)
    with pytest.raises(SystemExit) as stopped:
        options.parse(made, words)
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.gpu
def test_training_step_and_memory_on_cuda(tmp_path: Path):
    words = ("--models", "tiny", "--device", "cuda", "--json", str(tmp_path / "cuda.json"))
    for script, more in (("training_step.py", ("--rounds", "2", "--profile")), ("memory.py", ())):
        done = run(script, *words, *more)
        assert done.returncode == 0, done.stderr
        assert (
            json.loads((tmp_path / "cuda.json").read_text())["environment"]["device"]["type"]
            == "cuda"
        )
