"""What processes do in the runner's tests; in a module that they can import by name."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.runner import empty_row
from zoo.worker import writer


def obey(name: str, options: Mapping[str, Any], path: str) -> None:
    """Behave as the name says."""
    row = {**empty_row(name), "step": "trace", "reached": "build", "seconds": {"build": 0.5}}
    write = writer(Path(path))
    if name == "zoo/silent":
        os._exit(9)
    write(row)
    if name == "zoo/crash":
        os.abort()
    if name == "zoo/slow":
        time.sleep(600)
    if name == "zoo/large":
        _hold(options["mib"])
    if name == "zoo/child":
        program = f"import time; x = bytearray({options['mib']} << 20); time.sleep(600)"
        subprocess.run([sys.executable, "-c", program], check=True)
    write({**row, "status": "passed", "reached": "fold", "got": dict(options)})


def _hold(mib: int) -> None:
    held = bytearray(mib << 20)
    time.sleep(600)
    del held
