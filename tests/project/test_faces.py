"""Every package has a face: the names that others may use, written once, in a stub beside it."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import networkx as nx
import pytest

import opdf_compile

ROOT = Path(opdf_compile.__file__).parent
STUBS = sorted(ROOT.rglob("__init__.pyi"))
MODULES = [
    module.name
    for module in pkgutil.walk_packages(opdf_compile.__path__, "opdf_compile.")
    if not module.name.endswith("__main__")
]


def package_of(stub: Path) -> str:
    return ".".join(("opdf_compile", *stub.parent.relative_to(ROOT).parts))


@pytest.mark.parametrize("package", [package_of(stub) for stub in STUBS])
def test_every_name_of_a_face_is_there_and_is_no_module(package: str) -> None:
    face = importlib.import_module(package)
    assert face.__all__
    for name in face.__all__:
        assert not isinstance(getattr(face, name), ModuleType), name


def imported(file: Path, module: str | None = None) -> set[str]:
    """The names that a file imports, from one module or from any."""
    return {
        alias.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom)
        and module in (None, "." * node.level + str(node.module))
        for alias in node.names
    }


def shadowed(stub: Path) -> set[str]:
    """Names of a face that a module of the package has too: importing that would hide the name."""
    modules = {module.name for module in pkgutil.iter_modules([str(stub.parent)])}
    return imported(stub) & modules


@pytest.mark.parametrize("stub", STUBS, ids=package_of)
def test_no_module_has_the_name_of_something_public(stub: Path) -> None:
    assert not shadowed(stub)


def test_a_module_with_such_a_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "__init__.pyi").write_text("from .plan import plan as plan\n")
    (tmp_path / "plan.py").write_text("def plan(): ...\n")
    assert shadowed(tmp_path / "__init__.pyi") == {"plan"}


def for_nobody(stub: Path, root: Path, module: str) -> set[str]:
    """Names of a face that no other package imports, and that are not public either."""
    others = [file for file in root.rglob("*.py") if stub.parent not in file.parents]
    found = imported(root / "__init__.pyi", f".{stub.parent.name}")
    return imported(stub) - found.union(*(imported(file, module) for file in others))


# The other two are what users import.
INNER = [stub for stub in STUBS if stub.parent not in (ROOT, ROOT / "distill")]


@pytest.mark.parametrize("stub", INNER, ids=package_of)
def test_every_name_of_a_face_is_for_somebody(stub: Path) -> None:
    assert not for_nobody(stub, ROOT, package_of(stub))


def test_a_name_for_nobody_is_found(tmp_path: Path) -> None:
    stub = tmp_path / "graph" / "__init__.pyi"
    stub.parent.mkdir()
    stub.write_text("".join(f"from .tracing import {name} as {name}\n" for name in "abcd"))
    (tmp_path / "__init__.pyi").write_text("from .graph import a as a\n")
    (tmp_path / "cli.py").write_text("def f():\n    from tool.graph import b\n")
    (stub.parent / "phases.py").write_text("from tool.graph import c\n")
    assert for_nobody(stub, tmp_path, "tool.graph") == {"c", "d"}


AS_ANOTHER = """
import sys
for name in sys.argv[1:]:
    exec(f"import {name} as module")
    if module is not sys.modules[name]:
        print(name)
import opdf_compile as opdf
assert callable(opdf.plan) and callable(opdf.verify)
"""


def test_every_module_is_imported_under_another_name() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER, *MODULES], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []


def imports_of(file: Path, modules: set[str]) -> set[str]:
    """The modules that a file names in an import, those for types included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= named or {node.module} & modules
    return found


def circles(files: dict[str, Path]) -> list[list[str]]:
    """Groups of files that import each other in a circle."""
    graph = nx.DiGraph()
    for name, file in files.items():
        graph.add_edges_from((name, other) for other in imports_of(file, set(files)) - {name})
    return [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]


def test_a_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from b import f\n")
    (tmp_path / "b.py").write_text("def f():\n    from c import g\n")
    (tmp_path / "c.py").write_text("if TYPE_CHECKING:\n    from a import h\n")
    files = {name: tmp_path / f"{name}.py" for name in "abc"}
    assert circles(files) == [["a", "b", "c"]]
    del files["c"]
    assert not circles(files)


def test_no_files_import_each_other_in_a_circle() -> None:
    files = {
        ".".join(("opdf_compile", *file.relative_to(ROOT).with_suffix("").parts)): file
        for file in ROOT.rglob("*.py")
        if file.name not in {"__init__.py", "__main__.py"}
    }
    assert circles(files) == []
