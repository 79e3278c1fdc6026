"""`import sciLDM` on top of `import torch`, in fresh interpreters."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

from _common import Row, parser, print_rows, without_aims, write_rows

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import time
start = time.perf_counter(); import torch
torch_done = time.perf_counter(); import sciLDM
package_done = time.perf_counter(); sciLDM.load
print(torch_done - start, package_done - torch_done, time.perf_counter() - package_done)
"""


def measure(repeats: int) -> list[Row]:
    """Rows of this benchmark; the first interpreter only warms the disk cache."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    times = []
    for _ in range(1 + repeats):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment
        )
        times.append([float(word) for word in done.stdout.split()])
    torch_time, package, load = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return [
        Row("import torch", torch_time, "s"),
        Row("import sciLDM, torch being loaded", package, "s", at_most=0.3),
        Row("first use of sciLDM.load after that", load, "s", note="loads what `import sciLDM` puts off"),
    ]


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    rows = measure(1 if options.quick else options.repeats)
    rows = without_aims(rows) if options.quick else rows
    print_rows(rows)
    write_rows(rows, options.json)


if __name__ == "__main__":
    main()
