"""`scildm demo`: the whole path, on a configuration that comes with the package."""

import argparse
import time
from pathlib import Path
from typing import Any

import sciLDM
from sciLDM.cli._console import note, out, steps
from sciLDM.cli._evaluate import score_conditions, score_samples
from sciLDM.cli._fit import fit_run
from sciLDM.cli._models import use_threads, weights_hash
from sciLDM.cli._overrides import complete_config
from sciLDM.cli._report import make_report
from sciLDM.errors import ConfigError
from sciLDM.evaluate.html import duration
from sciLDM.evaluate.store import Stored, peak_memory_gib, record_command

__all__ = ["demo_config", "run"]


def run(args: argparse.Namespace) -> None:
    """Fit, evaluate, ask for properties, report; what is finished is skipped."""
    from sciLDM.model import load

    start = time.monotonic()
    use_threads(args.threads)
    folder = Path(args.output)
    fit_run(complete_config(str(demo_config()), {}), folder)
    model = load(folder)
    settings = argparse.Namespace(
        number=args.number, samples=None, guidance=[], steps=None, seed=0, batch_size=512, candidates=1, bf16=True,
        per_target=args.per_target,
    )  # fmt: skip
    done = Stored(folder).read()
    current = done.get("weights") == weights_hash(model)
    if current and _count(done) == args.number:
        note("evaluation: already done")
    else:
        begun = time.monotonic()
        score_samples(model, folder, settings)
        record_command(folder, f"evaluate -n {args.number}", time.monotonic() - begun)
    if current and (done.get("conditional") or {}).get("sampling", {}).get("per target") == args.per_target:
        note("conditional evaluation: already done")
    else:
        begun = time.monotonic()
        score_conditions(model, folder, None, settings)
        record_command(folder, "evaluate --targets all", time.monotonic() - begun)
    report = make_report(model, folder)
    out(f"done in {duration(time.monotonic() - start)}, peak memory {peak_memory_gib():.2f} GiB")
    out(f"report: {report}")
    steps(
        "next",
        {
            "molecules on request": f"scildm sample {folder} -n 100 --cond logP=2 --guidance 2 --output samples.csv",
            "your own molecules": f"scildm fit {demo_config()} --domain.init_args.data=my.csv --output runs/mine",
        },
    )


def demo_config() -> Path:
    """The demo's configuration: beside the package in a checkout, inside it when installed.

    Raises:
        ConfigError: It is in neither place.
    """
    package = Path(sciLDM.__file__).resolve().parent
    places = [
        folder / "molecules" / "demo.yaml" for folder in (package.parent / "configs", package / "_configs")
    ]
    for path in places:
        if path.is_file():
            return path
    raise ConfigError(
        f"the demo's configuration is missing: expected {' or '.join(map(str, places))}; install sciLDM again"
    )


def _count(done: dict[str, Any]) -> Any:
    return (done.get("unconditional") or {}).get("protocol", {}).get("samples")
