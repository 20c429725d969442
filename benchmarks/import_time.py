"""What `import opdf_compile` adds over `import torch`, measured in one run of the interpreter.

Usage: python benchmarks/import_time.py [RUNS]
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys

TARGET_MS = 150.0
LINE = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \| ( *)(\S+)")


def measure() -> tuple[float, list[tuple[float, str]]]:
    """Imports torch, then opdf_compile.

    Returns:
        Milliseconds of the second import, and its most expensive modules, (own ms, name) each.
    """
    command = [sys.executable, "-X", "importtime", "-c", "import torch; import opdf_compile"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    own: list[tuple[float, str]] = []
    for line in done.stderr.splitlines():
        match = LINE.match(line)
        if not match:
            continue
        self_us, total_us, depth, name = match.groups()
        if name == "torch" and not depth:
            own.clear()  # Everything so far was torch's; modules are printed before their importer.
            continue
        own.append((int(self_us) / 1000, name))
        if name == "opdf_compile" and not depth:
            return int(total_us) / 1000, sorted(own, reverse=True)[:8]
    raise SystemExit("the interpreter did not report opdf_compile")


def main() -> None:
    """Prints the median of some runs and where the last one's time went."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    results = [measure() for _ in range(runs)]
    median = statistics.median(total for total, _ in results)
    print(f"import opdf_compile adds {median:.0f} ms over import torch (target {TARGET_MS:.0f} ms)")
    for own, name in results[-1][1]:
        print(f"  {own:7.1f} ms  {name}")


if __name__ == "__main__":
    main()
