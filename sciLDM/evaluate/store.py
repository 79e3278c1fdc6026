"""Scores in a run folder: `evaluation.json`, `samples.csv`, `conditional.csv`, `commands.jsonl`."""

import csv
import json
import math
import os
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from sciLDM import __version__
from sciLDM.errors import ArtefactError

__all__ = ["Stored", "commands", "machine", "peak_memory_gib", "plain", "record_command"]


@final
@dataclass(frozen=True)
class Stored:
    """The evaluation kept in a folder. Parts are added one by one; parts about other weights are dropped.

    Args:
        folder: The run folder.
    """

    folder: Path

    @property
    def path(self) -> Path:
        """The file itself."""
        return self.folder / "evaluation.json"

    @property
    def samples(self) -> Path:
        """The samples that were scored, whatever their format; `samples.csv` when there are none."""
        found = sorted(p for p in self.folder.glob("samples.*") if p.suffix != ".json")
        return found[0] if found else self.folder / "samples.csv"

    def samples_as(self, name: str) -> Path:
        """Where samples of this name belong."""
        return self.folder / name

    @property
    def points(self) -> Path:
        """Table of requested and realised values."""
        return self.folder / "conditional.csv"

    def read(self) -> dict[str, Any]:
        """The content; empty when there is none.

        Raises:
            ArtefactError: The file is damaged.
        """
        if not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtefactError(
                f"{self.path} is damaged ({error}); delete it and run `scildm evaluate` again"
            ) from error
        if not isinstance(content, dict):
            raise ArtefactError(
                f"{self.path} is damaged: expected a mapping; delete it and run `scildm evaluate` again"
            )
        return content

    def add(self, part: str, content: Mapping[str, Any], *, weights: str) -> dict[str, Any]:
        """Put one part into the file and return the whole.

        Args:
            part: `unconditional` or `conditional`.
            content: Plain data; numbers that are not finite become null.
            weights: Hash of the model; parts with another hash no longer describe it.
        """
        kept = self.read()
        if kept.get("weights") != weights:
            kept = {}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        full = {**kept, "weights": weights, part: {"created": now, **plain(content)}}
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(full, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(self.path)
        return full

    def write_points(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the table of requested and realised values."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        partial = self.points.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self.points)


def plain(value: Any) -> Any:
    """Numbers, strings, lists and mappings as JSON knows them; what is not finite becomes None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def record_command(folder: Path, command: str, seconds: float) -> None:
    """Append to `commands.jsonl` what was run, where, for how long, and with how much memory."""
    entry = {
        "command": command,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "peak_memory_gib": round(peak_memory_gib(), 3),
        "sciLDM": __version__,
        "machine": machine(),
    }
    with (folder / "commands.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain(entry)) + "\n")


def commands(folder: Path) -> list[dict[str, Any]]:
    """What `record_command` wrote; lines cut short by a crash are skipped."""
    path = folder / "commands.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


def peak_memory_gib() -> float:
    """Largest resident memory so far of this process or of one of its children [GiB]."""
    largest = max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return largest / 2 ** (30 if sys.platform == "darwin" else 20)


def machine() -> dict[str, Any]:
    """Processor, cores, memory, accelerator and versions of this machine."""
    import torch

    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory [GiB]"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if torch.cuda.is_available():
        found["accelerator"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names[0] if names else "") or platform.processor() or platform.machine()
