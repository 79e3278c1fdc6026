"""`scildm bench`."""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sciLDM.cli._console import Bars, note, out, print_table
from sciLDM.cli._models import Model, open_model, parse_guidance, results_folder, use_threads, weights_hash
from sciLDM.cli._parser import UsageError
from sciLDM.cli._sample import write_samples
from sciLDM.domain import Evaluation
from sciLDM.evaluate.store import plain
from sciLDM.registry import load_domain

__all__ = ["Benchmark", "PublishedRow", "RunsBenchmarks", "run"]


@runtime_checkable
class PublishedRow(Protocol):
    """What somebody else has scored."""

    model: str
    values: Mapping[str, float]
    source: str
    read: str
    samples: int | None


@runtime_checkable
class Benchmark(Protocol):
    """A published protocol: how many samples, how they are scored, what others have scored."""

    name: str
    samples: int
    tables: Mapping[str, Sequence[str]]
    published: Sequence[PublishedRow]

    def prepare(self) -> None:
        """Find all data, so that what is missing is said before anything is sampled."""
        ...

    def score(self, samples: Any, progress: Callable[[str, int, int], None]) -> Evaluation:
        """Rows of metrics, each with its floor."""
        ...


@runtime_checkable
class RunsBenchmarks(Protocol):
    """A domain with published benchmarks. Both are static methods of its class."""

    def benchmark(self, name: str, codec: Any, reference: Path | None, *, device: str) -> Benchmark:
        """A benchmark by name, for samples of a model (or, without codec and reference, of anybody)."""
        ...

    def read_generated(self, path: Path) -> Any:
        """Samples of any program, from a file."""
        ...


def run(args: argparse.Namespace) -> None:
    """Draw (or read) samples, score them and the floor, keep and print both beside published rows."""
    given = Path(args.run)
    if given.is_file():
        _score_file(given, args)
    else:
        _score_model(args)


def _score_file(path: Path, args: argparse.Namespace) -> None:
    if args.number is not None:
        raise UsageError("--number: a file of samples is scored whole; give a run or a model to draw from")
    use_threads(args.threads)
    domain = load_domain(args.domain)
    if not isinstance(domain, RunsBenchmarks):
        raise UsageError(f"the domain {args.domain} has no benchmarks")
    benchmark = domain.benchmark(args.benchmark, None, None, device=_device(args.device))
    benchmark.prepare()
    samples = domain.read_generated(path)
    folder = Path(args.output) if args.output else path.parent
    result = _scored(benchmark, samples)
    entry = {"model": path.name, "sampling": {"from file": path.name}, **result}
    _finish(benchmark, folder / f"bench-{benchmark.name}-{path.stem}.json", "", entry)


def _score_model(args: argparse.Namespace) -> None:
    model = open_model(args)
    domain = model.experiment.domain
    if not isinstance(domain, RunsBenchmarks):
        raise UsageError(f"the domain {domain.name} has no benchmarks")
    guidance = parse_guidance(args.guidance, model)
    benchmark = domain.benchmark(args.benchmark, model.codec, model.reference, device=_device(args.device))
    benchmark.prepare()  # before sampling: what is missing is said at once
    folder = results_folder(args.run, args.output)
    folder.mkdir(parents=True, exist_ok=True)
    count = args.number or benchmark.samples
    samples, sampling = _drawn(model, count, args, guidance)
    # Before scoring: samples are what took long, and scoring may fail.
    kept = folder / f"bench-{benchmark.name}-{sampling['steps']}-steps.csv"
    write_samples(samples, kept, domain)
    name = Path(args.run).resolve().name if Path(args.run).exists() else args.run
    entry = {"model": name, "sampling": sampling, "samples file": kept.name, **_scored(benchmark, samples)}
    _finish(benchmark, folder / f"bench-{benchmark.name}.json", weights_hash(model), entry)


