"""`scildm predict`."""

import argparse
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sciLDM.cli._console import note, out, print_table
from sciLDM.cli._models import open_model
from sciLDM.cli._parser import UsageError

__all__ = ["ReadsLabelled", "run"]


@runtime_checkable
class ReadsLabelled(Protocol):
    """A domain whose objects come as a table with measured quantities."""

    def read_labelled(self, path: Path, target: str | None, codec: Any) -> Any:
        """Has `objects`, `values` (NaN where missing), `notes`, `write(path, columns)` and, where the domain has
        features of its own, `fingerprints()`. A static method of the domain's class."""
        ...


def run(args: argparse.Namespace) -> None:
    """Learn from the labelled rows, say how well, predict the others."""
    model = open_model(args)
    domain = model.experiment.domain
    if not isinstance(domain, ReadsLabelled):
        raise UsageError(f"predict: the domain {domain.name} reads no tables with measured quantities")
    import numpy as np

    from sciLDM import explore

    given = domain.read_labelled(Path(args.data), args.target, model.codec)
    known = np.isfinite(given.values)
    new = given if args.input is None else domain.read_labelled(Path(args.input), None, model.codec)
    wanted = np.flatnonzero(~np.isfinite(new.values))
    for line in (*given.notes, *(() if args.input is None else new.notes)):
        note(f"note: {line}")
    probe = explore.fit_probe(model, given.objects, given.values, seed=args.seed)  # type: ignore[arg-type]
    rows = [
        {"features": "denoiser of the model", "mae": probe.mae},
        {"features": "mean of the others", "mae": probe.mae_constant},
    ]
    if hasattr(given, "fingerprints"):
        rows.insert(1, {"features": "fingerprints", "mae": _baseline(given, args.seed)})
    title = f"{args.target}: error on {len(probe.scores)} of {int(known.sum())} rows, kept apart"
    print_table(rows, ("features", "mae"), title=title)
    if not len(wanted):
        note(f"every row has a value of {args.target}: nothing to predict; give new objects by --input FILE")
        return
    found = probe.predict(model, [new.objects[k] for k in wanted], level=args.level)  # type: ignore[arg-type]
    columns = {args.target: np.array(new.values, dtype=float)}
    for name, values in (("predicted", found.mean), ("low", found.low), ("high", found.high)):
        columns[f"{args.target}_{name}"] = np.full(len(new.objects), np.nan)
        columns[f"{args.target}_{name}"][wanted] = values
    width = float(np.mean(found.high - found.low))
    out(f"{len(wanted):,} predictions; {args.level:.0%} intervals, {width:.4g} wide on average")
    note(f"written: {new.write(Path(args.output), columns)}")


def _baseline(given: Any, seed: int) -> float:
    """Error of a Gaussian process on the domain's own features, for the same split."""
    import torch

    from sciLDM.evaluate.gaussian_process import GaussianProcess, count_similarity
    from sciLDM.explore.probe import split_labelled

    order, apart = split_labelled(given.values, seed=seed)
    x, y = given.fingerprints()[order], torch.from_numpy(given.values[order])
    process = GaussianProcess.fit(x[apart:], y[apart:], [count_similarity])
    return float((process.predict(x[:apart])[0] - y[:apart]).abs().mean())
