"""Run command lines in a process that watches itself: a script, not a test.

    python watched_run.py CASES.json RESULTS.json [transformers]

An audit hook notes each process, connection, change to a file system, import of a module that lies
beside the model, and file that is opened for writing. Limits of the package are lowered for the
cases that say so.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# All that the module os audits starts a process or changes files, but for these.
WATCHED = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.dlopen")
OTHER = ("os.listdir", "os.scandir", "os.listxattr", "os.getxattr", "os.putenv", "os.unsetenv")
# transformers looks for a function of the system's own library, the runtime for one of its process.
HARMLESS = (("libc.so.6",), (None,))
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC

events: list[str] = []
watching = False


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not watching:
        return
    if event.startswith(WATCHED) and event not in OTHER and arguments[:1] not in HARMLESS:
        events.append(f"{event} {arguments[:1]}")
    elif event == "import" and "unlisted" in str(arguments[0]):
        events.append(f"import {arguments[0]}")
    elif event == "open":
        note_open(*arguments)


def note_open(path: object, mode: object, flags: object) -> None:
    writes = isinstance(flags, int) and flags & WRITING
    if writes and str(path) != os.devnull and not isinstance(path, int):
        events.append(f"open for writing {path}")


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): digest(file)
        for file in sorted(folder.rglob("*"))
        if not file.is_dir() or file.is_symlink()
    }


def digest(file: Path) -> str:
    if file.is_symlink():
        return str(file.readlink())
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def lowered(limits: dict[str, int]) -> Iterator[None]:
    """Limits by module and name, lowered and put back."""
    former = []
    for place, value in limits.items():
        module = importlib.import_module(place.rpartition(".")[0])
        name = place.rpartition(".")[2]
        former.append((module, name, getattr(module, name)))
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in former:
            setattr(module, name, value)


def run(case: dict[str, Any]) -> dict[str, Any]:
    global watching
    from opdf_compile.cli import main

    folder = Path(case["folder"])
    os.chdir(folder)
    before, events[:] = snapshot(folder), []
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    try:
        with (
            lowered(case["limits"]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            watching = True
            code = main(case["command"].split())
    except BaseException:
        code = traceback.format_exc()[-2000:]
    finally:
        watching = False
    return {
        "code": code,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "events": list(events),
        "changed": snapshot(folder) != before,
    }


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    sys.addaudithook(hook)
    warm_up()
    if "transformers" in sys.argv[3:]:
        from opdf_compile.io.torchvision_shim import prepare_torchvision

        prepare_torchvision()
        import transformers  # noqa: F401
    results = {}
    for case in cases:
        results[case["name"]] = run(case)
        Path(sys.argv[2]).write_text(json.dumps(results))


def warm_up() -> None:
    """What a command imports lazily is imported before the watch begins."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch
    import torch.export.pt2_archive._package

    from opdf_compile.io.models import spec as modelspec  # noqa: F401
    from opdf_compile.parity import verdict  # noqa: F401

    torch.export.export(torch.nn.Linear(1, 1), (torch.ones(1, 1),))


if __name__ == "__main__":
    main()
