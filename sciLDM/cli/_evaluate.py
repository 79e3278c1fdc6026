"""`scildm evaluate`."""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sciLDM.cli._console import Bars, note, print_table, steps
from sciLDM.cli._models import Model, draw, open_model, parse_guidance, results_folder, weights_hash
from sciLDM.cli._parser import UsageError
from sciLDM.cli._sample import samples_name, write_samples
from sciLDM.errors import DataError
from sciLDM.evaluate.hooks import ReadsSamples, ScoresConditions
from sciLDM.evaluate.store import Stored, record_command

__all__ = ["run", "score_conditions", "score_samples"]

_DEFAULT = 10_000
_CONDITIONAL = (
    "property",
    "mae",
    "mae_unconditional",
    "ratio",
    "spearman",
    "validity",
    "uniqueness",
    "samples",
)


def run(args: argparse.Namespace) -> None:
    """Score samples, or requests, or both."""
    if args.samples and args.number:
        raise UsageError("give either -n (samples to draw) or --samples (a file of them), not both")
    if args.candidates > 1 and not args.targets:
        raise UsageError("--candidates: expected --targets beside it, whose requests it chooses by")
    start = time.monotonic()
    model = open_model(args)
    folder = results_folder(args.run, args.output)
    folder.mkdir(parents=True, exist_ok=True)
    if args.samples or args.number or not args.targets:
        score_samples(model, folder, args)
        count = args.number or _count(model.experiment.domain)
        record_command(folder, f"evaluate -n {count}", time.monotonic() - start)
    if args.targets:
        begun = time.monotonic()
        names = None if args.targets == "all" else [n.strip() for n in args.targets.split(",") if n.strip()]
        score_conditions(model, folder, names, args)
        record_command(folder, f"evaluate --targets {args.targets}", time.monotonic() - begun)
    note(f"written: {Stored(folder).path}")
    where = f" --output {args.output}" if args.output else ""
    steps("next", {"read it all in one page": f"scildm report {args.run}{where}"})


def _count(domain: object) -> int:
    """How many samples to score unless told; a volume is worth more than a molecule."""
    return getattr(domain, "evaluated", _DEFAULT)


def score_samples(model: Model, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Draw (or read) samples, score them, keep both in `folder`, print the table."""
    domain, stored = model.experiment.domain, Stored(folder)
    if model.reference is None and getattr(
        domain, "needs_reference", False
    ):  # said before the work, not after it
        raise UsageError(
            f"{args.run} came without the data it was tested on; evaluate a run folder made by `scildm fit`, or read "
            "the card of the model"
        )
    count, guidance = (
        args.number or _count(domain),
        parse_guidance(args.guidance, model),
    )
    start = time.monotonic()
    if args.samples:
        if not isinstance(domain, ReadsSamples):
            raise UsageError(f"--samples: domain {domain.name!r} cannot read samples from a file; use -n")
        samples = domain.read_samples(Path(args.samples))
        sampling: dict[str, Any] = {"from file": str(args.samples)}
    else:
        samples = draw(model, count, args, cond={}, guidance=guidance)
        sampling = {
            **_settings(model, args, guidance),
            "sampling seconds": round(time.monotonic() - start, 1),
        }
        # Before scoring: samples are what took long, and scoring may fail.
        write_samples(samples, stored.samples_as(samples_name(domain)), domain)
    with Bars() as bars:
        result = domain.evaluate(samples, model.codec, model.reference, bars)
    if args.samples:
        write_samples(samples, stored.samples_as(samples_name(domain)), domain)
    content = {"sampling": sampling, **asdict(result)}
    stored.add("unconditional", content, weights=weights_hash(model))
    print_table(result.rows, ("metric", "value", "floor", "samples", "note"), title="scores", wrap=("note",))
    _print_failures(result.failures)
    return content


def score_conditions(
    model: Model, folder: Path, names: Sequence[str] | None, args: argparse.Namespace
) -> dict[str, Any]:
    """Ask for properties, compare with what comes, keep both in `folder`, print the table."""
    domain, stored = model.experiment.domain, Stored(folder)
    if not isinstance(domain, ScoresConditions):
        raise DataError(f"domain {domain.name!r} cannot measure whether requests are met")
    guidance = parse_guidance(args.guidance, model)

    def sample(count: int, cond: Mapping[str, Any]) -> Any:
        what = f"asking for {', '.join(cond)}" if cond else "asking for nothing"
        return draw(model, count, args, cond=cond, guidance=guidance, what=what)

    start = time.monotonic()
    result = domain.evaluate_conditional(sample, model.codec, names, per_target=args.per_target)
    stored.write_points(result.points)
    settings = {**_settings(model, args, guidance), "per target": args.per_target}
    if args.candidates > 1:
        settings["candidates"] = args.candidates
    content = {
        "sampling": {**settings, "seconds": round(time.monotonic() - start, 1)},
        "rows": list(result.rows),
        "failures": list(result.notes),
    }
    stored.add("conditional", content, weights=weights_hash(model))
    print_table(result.rows, _CONDITIONAL, title="asked for and got (ratio: 1 no effect, 0 exact)")
    _print_failures(result.notes)
    return content


def _settings(
    model: Model, args: argparse.Namespace, guidance: float | Mapping[str, float] | None
) -> dict[str, Any]:
    sampler = model.experiment.sampler
    return {
        "sampler": type(sampler).__name__,
        "steps": args.steps or getattr(sampler, "steps", None),
        "guidance": str(model.experiment.guidance if guidance is None else guidance),
        "seed": args.seed,
        "network precision": "bf16" if args.bf16 else "fp32",
    }


def _print_failures(lines: Sequence[str]) -> None:
    for line in lines:
        note(f"note: {line}")
