"""What a command costs in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.options import fail


@dataclass(frozen=True)
class Cost:
    """What one run of a command took.

    Attributes:
        wall: Seconds by the clock.
        cpu: Seconds of processor time.
        mib: Its largest resident size, which counts the pages of files that it maps.
        read: MiB that it asked of the system by reading; None where that is not told. Files that
            are mapped are not in it.
    """

    wall: float
    cpu: float
    mib: float
    read: float | None = None


# The peak of a process starts at that of the one it was forked from, which has loaded torch here.
# Its counters are there until somebody waits for it.
_LAUNCH = """
import json, os, sys, time
begin = time.perf_counter()
child = os.posix_spawn(sys.executable, sys.orig_argv[:1] + sys.argv[1:], os.environ)
read = None
try:
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with open(f"/proc/{child}/io") as lines:
        read = int(lines.readline().split()[1]) / 2**20
except (OSError, AttributeError):
    pass
_, status, used = os.wait4(child, 0)
cost = (time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss, read)
print(json.dumps(cost), file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def once(checkout: Path, words: Sequence[str]) -> Cost:
    """Run a command from the source of a checkout; any other end than 0 ends the benchmark."""
    command = [sys.executable, "-I", "-S", "-c", _LAUNCH, "-m", "opdf_compile", *words]
    # `-m` looks for the package in the folder that it is started in.
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"{' '.join(words)} ended with {done.returncode} in {checkout}: {done.stderr}")
    wall, cpu, peak, read = json.loads(done.stderr.splitlines()[-1])
    return Cost(wall, cpu, peak / (2**20 if sys.platform == "darwin" else 2**10), read)