def _drawn(
    model: Model, count: int, args: argparse.Namespace, guidance: float | Mapping[str, float] | None
) -> tuple[Any, dict[str, Any]]:
    """Samples, and how they were made and how fast."""
    import torch

    sampler = model.experiment.sampler
    start = time.monotonic()
    latents = [start]
    with Bars() as bars:

        def progress(done: int, total: int) -> None:
            latents[0] = time.monotonic()
            bars("sampling", done, total)

        samples = model.sample(
            count, cond={}, guidance=guidance, steps=args.steps, seed=args.seed, batch_size=args.batch_size,
            progress=progress,
        )  # fmt: skip
    whole = time.monotonic() - start
    return samples, {
        "sampler": type(sampler).__name__,
        "steps": args.steps or getattr(sampler, "steps", None),
        "guidance": str(model.experiment.guidance if guidance is None else guidance),
        "seed": args.seed,
        "network precision": "bf16" if args.bf16 else "fp32",
        "device": _device(args.device),
        "threads": torch.get_num_threads(),
        "seconds for latents": round(latents[0] - start, 2),
        "seconds": round(whole, 2),
        "latents per second": round(count / max(latents[0] - start, 1e-9), 2),
        "samples per second": round(count / max(whole, 1e-9), 2),
    }


def _scored(benchmark: Benchmark, samples: Any) -> dict[str, Any]:
    start = time.monotonic()
    with Bars() as bars:
        result = benchmark.score(samples, bars)
    return {
        "rows": list(result.rows),
        "protocol": dict(result.protocol),
        "notes": list(result.failures),
        "scoring seconds": round(time.monotonic() - start, 1),
    }


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _finish(benchmark: Benchmark, path: Path, weights: str, entry: Mapping[str, Any]) -> None:
    """Store beside earlier results of the same weights, and print all of them."""
    entry = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **plain(entry)}
    content = _earlier(path)
    kept = content.get("results", []) if content.get("weights") == weights else []
    kept = [e for e in kept if _key(e) != _key(entry)] + [entry]
    published = [
        {"model": p.model, "samples": p.samples, **p.values, "source": p.source, "read": p.read}
        for p in benchmark.published
    ]
    full = {"benchmark": benchmark.name, "weights": weights, "results": kept, "published": published}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(full, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)
    _print(benchmark, kept, entry)
    note(f"written: {path}")


def _earlier(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a result another one rather than a newer one."""
    sampling = entry["sampling"]
    names = ("sampler", "steps", "guidance", "seed", "network precision", "from file")
    return (entry["protocol"].get("samples"), *(sampling.get(name) for name in names))


def _print(benchmark: Benchmark, results: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]) -> None:
    for title, columns in benchmark.tables.items():
        rows = [row for e in results for row in _own_rows(e)][-12:]
        rows += [
            {"model": p.model, "samples": p.samples, **p.values, "from": p.read} for p in benchmark.published
        ]
        shown = [c for c in columns if any(c in row for row in rows)]
        rows = [{k: _short(v) for k, v in row.items()} for row in rows if any(c in row for c in shown)]
        print_table(rows, ("model", "samples", *shown, "from"), title=title)
    print_table(
        entry["rows"], ("metric", "value", "floor", "samples", "note"), title="all scores", wrap=("note",)
    )
    for source in dict.fromkeys(p.source for p in benchmark.published):
        out(f"{source}: {', '.join(p.model for p in benchmark.published if p.source == source)}")
    out(
        "from: authors, their own table; quoted, a later paper's; rescored, from samples that the authors released"
    )
    for line in entry["notes"]:
        out(f"note: {line}")
    speed = entry["sampling"]
    if "samples per second" in speed:
        out(
            f"speed: {speed['latents per second']:g} latents/s, {speed['samples per second']:g} samples/s with "
            f"decoding and table ({speed['device']}, {speed['threads']} threads, {speed['steps']} steps)"
        )
    out("; ".join(f"{name} {value}" for name, value in entry["protocol"].items()))


def _own_rows(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A result and its floor as two rows."""
    steps = entry["sampling"].get("steps")
    name = entry["model"] if steps is None else f"{entry['model']}, {steps} steps"
    count = entry["protocol"].get("samples")
    own = {row["metric"]: row["value"] for row in entry["rows"]}
    floor = {row["metric"]: row["floor"] for row in entry["rows"]}
    return [
        {"model": name, "samples": count, **own, "from": "here"},
        {"model": "  floor: real molecules", "samples": count, **floor, "from": "here"},
    ]


def _short(value: Any) -> Any:
    """Four significant digits: columns are many."""
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.4g}")
    return value
