"""`scildm fit`."""

import argparse
import time
from pathlib import Path

import yaml

from sciLDM.cli._console import Bars, note, out, steps
from sciLDM.cli._models import use_threads
from sciLDM.cli._overrides import complete_config

__all__ = ["fit_run", "run"]


def run(args: argparse.Namespace) -> None:
    """Train, then say what there is and what to do with it."""
    config = complete_config(args.config, args.overrides)
    if args.print_config:
        out(yaml.safe_dump(config, sort_keys=False).rstrip())
        return
    output = Path(args.output or Path("runs") / Path(args.config).stem)
    use_threads(args.threads)
    fit_run(config, output)
    note(f"the model is in {output / 'model'}, its curves in {output}/*/metrics.csv")
    steps(
        "next",
        {
            "draw samples": f"scildm sample {output} -n 1000 --output samples.csv",
            "score the model": f"scildm evaluate {output}",
            "write a report": f"scildm report {output}",
        },
    )


def fit_run(config: dict[str, object], output: Path) -> None:
    """Train with progress bars, and record time and memory also when it fails or is interrupted."""
    from sciLDM.evaluate.store import record_command
    from sciLDM.fitting import fit

    start = time.monotonic()
    outcome = "fit"
    try:
        with Bars() as bars:
            fit(config, output, progress=bars, say=bars.say)
    except KeyboardInterrupt:
        outcome = "fit (interrupted)"
        raise
    except Exception:
        outcome = "fit (failed)"
        raise
    finally:
        # Only in a run that `fit` claimed: anything else in a folder would make it refuse the folder next time.
        if (output / "config.yaml").exists():
            record_command(output, outcome, time.monotonic() - start)
