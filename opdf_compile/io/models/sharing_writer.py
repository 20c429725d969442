"""The archive writer that stores a weight once, although several programs hold it.

torch writes the payloads of each program separately: an archive with a graph per phase would be
twice as large as its weights. The archive's format has no such limit. Each program names its
payloads in a JSON file (`data/weights/eval_weights_config.json`: weight -> "weight_3"), and nothing
says that two programs may not name the same one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from opdf_compile.graph import quiet_libraries

_PAYLOADS = ("data/weights/weight_", "data/constants/tensor_")
_CONFIGS = ("_weights_config.json", "_constants_config.json")


def write_archive(
    path: Path, programs: Mapping[str, ExportedProgram], extra: Mapping[str, str]
) -> None:
    """Write programs and texts as one archive, each payload once.

    Falls back on torch's public packager, which stores weights once per program, where a torch
    version lacks the pieces used here.

    Raises:
        OSError: The file cannot be written (no space left, for instance).
    """
    with path.open("wb") as stream:
        sink = _PatientSink(stream)
        _write(sink, programs, extra)
    if sink.failure is not None:
        raise sink.failure


class _PatientSink(io.RawIOBase):
    """Takes every write and remembers the first that failed.

    torch's writer aborts the whole process when a write fails: its destructor finishes the archive
    and throws. So it is told that all went well, and the failure is raised afterwards.
    """

    def __init__(self, stream: io.BufferedWriter) -> None:
        super().__init__()
        self._stream = stream
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        # The packager rewinds what it wrote, for a reader; nobody reads here.
        return offset

    def write(self, data: Any) -> int:
        size = len(data)
        if self.failure is None:
            try:
                self._stream.write(data)
                self._stream.flush()
            except OSError as error:
                self.failure = error
        return size


def _write(
    sink: _PatientSink, programs: Mapping[str, ExportedProgram], extra: Mapping[str, str]
) -> None:
    from torch.export.pt2_archive import _package

    pieces = ("_package_exported_programs", "_package_extra_files", "PT2ArchiveWriter")
    # torch warns about weights that are slices of one storage; they are written whole.
    with quiet_libraries():
        if not all(hasattr(_package, piece) for piece in pieces):
            _package.package_pt2(
                sink,  # type: ignore[arg-type]
                exported_programs=dict(programs),
                extra_files=dict(extra),
            )
            return
        with _sharing_writer_class()(sink) as writer:
            for name, program in programs.items():
                writer.begin_program()
                _package._package_exported_programs(writer, {name: program})
            _package._package_extra_files(writer, dict(extra))


def _sharing_writer_class() -> Any:
    # Imported here because the archive package pulls in torch's compiler (0.5 s).
    from torch.export.pt2_archive._package import PT2ArchiveWriter

    class SharingWriter(PT2ArchiveWriter):
        """Skips a payload that an earlier program wrote with the same bytes.

        Payloads of *one* program are never merged: two zero biases with equal bytes would come
        back as one tied weight. Hence each stored payload is handed out once per program.
        """

        def __init__(self, sink: Any) -> None:
            super().__init__(sink)
            self._stored: dict[tuple[str, bytes], list[str]] = {}
            self._free: dict[tuple[str, bytes], list[str]] = {}
            self._moved: dict[str, str] = {}
            self._skipped: list[str] = []

        def begin_program(self) -> None:
            self._free = {key: list(names) for key, names in self._stored.items()}
            self._moved = {}

        def count_prefix(self, prefix: str) -> int:
            # torch numbers payloads by counting; a skipped one still uses up its number.
            return super().count_prefix(prefix) + sum(n.startswith(prefix) for n in self._skipped)

        def write_bytes(self, name: str, data: bytes) -> None:
            prefix = next((p for p in _PAYLOADS if name.startswith(p)), None)
            if prefix is None or not data:
                super().write_bytes(name, data)
                return
            key = (prefix, hashlib.sha256(data).digest())
            if self._free.get(key):
                self._moved[name] = self._free[key].pop(0)
                self._skipped.append(name)
                return
            self._stored.setdefault(key, []).append(name)
            super().write_bytes(name, data)

        def write_string(self, name: str, data: str) -> None:
            if name.endswith(_CONFIGS) and self._moved:
                data = _redirect(data, os.path.dirname(name), self._moved)  # noqa: PTH120
            super().write_string(name, data)

    return SharingWriter


def _redirect(config: str, folder: str, moved: Mapping[str, str]) -> str:
    """Point a program's payload names at the payloads that are in the archive already."""
    document = json.loads(config)
    for payload in document["config"].values():
        old = f"{folder}/{payload['path_name']}"
        payload["path_name"] = moved.get(old, old).rpartition("/")[2]
    return json.dumps(document)
