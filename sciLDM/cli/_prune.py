"""`scildm prune`."""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sciLDM.cli._console import Bars, note, print_table, steps
from sciLDM.cli._models import use_threads

if TYPE_CHECKING:
    from sciLDM.model import LatentDiffusion

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Prune and recover, then say what became of size and error."""
    from sciLDM.compress import prune, recovery_settings
    from sciLDM.evaluate.store import record_command
    from sciLDM.model import load

    use_threads(args.threads)
    model, output, start = load(args.run), Path(args.output), time.monotonic()
    given = {name: getattr(args, name) for name in ("max_minutes", "batch_size", "learning_rate")}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = replace(recovery_settings(model), max_steps=args.max_steps, **chosen)
    with Bars() as bars:
        smaller = prune(
            model,
            output,
            keep=args.keep,
            settings=settings,
            samples=args.samples,
            progress=bars,
            say=bars.say,
        )
    record_command(output, f"prune --keep {args.keep:g}", time.monotonic() - start)
    rows = [_row(args.run, model), _row(args.output, smaller)]
    print_table(rows, ("model", "denoiser parameters", "validation error"))
    note(f"the model is in {output / 'model'}")
    steps(
        "next",
        {"draw samples": f"scildm sample {output} -n 1000", "score the model": f"scildm evaluate {output}"},
    )


def _row(name: str, model: "LatentDiffusion") -> dict[str, Any]:
    scores = model.card.get("training", {}).get("denoiser", {}).get("validation", {})
    return {
        "model": name,
        "denoiser parameters": model.parameters["denoiser"],
        "validation error": scores.get("loss"),
    }
