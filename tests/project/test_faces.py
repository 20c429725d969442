"""Every package has a face: the names that others may use, written once, in a stub beside it."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import sys
from collections.abc import Iterator
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
        value = getattr(face, name)
        # `opdf.parametrizations` is a package, and called it lists what is in it.
        assert callable(value) or not isinstance(value, ModuleType), name


@functools.cache
def import_nodes(file: Path) -> list[ast.ImportFrom]:
    """Each file is read once: no test changes one that it has read."""
    nodes = ast.walk(ast.parse(file.read_text()))
    return [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


def imports(file: Path, root: Path = ROOT) -> Iterator[tuple[str, set[str]]]:
    """What a file or stub below the package's folder imports: modules, and names of them."""
    here = (root.name, *file.parent.relative_to(root).parts)
    for node in import_nodes(file):
        start = here[: len(here) - node.level + 1] if node.level else ()
        yield ".".join((*start, str(node.module))), {alias.name for alias in node.names}


def names_of(stub: Path, root: Path = ROOT) -> set[str]:
    return set().union(*(names for _module, names in imports(stub, root)))


def files_and_stubs(root: Path) -> list[Path]:
    return [*root.rglob("*.py"), *root.rglob("*.pyi")]


def behind(file: Path, root: Path = ROOT) -> set[str]:
    """Modules that a file imports though they lie behind the face of a package it is not in."""
    found = set()
    for module, _names in imports(file, root):
        parts = module.split(".")
        faces = [root.joinpath(*parts[1:end], "__init__.pyi") for end in range(2, len(parts) + 1)]
        if parts[0] != root.name or not faces or faces[-1].exists():
            continue
        if any(face.exists() and face.parent not in file.parents for face in faces):
            found.add(module)
    return found


def test_no_file_and_no_stub_reaches_behind_a_face() -> None:
    assert {file: found for file in files_and_stubs(ROOT) if (found := behind(file))} == {}


def test_what_reaches_behind_a_face_is_found(tmp_path: Path) -> None:
    root = tmp_path / "tool"
    (root / "distill" / "run").mkdir(parents=True)
    for package in ("distill", "distill/run"):
        (root / package / "__init__.pyi").touch()
    stub, cli, inner = (root / f for f in ("__init__.pyi", "cli.py", "distill/run/loop.py"))
    stub.write_text("from .distill.run import a\nfrom .distill.run.loop import b\n")
    cli.write_text(
        "def f():\n    from tool.distill import a\n    from tool.distill.run.loop import b"
    )
    inner.write_text("from tool.distill.run.events import a\nfrom tool.distill.run import b\n")
    assert behind(stub, root) == behind(cli, root) == {"tool.distill.run.loop"}
    assert behind(inner, root) == set()


def shadowed(stub: Path, root: Path = ROOT) -> set[str]:
    """Names of a face that a module of the package has too: importing that would hide the name."""
    modules = {module.name for module in pkgutil.iter_modules([str(stub.parent)])}
    return names_of(stub, root) & modules


@pytest.mark.parametrize("stub", STUBS, ids=package_of)
def test_no_module_has_the_name_of_something_public(stub: Path) -> None:
    assert not shadowed(stub)


def test_a_module_with_such_a_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "__init__.pyi").write_text("from .plan import plan as plan\n")
    (tmp_path / "plan.py").write_text("def plan(): ...\n")
    assert shadowed(tmp_path / "__init__.pyi", tmp_path) == {"plan"}


def for_nobody(stub: Path, root: Path = ROOT) -> set[str]:
    """Names of a face that nothing outside of its package imports, the other faces included."""
    package = ".".join((root.name, *stub.parent.relative_to(root).parts))
    others = [file for file in files_and_stubs(root) if stub.parent not in file.parents]
    used = [names for file in others for module, names in imports(file, root) if module == package]
    return names_of(stub, root).difference(*used)


# What users import, as docs/ shows; its names are for them.
FOR_USERS = {ROOT, *(ROOT / "distill" / inner for inner in ("", "recipe", "advise", "zoo"))}
INNER = [stub for stub in STUBS if stub.parent not in FOR_USERS]


@pytest.mark.parametrize("stub", INNER, ids=package_of)
def test_every_name_of_a_face_is_for_somebody(stub: Path) -> None:
    assert not for_nobody(stub)


def test_a_name_for_nobody_is_found(tmp_path: Path) -> None:
    root = tmp_path / "tool"
    stub = root / "graph" / "__init__.pyi"
    stub.parent.mkdir(parents=True)
    stub.write_text("".join(f"from .tracing import {name} as {name}\n" for name in "abcd"))
    (root / "__init__.pyi").write_text("from .graph import a as a\n")
    (root / "cli.py").write_text("def f():\n    from tool.graph import b\n")
    (stub.parent / "phases.py").write_text("from tool.graph import c\n")
    assert for_nobody(stub, root) == {"c", "d"}


def test_every_module_is_imported_under_another_name() -> None:
    found: dict[str, ModuleType] = {}
    for name in MODULES:
        exec(f"import {name} as module", found)
        assert found["module"] is sys.modules[name], name
    assert callable(opdf_compile.plan) and callable(opdf_compile.verify)


def imports_of(file: Path, modules: set[str]) -> set[str]:
    """The modules that a file names in an import, those for types included."""
    found = set()
    for node in import_nodes(file):
        named = {f"{node.module}.{alias.name}" for alias in node.names} & modules
        found |= named or {str(node.module)} & modules
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
