"""onnxruntime-web as `verify` asks for it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

from opdf_compile.errors import DeviceError
from opdf_compile.parity.model_file import ModelFile, PathLike
from opdf_compile.parity.runtime.one_device import resolve_only
from opdf_compile.parity.runtime.protocol import Device, Missing, threads_wanted
from opdf_compile.parity.runtime.web.node_process import NodeProcess
from opdf_compile.parity.runtime.web.web_model import NAME, WebModel, require_readable

_SCRIPT = Path(__file__).with_name("serve.cjs")
FOLDER_VARIABLE = "OPDF_ONNXRUNTIME_WEB"
_DEVICE = "wasm"
# A page has more threads than one only where its server sends two headers for it.
_THREADS = 1
_NPM_SECONDS = 60


class OnnxRuntimeWeb:
    """What pages run models in: WASM, here under node."""

    name = NAME
    unoptimised = "create the session with graphOptimizationLevel 'disabled'"

    def version(self) -> str | None:
        """That of the npm package."""
        folder = package_folder()
        return None if folder is None else _manifest(folder).get("version")

    def devices(self) -> tuple[str, ...]:
        """WASM, on the CPU."""
        return (_DEVICE,)

    def missing(self, device: str) -> Missing | None:
        """Node, the package, or why they do not work together."""
        if shutil.which("node") is None:
            return Missing(
                "node is not installed (it is not on the PATH)", "install Node.js 20 or newer"
            )
        folder = package_folder()
        if folder is None:
            named = os.environ.get(FOLDER_VARIABLE)
            where = f" in {named} ({FOLDER_VARIABLE})" if named else ", which npm installs"
            return Missing(
                f"the npm package {NAME} was not found{where}",
                f"npm install --global {NAME}, or npm install --prefix DIR {NAME} and "
                f"{FOLDER_VARIABLE}=DIR",
            )
        try:
            _process(_THREADS)
        except DeviceError as error:
            # Its remedy is not that of a package which does not start.
            reason = str(error).split(";")[0]
            return Missing(
                f"{NAME} {self.version()} does not start under node: {reason}",
                f"install Node.js 20 or newer and npm install --global {NAME}",
            )
        return None

    def resolve(self, device: str) -> Device:
        """WASM.

        Raises:
            DeviceError: It cannot be used; names the missing piece.
            InputError: Another word.
        """
        options = {"numThreads": str(_THREADS), "simd": "true"}
        return resolve_only(self, device, _DEVICE, options)

    def load(
        self, model: PathLike, device: Device, *, threads: int | None = None, optimised: bool = True
    ) -> WebModel:
        """A session for a file; on one thread, as in most pages, unless told otherwise.

        Raises:
            ArtefactError: The file is missing, no ONNX model, or the runtime refuses the graph.
            DeviceError: It cannot run it, or node cannot be used.
        """
        file = ModelFile.of(model)
        file.require_whole()
        require_readable(file)
        wanted = _THREADS if threads is None else threads_wanted(threads)
        return WebModel(file, _process(wanted), optimised=optimised)

    def write_graph(self, source: PathLike, target: Path, device: Device) -> None:
        """It does not tell: under WASM there is no file system to write the graph to.

        Raises:
            DeviceError: Always.
        """
        raise DeviceError(f"{NAME} does not tell the graph that it runs")


def package_folder() -> Path | None:
    """Where the npm package lies: where the user says, else among the global ones."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        places = [Path(named), Path(named) / "node_modules" / NAME]
    else:
        root = _global_packages()
        places = [] if root is None else [root / NAME]
    return next((place.resolve() for place in places if _is_package(place)), None)


def _is_package(folder: Path) -> bool:
    return _manifest(folder).get("name") == NAME


def _manifest(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / "package.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@functools.cache
def _global_packages() -> Path | None:
    npm = shutil.which("npm")
    if npm is None:
        return None
    try:
        done = subprocess.run(
            [npm, "root", "--global"], capture_output=True, text=True, timeout=_NPM_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Path(done.stdout.strip()) if done.returncode == 0 and done.stdout.strip() else None


_PROCESSES: dict[tuple[str, int], NodeProcess] = {}


def _process(threads: int) -> NodeProcess:
    """The process for so many threads, which all sessions share as those of a page do.

    Compiling the WASM takes seconds, and code that both sides of a ratio share is equally warm.

    Raises:
        DeviceError: It does not start.
    """
    node, folder = shutil.which("node"), package_folder()
    if node is None or folder is None:
        raise DeviceError(f"node or the npm package {NAME} is gone; run `opdf-compile doctor`")
    key = (f"{node} {folder}", threads)
    process = _PROCESSES.get(key)
    if process is None or not process.alive:
        try:
            process = NodeProcess([node, str(_SCRIPT), str(folder), str(threads)])
        except OSError as error:
            raise DeviceError(f"node cannot be started ({error}); install it again") from error
        process.ask("hello")
        _PROCESSES[key] = process
    return process
