"""`scildm forecast`."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sciLDM.cli._console import Bars, note
from sciLDM.cli._models import open_model, parse_cond, parse_guidance
from sciLDM.cli._parser import UsageError

__all__ = ["ForecastsFiles", "run"]


@runtime_checkable
class ForecastsFiles(Protocol):
    """A domain whose models continue what a file ends with."""

    forecast_formats: tuple[str, ...]

    def forecast_file(
        self,
        model: Any,
        source: Path,
        output: Path,
        *,
        leads: int,
        members: int,
        seed: int,
        steps: int | None,
        guidance: float | None,
        cond: Mapping[str, Any],
        batch_size: int,
        progress: Callable[[int, int], None],
    ) -> Path:
        """Continue the last states of `source` for `leads` states and write the ensemble to `output`."""
        ...


def run(args: argparse.Namespace) -> None:
    """Read the last states, continue them, write the ensemble."""
    source, output = Path(args.input), Path(args.output)
    if not source.exists():
        raise UsageError(f"--input {source}: no such file")
    model = open_model(args)
    domain = model.experiment.domain
    if not isinstance(domain, ForecastsFiles):
        raise UsageError(f"the domain {domain.name} makes no forecasts")
    if output.suffix.lower() not in domain.forecast_formats:
        raise UsageError(f"--output {output}: expected an ending {', '.join(domain.forecast_formats)}")
    guidance = parse_guidance(args.guidance, model)
    if isinstance(guidance, dict):
        raise UsageError("--guidance: a forecast takes one number")
    with Bars() as bars:
        path = domain.forecast_file(
            model,
            source,
            output,
            leads=args.leads,
            members=args.members,
            seed=args.seed,
            steps=args.steps,
            guidance=guidance,
            cond=parse_cond(args.cond, model),
            batch_size=args.batch_size,
            progress=lambda done, total: bars("forecasting", done, total),
        )
    note(f"written: {path}")
