"""Bad input: exit code 2, one sentence, no traceback, nothing written. Good input: exit code 0."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from snapshots import snapshot

Capture = pytest.CaptureFixture[str]
Run = Callable[[str], int]


@pytest.fixture(scope="session")
def bad(made: Path) -> Path:
    """Files that are not what their names say."""
    (made / "folder.pt2").mkdir()
    (made / "empty.pt2").touch()
    (made / "empty.onnx").touch()
    (made / "empty.safetensors").touch()
    whole = (made / "expanded.pt2").read_bytes()
    (made / "cut.pt2").write_bytes(whole[: len(whole) // 2])
    (made / "random.onnx").write_bytes(os.urandom(4096))
    (made / "random.npz").write_bytes(os.urandom(4096))
    (made / "random.safetensors").write_bytes(os.urandom(4096))
    torch.save({"weight": torch.zeros(2)}, made / "pickled.pth")
    torch.save(torch.nn.Linear(2, 2), made / "pickled.pt2")
    shutil.copy(made / "student.onnx", made / "cut.onnx")
    with (made / "cut.onnx").open("rb+") as file:
        file.truncate((made / "student.onnx").stat().st_size // 2)
    plan = json.loads((made / "plan.json").read_text())
    for entry in plan["entries"]:
        entry["key"] = "other." + entry["key"]
    (made / "other.json").write_text(json.dumps(plan))
    plan = json.loads((made / "plan.json").read_text())
    plan["entries"][0]["spec"]["out_modes"][0] += 1
    (made / "product.json").write_text(json.dumps(plan))
    (made / "noplan.json").write_text("{}")
    (made / "broken.json").write_text('{"schema": ')
    (made / "syntax.py").write_text("def build(:\n")
    return made


BAD = {
    "missing model file": ("inspect gone.pt2", "gone.pt2 does not exist"),
    "missing expanded": ("fold gone.pt2 -o o.pt2", "gone.pt2 does not exist"),
    "missing candidate": (
        "verify gone.onnx --reference reference.onnx",
        "gone.onnx does not exist",
    ),
    "missing reference": ("verify student.onnx --reference gone.onnx", "gone.onnx does not exist"),
    "missing weights": ("export student.py:build --weights g.safetensors -o o.onnx", "g.safetens"),
    "missing plan": ("expand student.py:build --plan gone.json -o o.pt2", "gone.json"),
    "missing python file": ("inspect gone.py:build", "gone.py"),
    "missing package": ("inspect no.such.package:build", "no.such"),
    "missing callable": ("inspect student.py:nothing", "nothing"),
    "no such hf folder": ("inspect hf:gone", "gone"),
    "directory": ("inspect folder.pt2", "folder"),
    "directory as expanded": ("fold folder.pt2 -o o.pt2", "folder"),
    "directory without bundle": ("verify folder.pt2", "folder.pt2"),
    "empty model": ("inspect empty.pt2", "empty.pt2"),
    "empty candidate": ("verify empty.onnx --reference reference.onnx", "empty.onnx"),
    "empty weights": (
        "fold expanded.pt2 --weights empty.safetensors -o o.pt2",
        "empty.safetensors",
    ),
    "truncated model": ("inspect cut.pt2", "cut.pt2"),
    "truncated expanded": ("fold cut.pt2 -o o.pt2", "cut.pt2"),
    "truncated candidate": ("verify cut.onnx --reference reference.onnx", "cut.onnx"),
    "random candidate": ("verify random.onnx --reference reference.onnx", "random.onnx"),
    "random reference": ("verify student.onnx --reference random.onnx", "random.onnx"),
    "check data for no file": ("check-data student.py:build --onnx gone.onnx", "gone.onnx"),
    "check data for random bytes": (
        "check-data student.py:build --onnx random.onnx",
        "random.onnx",
    ),
    "check data from random inputs": (
        "check-data student.py:build --onnx student.onnx --inputs random.npz",
        "random.npz",
    ),
    "check data of another model": (
        "check-data student.py:number --onnx student.onnx",
        "number",
    ),
    "random check data": ("verify bundle --check random.npz --only numerics", "random.npz"),
    "random weights": ("export student.py:build --weights random.safetensors -o o.onnx", "random"),
    "random inputs": ("inspect student.py:bare --inputs random.npz", "random.npz"),
    "pickled checkpoint": ("inspect pickled.pth", "--trust-pickle"),
    "pickle with another name": ("inspect pickled.pt2", "pickled.pt2"),
    "pickled weights": ("export student.py:build --weights pickled.pth -o o.onnx", "pickled.pth"),
    "unknown timm name": ("inspect timm:resnet1888", "resnet1888"),
    "unknown prefix": ("inspect zoo:resnet18", "zoo:resnet18"),
    "callable raises": ("inspect student.py:raises", "no such checkpoint"),
    "callable gives no module": ("inspect student.py:number", "int"),
    "callable refuses arguments": ("inspect student.py:build?depth=3", "depth"),
    "python file with a syntax error": ("inspect syntax.py:build", "syntax.py"),
    "no inputs": ("inspect student.py:bare", "image"),
    "wrong input shape": (
        "inspect student.py:bare --input image=Bx3x8:float32 --size B=2",
        "shape",
    ),
    "wrong input channels": ("inspect student.py:bare --input image=2x4x8x8:float32", "channel"),
    "wrong input name": ("inspect student.py:bare --input picture=2x3x8x8:float32", "picture"),
    "unreadable input": ("inspect student.py:bare --input image=2xx8", "image=2xx8"),
    "unknown input dtype": ("inspect student.py:bare --input image=2x3x8x8:float33", "float33"),
    "letter without size": (
        "inspect student.py:bare --input image=2x3xHx8:float32 --size W=8",
        "W",
    ),
    "unreadable size": ("inspect student.py:build --size B", "--size"),
    "plan of another model": ("expand student.py:build --plan other.json -o o.pt2", "other.conv"),
    "plan whose product does not fit": (
        "expand student.py:build --plan product.json -o o.pt2",
        "out_modes",
    ),
    "JSON that is no plan": ("expand student.py:build --plan noplan.json -o o.pt2", "plan"),
    "plan that is no JSON": ("expand student.py:build --plan broken.json -o o.pt2", "broken.json"),
    "two amounts": ("plan student.py:build -o o.json --cores 3 --scale 2", "one of"),
    "scale out of reach": ("plan student.py:build -o o.json --scale 1e9", "scale"),
    "too few cores": ("plan student.py:build -o o.json --cores 0", "cores"),
    "glob that names nothing": ("plan student.py:build -o o.json --include nope.*", "nope.*"),
    "unwritable plan": ("plan student.py:build -o gone/o.json", "gone"),
    "unwritable expansion": ("expand student.py:build -o gone/o.pt2", "gone"),
    "unwritable fold": ("fold expanded.pt2 -o student.py/o.safetensors", "student.py"),
    "unwritable export": ("export folded.pt2 -o gone/o.onnx", "gone"),
    "unwritable bundle": ("export folded.pt2 -o student.py/bundle", "student.py"),
    "bundle over other files": ("export folded.pt2 -o .", "files"),
    "unwritable JSON": ("inspect student.py:build --json gone/o.json", "gone"),
    "unwritable plot": ("verify bundle --only latency --budget 1 --plot gone/o.png", "gone"),
    "unknown opset": ("export folded.pt2 -o o.onnx --opset 9999", "9999"),
    "still expanded": ("export expanded.pt2 -o o.onnx", "fold"),
    "not expanded": ("fold folded.pt2 -o o.pt2", "core"),
    "weights of another model": ("fold expanded.pt2 --weights folded.safetensors -o o.pt2", "core"),
    "candidate alone": ("verify student.onnx", "--reference"),
    "cuda without a device": ("verify bundle --device cuda", "cuda"),
}
if torch.cuda.is_available():
    del BAD["cuda without a device"]


@pytest.mark.parametrize(("line", "words"), BAD.values(), ids=BAD)
def test_bad_input(line: str, words: str, bad: Path, run: Run, capsys: Capture) -> None:
    before = snapshot(bad)
    assert run(line) == 2, capsys.readouterr().err
    out, err = capsys.readouterr()
    sentence = err.splitlines()[-1]
    assert out == ""
    assert "Traceback" not in err
    assert sentence.startswith("opdf-compile: ")
    assert words.lower() in sentence.lower()
    assert snapshot(bad) == before


GOOD = (
    "inspect student.py:build",
    "inspect folded.pt2",
    "inspect student.py:bare --input image=Bx3x8x8:float32 --size B=2",
    "fold cores.safetensors -o {tmp}/o2.safetensors",
    "verify student.onnx --reference reference.onnx --only structure,numerics",
)
# The fixture `made` and test_commands.py run these, too.
SEEN_ELSEWHERE = (
    "plan student.py:build -o {tmp}/o.json --cores 3",
    "expand student.py:build --plan plan.json -o {tmp}/o.pt2",
    "fold expanded.pt2 -o {tmp}/o.safetensors",
    "export folded.pt2 -o {tmp}/o.onnx",
    "export student.py:build --weights folded.safetensors -o {tmp}/bundle",
)
SHOWN = (*GOOD, *(pytest.param(line, marks=pytest.mark.slow) for line in SEEN_ELSEWHERE))


@pytest.mark.parametrize("line", SHOWN)
def test_good_input_through_the_same_commands(line: str, run: Run, tmp_path: Path) -> None:
    assert run(line.format(tmp=tmp_path)) == 0


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("expand student.py:build -o full.pt2", marks=pytest.mark.slow),
        "expand student.py:build -o full.safetensors",
        pytest.param("fold expanded.pt2 -o full.pt2", marks=pytest.mark.slow),
        pytest.param("export folded.pt2 -o full", marks=pytest.mark.slow),
    ],
)
def test_disk_full_leaves_nothing(line: str, bad: Path, run: Run, capsys: Capture) -> None:
    before = snapshot(bad)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on file sizes ends a write where a full disk would.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        code = run(line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = capsys.readouterr().err
    assert code == 2, told
    assert "cannot write" in told.splitlines()[-1]
    assert "Traceback" not in told
    assert snapshot(bad) == before
