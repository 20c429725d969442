"""Run command lines in a process with limits that watches itself: a script, not a test.

    python limited_run.py CASES.json RESULTS.json [transformers]

Memory, file sizes and seconds are limited; an audit hook notes each process, connection, import of
an attacker's module and write outside the case's folder `out`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

MEMORY = 2 << 30
FILE = 64 << 20
SECONDS = 60
FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen"),
    *("socket.connect", "socket.getaddrinfo", "ctypes.dlopen", "shutil.rmtree", "os.remove"),
    *("os.rename", "os.symlink", "os.link", "os.mkdir", "os.chmod"),
)
# transformers looks for a function of the system's own library when a model is looked up.
HARMLESS = (("libc.so.6",),)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC

events: list[str] = []
watching = False


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not watching:
        return
    if event in FORBIDDEN and arguments[:1] not in HARMLESS:
        events.append(f"{event} {arguments[:1]}")
    elif event == "import" and "evil" in str(arguments[0]):
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
    # A sparse file of a terabyte is named by its size.
    if file.is_symlink() or file.stat().st_size > FILE:
        return str(file.lstat().st_size)
    return hashlib.sha256(file.read_bytes()).hexdigest()


class TooLong(BaseException):
    """Not an Exception, so that nothing on the way takes it for a damaged file."""


def too_long(*_: object) -> None:
    raise TooLong


def run(case: dict[str, str]) -> dict[str, Any]:
    global watching
    from opdf_compile.cli import main

    folder = Path(case["folder"])
    os.chdir(folder)
    before, events[:] = snapshot(folder), []
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            watching = True
            code = main(case["command"].split())
    except TooLong:
        code = "too long"
    except BaseException:
        code = traceback.format_exc()[-2000:]
    finally:
        watching = False
        signal.alarm(0)
    return {
        "code": code,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "events": list(events),
        "changed": snapshot(folder) != before,
    }


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    signal.signal(signal.SIGALRM, too_long)
    sys.addaudithook(hook)
    warm_up()
    if "transformers" in sys.argv[3:]:
        from opdf_compile.io.torchvision_shim import prepare_torchvision

        prepare_torchvision()
        import transformers  # noqa: F401
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
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

    from opdf_compile.io import modelspec  # noqa: F401
    from opdf_compile.verify import verdict  # noqa: F401

    torch.export.export(torch.nn.Linear(1, 1), (torch.ones(1, 1),))


if __name__ == "__main__":
    main()
