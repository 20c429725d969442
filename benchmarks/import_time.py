"""What `import opdf_compile` adds over `import torch`, measured in one run of the interpreter.

The package imports each public name when it is first used, so the second figure is the honest one:
the import together with the use of every public name.

Usage: python benchmarks/import_time.py [RUNS]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

TARGET_MS = 150.0
SCRIPT = """
import json, sys, time
import torch
before, start = set(sys.modules), time.perf_counter()
import opdf_compile
plain = time.perf_counter() - start
for name in opdf_compile.__all__:
    getattr(opdf_compile, name)
full = time.perf_counter() - start
new = sorted({name.split(".")[0] for name in set(sys.modules) - before})
print(json.dumps([plain * 1e3, full * 1e3, new]))
"""


def measure() -> tuple[float, float, list[str]]:
    """Imports torch, then opdf_compile, in a fresh interpreter.

    Returns:
        Milliseconds of the import, milliseconds of the import and the use of all public names, and
        the top-level modules that came with them.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    plain, full, modules = json.loads(done.stdout)
    return plain, full, modules


def main() -> None:
    """Prints the median of some runs."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    results = [measure() for _ in range(runs)]
    plain = statistics.median(result[0] for result in results)
    full = statistics.median(result[1] for result in results)
    print(f"import opdf_compile adds {plain:.0f} ms over import torch (target {TARGET_MS:.0f} ms)")
    print(f"with the use of every public name: {full:.0f} ms")
    print("top-level modules beyond torch's:", ", ".join(results[-1][2]))


if __name__ == "__main__":
    main()
