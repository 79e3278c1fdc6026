"""All benchmarks one after another: one table, and one file `results/<date>-<machine>.json`.

Each runs in an interpreter of its own, so that none inherits another's threads, memory or imports.
"""

import json
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from _common import Row, machine, parser, print_rows, versions

HERE = Path(__file__).resolve().parent
BENCHMARKS = ["imports", "featurise", "sampling", "throughput", "step"]
PACKAGES = (
    "sciLDM",
    "torch",
    "diffusers",
    "monai",
    "rdkit",
    "numpy",
    "lightning",
    "torch-geometric",
    "torch-molecule",
)


def run(script: str, arguments: list[str]) -> list[Row] | None:
    """The rows of one benchmark, or None when it failed (it has said why)."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        # Its table is printed once more, with all others, at the end.
        done = subprocess.run([sys.executable, HERE / script, *arguments, "--json", rows], stdout=sys.stderr)
        if done.returncode or not rows.exists():
            return None
        return [Row(**row) for row in json.loads(rows.read_text(encoding="utf-8"))]


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--model", default="qm9-small", help="shipped model or run folder for sampling")
    arguments.add_argument("--only", nargs="+", default=BENCHMARKS, help="which to run")
    options = arguments.parse_args()
    shared = [f"--threads={options.threads}", f"--repeats={options.repeats}", f"--clock={options.clock}"]
    shared += ["--quick"] if options.quick else []
    host, rows, failed = machine(), [], []
    for name in options.only:
        found = run(f"{name}.py", [*shared, *([options.model] if name in ("sampling", "throughput") else [])])
        rows += found or []
        failed += [] if found else [name]
    print_rows(rows)
    now = datetime.now(UTC)
    record = {
        "date": now.isoformat(timespec="seconds"),
        "machine": host,
        "threads": options.threads,
        "clock": options.clock,
        "repeats": options.repeats,
        "quick": options.quick,
        "versions": versions(PACKAGES),
        "failed": failed,
        "rows": [{**vars(row), "verdict": row.verdict} for row in rows],
    }
    if options.json is None and not options.quick:
        label = re.sub(r"[^a-z0-9]+", "-", f"{host['processor']} {host['cores']} cores".lower()).strip("-")
        options.json = HERE / "results" / f"{now:%Y-%m-%d}-{label}.json"
    if options.json is not None:
        options.json.parent.mkdir(exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"written: {options.json}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
