"""`scildm distill`."""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sciLDM.cli._console import Bars, note, steps
from sciLDM.cli._models import open_model
from sciLDM.cli._near import near
from sciLDM.cli._parser import UsageError

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Train the student, then say what to do with it."""
    from sciLDM.distill import Consistency, MomentMatching, distil
    from sciLDM.evaluate.store import record_command

    methods = {kind.name: kind for kind in (MomentMatching, Consistency)}
    if args.method not in methods:
        raise UsageError(
            f"--method: no way {args.method!r} to distil{near(args.method, methods)} (known: {', '.join(methods)})"
        )
    args.bf16 = False  # training has its own precision
    model: Any = open_model(args)
    method = methods[args.method](steps=tuple(args.steps))
    given = {
        "max_steps": args.max_steps, "max_minutes": args.max_minutes, "batch_size": args.batch_size,
        "learning_rate": args.learning_rate, "seed": args.seed,
    }  # fmt: skip
    settings = replace(method.training, **{name: v for name, v in given.items() if v is not None})
    settings = replace(settings, precision="fp32" if args.fp32 else settings.precision)
    output, start = Path(args.output), time.monotonic()
    with Bars() as bars:
        distil(
            model, output, method=method, settings=settings, samples=args.samples,
            latents=_cache(Path(args.run)), progress=bars, say=bars.say,
        )  # fmt: skip
    record_command(output, f"distill --method {method.name}", time.monotonic() - start)
    note(f"the student is in {output / 'model'}, its curve in {output / 'denoiser' / 'metrics.csv'}")
    steps(
        "next",
        {
            "draw samples": f"scildm sample {output} -n 1000",
            "score it": f"scildm evaluate {output}",
        },
    )


def _cache(run: Path) -> Path | None:
    """The latents that training left in the teacher's run folder."""
    folder = (run.parent if run.name == "model" else run) / "latents"
    return folder if folder.is_dir() else None
