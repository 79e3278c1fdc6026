"""`scildm reconstruct`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sciLDM.cli._console import Bars, note, out
from sciLDM.cli._models import open_model, parse_cond, parse_guidance, results_folder
from sciLDM.cli._parser import UsageError

__all__ = ["run", "summary"]


def run(args: argparse.Namespace) -> None:
    """Read observations, reconstruct, write what the domain writes."""
    from sciLDM.posterior.hooks import OperatorSpec, ReadsObservations, WritesPosterior

    spec = None if args.operator is None else OperatorSpec.parse(args.operator)
    if args.samples < 2:
        raise UsageError("--samples: a spread needs at least 2")
    path = Path(args.input)
    if not path.exists():
        raise UsageError(f"--input {path}: no such file")
    model: Any = open_model(args)
    cond, guidance = parse_cond(args.cond, model), parse_guidance(args.guidance, model)
    codec, domain = model.codec, model.experiment.domain.name
    # Said before the work, not after it.
    if not isinstance(codec, ReadsObservations):
        raise UsageError(f"the domain {domain} reads no observations from files; {_in_python(args.run)}")
    if not isinstance(codec, WritesPosterior):
        raise UsageError(f"the domain {domain} writes no reconstructions; {_in_python(args.run)}")
    observed, operator = codec.read_observation(path, spec)
    folder = Path(args.output) if args.output else results_folder(args.run, None) / "reconstruction"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder}: {error.strerror or error}; choose another folder") from error
    with Bars() as bars:
        result = model.reconstruct(
            observed,
            operator,
            noise_std=args.noise_std,
            cond=cond,
            samples=args.samples,
            steps=args.steps,
            seed=args.seed,
            guidance=guidance,
            batch_size=args.batch_size,
            progress=lambda done, total: bars("reconstructing", done, total),
        )
    codec.write_posterior(result, folder)
    for line in summary(result):
        out(line)
    note(f"written: {folder}")


def summary(result: Any) -> list[str]:
    """What a result says of itself: of its `posterior`, or of its own attributes of the same names."""
    posterior = getattr(result, "posterior", result)
    details = getattr(posterior, "details", None)
    if not isinstance(details, Mapping):
        return []
    lines = []
    chi2 = getattr(posterior, "chi2", None)
    if chi2 is not None:
        lines.append(f"chi-square of the data {_range(chi2.tolist())} (1: met to within their noise)")
    if "noise_std" in details:
        how = "estimated" if details.get("noise_estimated") else "as given"
        lines.append(f"noise {_range(details['noise_std'])}, {how}")
    calibrated = getattr(posterior, "calibrated", False)
    lines.append("spread calibrated" if calibrated else "spread not calibrated for this family of operators")
    lines += [f"warning: {line}" for line in details.get("warnings", ())]
    return lines


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _in_python(run: str) -> str:
    return f"use sciLDM.load({run!r}).reconstruct(...) in Python"
