"""`export --samples`: rows of the user's own in the check data, beside the drawn ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from opdf_compile.artefacts import CheckData, check_path, read_check
from opdf_compile.cli import main
from opdf_compile.errors import InputError
from opdf_compile.io import export_onnx
from opdf_compile.io.evidence import given_rows

EXAMPLE = torch.zeros(4, 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.clamp(min=-100)).relu()


def rows(count: int) -> dict[str, Any]:
    values = np.random.default_rng(3).normal(50, 20, size=(count, 6)).astype(np.float32)
    return {
        "x": values,
        "labels": np.arange(count),
        "names": np.array([f"n{i}" for i in range(count)]),
    }


def check_of(path: Path, **options: Any) -> CheckData:
    return read_check(check_path(export_onnx(Net(), (EXAMPLE,), path / "net.onnx", **options)))


def test_rows_come_in_batches_of_the_example_beside_the_drawn_ones(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net, given = Net(), rows(10)
    np.savez(tmp_path / "rows.npz", **given)
    file = export_onnx(net, (EXAMPLE,), tmp_path / "net.onnx", samples=tmp_path / "rows.npz")
    data = read_check(check_path(file))
    own = [sample for sample in data.samples if sample.is_users]
    others = [sample for sample in data.samples if not sample.is_users]
    assert data.samples[-3:] == tuple(own) and [len(s.inputs["x"]) for s in own] == [4, 4, 2]
    # As many are drawn as without samples: they show the sizes that are free.
    assert len(others) >= 4 and {len(s.inputs["x"]) for s in others} > {4}
    for name, wanted in given.items():
        held = [s.inputs[name] if name == "x" else s.labels[name] for s in own]
        assert np.array_equal(np.concatenate(held), wanted)
    (output,) = data.output_names
    with torch.no_grad():
        expected = net(torch.from_numpy(given["x"])).numpy()
        exact = net.double()(torch.from_numpy(given["x"]).double()).numpy()
    computed = np.concatenate([s.computed[output] for s in own])
    assert computed.dtype == np.float32 and np.allclose(computed, expected, rtol=1e-6)
    assert np.allclose(np.concatenate([s.outputs[output] for s in own]), exact, rtol=1e-12)
    assert all(s.error[output] > 0 for s in own)


def test_a_fixed_batch_takes_whole_batches(tmp_path: Path) -> None:
    data = check_of(tmp_path, dynamic=False, samples=rows(8))
    assert [len(s.inputs["x"]) for s in data.samples if s.is_users] == [4, 4]
    with pytest.raises(InputError, match="hold 10 rows and the model takes 4 at once"):
        check_of(tmp_path, dynamic=False, samples=rows(10))


def test_numbered_samples(tmp_path: Path) -> None:
    """NAME@k is NAME of sample k, and a plain NAME belongs to all, as for check-data."""
    given = {"x@0": rows(3)["x"], "x@1": rows(5)["x"], "weight": np.array(2.0)}
    data = check_of(tmp_path, samples=given)
    own = [sample for sample in data.samples if sample.is_users]
    assert [len(s.inputs["x"]) for s in own] == [3, 4, 1]
    assert all(sample.labels["weight"] == 2.0 for sample in own)


def test_samples_of_a_half_file_are_in_its_dtype(tmp_path: Path) -> None:
    (output,) = (data := check_of(tmp_path, dtype="bf16", samples=rows(4))).output_names
    own = data.samples[-1]
    assert own.inputs["x"].dtype.name == own.computed[output].dtype.name == "bfloat16"


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A batch of four holds 96 bytes of inputs, 96 of truth and 48 of what torch computes.
    monkeypatch.setattr(given_rows, "_MOST_BYTES", 1000)
    with pytest.raises(InputError, match="at most 0 MiB in check data; give the first 16 rows, or"):
        check_of(tmp_path, samples=rows(40))
    assert not list(tmp_path.iterdir())


def test_how_many_rows_there_is_room_for() -> None:
    """A number of rows, down to none: 512 MiB hold no batch of a GiB, and 512 batches of one."""
    with pytest.raises(InputError, match="in check data; give them to verify --samples alone"):
        given_rows.require_room(1 << 30, 1000, 8)
    with pytest.raises(InputError, match="give the first 4,096 rows, or give them to verify"):
        given_rows.require_room(1 << 20, 1000, 8)
    given_rows.require_room(1 << 20, 512, 8)


def test_the_command_line_and_what_it_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n\ndef build():\n    return torch.nn.Linear(6, 3), (torch.zeros(4, 6),)\n"
    )
    np.savez(tmp_path / "rows.npz", input=rows(6)["x"], labels=np.arange(6))
    np.savez(tmp_path / "odd.npz", input=rows(2)["x"], labels=np.array([{}, 1], dtype=object))
    out, model = str(tmp_path / "net.onnx"), f"{tmp_path}/net.py:build"
    assert main(["export", model, "-o", out, "--samples", str(tmp_path / "odd.npz")]) == 2
    assert "holds objects, that is a pickle" in capsys.readouterr().err
    assert not Path(out).exists()
    assert main(["export", model, "-o", out, "--samples", str(tmp_path / "rows.npz")]) == 0
    held = read_check(check_path(Path(out)))
    assert sum(len(s.labels["labels"]) for s in held.samples if s.is_users) == 6
    # The file as one of another tool's.
    again = ["check-data", model, "--onnx", out, "--samples", str(tmp_path / "rows.npz")]
    assert main(again) == 0
    foreign = read_check(check_path(Path(out)))
    for ours, theirs in zip(held.samples[-2:], foreign.samples[-2:], strict=True):
        for one, other in zip(ours.computed.values(), theirs.computed.values(), strict=True):
            assert np.array_equal(one, other)
        assert np.array_equal(ours.labels["labels"], theirs.labels["labels"])
