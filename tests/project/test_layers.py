"""The layers of the package hold, and the contracts that say so can fail."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]


def contracts() -> str:
    """The import-linter part of pyproject.toml, as it stands there."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return text[text.index("[tool.importlinter]") :]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=120
    )


def write_package(folder: Path, **sources: str) -> None:
    """An empty package with the folders that the contracts name, and some files with imports."""
    table = tomllib.loads(contracts())["tool"]["importlinter"]["contracts"][0]
    modules = [name.strip() for layer in table["layers"] for name in layer.split("|")]
    package = folder / "opdf_compile"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in modules:
        (package / f"{name}.py").write_text(sources.get(name, ""), encoding="utf-8")
    (folder / "pyproject.toml").write_text(contracts(), encoding="utf-8")


def test_the_package_keeps_its_layers() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_contracts_accept_a_downward_import(tmp_path: Path) -> None:
    write_package(tmp_path, cli="import typer\nfrom opdf_compile import parity")
    done = lint(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        ("tensor", "from opdf_compile import graph"),
        ("planning", "from opdf_compile.passes import x"),
        ("io", "import opdf_compile.parity"),
        ("io", "def f():\n    import opdf_compile.parity"),
        ("parity", "import rich.table"),
        ("training", "def f():\n    import typer"),
        ("parity", "import torch"),
        ("artefacts", "def f():\n    import torch.utils.dlpack"),
        ("files", "from torch import nn"),
    ],
)
def test_contracts_reject(layer: str, line: str, tmp_path: Path) -> None:
    write_package(tmp_path, **{layer: line})
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


# The folder of each inference runtime.
RUNTIMES = {
    "onnxruntime": "ort",
    "openvino": "ov",
    "opencv": "cv",
    "ncnn": "nc",
    "executorch": "et",
    "onnxruntime-web": "web",
}
FACES = {
    module.split(".")[1]: module
    for contract in tomllib.loads(contracts())["tool"]["importlinter"]["contracts"]
    if contract["type"] == "protected"
    for module in contract["protected_modules"]
}


def test_contracts_reject_an_import_behind_each_face(tmp_path: Path) -> None:
    inner = {package: face.replace("*", "inner") for package, face in FACES.items()}
    write_package(
        tmp_path, cli="".join(f"from {i.rpartition('.')[0]} import name\n" for i in inner.values())
    )
    for package, module in inner.items():
        folder = tmp_path.joinpath(*module.split(".")[:-1])
        (tmp_path / "opdf_compile" / f"{package}.py").unlink()
        folder.mkdir(parents=True)
        for parent in {folder, tmp_path / "opdf_compile" / package}:
            (parent / "__init__.py").touch()
        (folder / "inner.py").write_text("name = 1\n")
        (folder / "other.py").write_text(f"from {module} import name\n")
    done = lint(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    behind = "".join(f"    from {module} import name\n" for module in inner.values())
    (tmp_path / "opdf_compile" / "cli.py").write_text(f"def f():\n{behind}")
    done = lint(tmp_path)
    assert done.returncode == 1
    broken = re.findall(r"others use of (\w+) is named by its faces? BROKEN", done.stdout)
    assert sorted(broken) == sorted(FACES)


def test_every_package_below_the_command_line_has_a_face() -> None:
    packages = {path.parent.name for path in (ROOT / "opdf_compile").glob("*/__init__.py")}
    assert packages - {"cli"} == set(FACES)


def test_contracts_reject_a_folder_without_a_layer(tmp_path: Path) -> None:
    write_package(tmp_path)
    (tmp_path / "opdf_compile" / "helpers.py").touch()
    assert lint(tmp_path).returncode == 1


def uses_the_front_door(source: str) -> bool:
    """Whether a file imports the public package, which stands above every layer but the top."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(a.name == "opdf_compile" for a in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "opdf_compile" and not node.level:
            return True
    return False


def test_no_layer_imports_the_public_package() -> None:
    package = ROOT / "opdf_compile"
    top = {package / "__init__.py", package / "__main__.py", *(package / "cli").glob("**/*.py")}
    files = set(package.glob("**/*.py")) - top
    assert files
    assert [f for f in files if uses_the_front_door(f.read_text(encoding="utf-8"))] == []


def test_the_front_door_check_can_fail() -> None:
    assert uses_the_front_door("import opdf_compile as opdf")
    assert uses_the_front_door("def f():\n    from opdf_compile import verify")
    assert not uses_the_front_door("from opdf_compile.errors import UserError")


@pytest.mark.parametrize(("runtime", "folder"), RUNTIMES.items())
def test_verify_names_each_runtime_in_one_folder(runtime: str, folder: str) -> None:
    """All others take the name from the runtime, so that another one is a folder beside it."""
    parity = ROOT / "opdf_compile" / "parity"
    # The name of one may begin with that of another.
    name = re.compile(rf"{runtime}(?!-web)")
    named = {f for f in parity.glob("**/*.py") if name.search(f.read_text(encoding="utf-8"))}
    assert named and {file.parent for file in named} == {parity / "runtime" / folder}


def test_only_the_registry_knows_the_implementations() -> None:
    parity = ROOT / "opdf_compile" / "parity"
    imports = re.compile(rf"parity\.runtime\.({'|'.join(RUNTIMES.values())})\b")
    users = {f for f in parity.glob("**/*.py") if imports.search(f.read_text(encoding="utf-8"))}
    within = {f for name in RUNTIMES.values() for f in (parity / "runtime" / name).glob("*.py")}
    assert users - within == {parity / "runtime" / "registry.py"}
