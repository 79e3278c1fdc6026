"""What the benchmarks share: rows of results, an interleaved clock, a table, the machine."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, final

__all__ = [
    "CLOCKS",
    "Row",
    "interleave",
    "machine",
    "parser",
    "print_rows",
    "versions",
    "without_aims",
    "write_rows",
]

CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@final
@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        name: What was measured.
        value: The number.
        unit: Its unit; "1" for a ratio.
        at_least: The aim, if it is a lower bound.
        at_most: The aim, if it is an upper bound.
        note: What a reader must know beside it.
    """

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """The aim, and whether it is met."""
        if self.at_least is not None:
            return f">= {self.at_least:g} {'met' if self.value >= self.at_least else 'MISSED'}"
        if self.at_most is not None:
            return f"<= {self.at_most:g} {'met' if self.value <= self.at_most else 'MISSED'}"
        return ""


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    result = argparse.ArgumentParser(description=description.splitlines()[0])
    result.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing"
    )
    result.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: 2)")
    result.add_argument("--repeats", type=int, default=7, help="measurements of each candidate (default: 7)")
    result.add_argument(
        "--clock",
        choices=sorted(CLOCKS),
        default="wall",
        help="cpu: processor time, for a busy machine; only with --threads 1 is it comparable",
    )
    result.add_argument("--json", type=Path, help="also write the rows to this file")
    return result


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 1,
    clock: Literal["wall", "cpu"] = "wall",
) -> dict[str, float]:
    """Median seconds of each candidate.

    Every round measures every candidate once, each round starting with another one, so that a slow moment of the
    machine falls on all of them alike.
    """
    now = CLOCKS[clock]
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = now()
            candidates[name]()
            if turn >= warmup:
                seconds[name].append(now() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def without_aims(rows: Sequence[Row]) -> list[Row]:
    """The rows of a `--quick` run: sizes so small that no aim applies to them."""
    return [replace(row, at_least=None, at_most=None) for row in rows]


def print_rows(rows: Sequence[Row]) -> None:
    """A table on standard output."""
    cells = [(row.name, f"{row.value:,.4g}", row.unit, row.verdict, row.note) for row in rows]
    widths = [max((len(line[k]) for line in cells), default=0) for k in range(4)]
    for name, value, unit, verdict, note in cells:
        line = f"{name:<{widths[0]}}  {value:>{widths[1]}} {unit:<{widths[2]}}  {verdict:<{widths[3]}}"
        print(f"{line}  {note}".rstrip(), flush=True)


def write_rows(rows: Sequence[Row], path: Path | None) -> None:
    """The same as JSON, if a file is asked for."""
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Processor, cores and load: what a number of this kind means nothing without."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        model = named.get("model name", model)
        known = named.get("flags", "").split()
        model += "".join(f" {flag}" for flag in ("avx512_bf16", "amx_bf16") if flag in known)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "processor": model,
        "cores": cores,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_at_start": round(load, 2),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions; absent packages are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
