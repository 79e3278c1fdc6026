"""`scildm sample`."""

import argparse
import inspect
from pathlib import Path
from typing import Any

from sciLDM.cli._console import note, out, print_table
from sciLDM.cli._models import draw, open_model, parse_cond, parse_guidance
from sciLDM.cli._parser import UsageError

__all__ = ["run", "summary", "write_samples"]

_FIRST = 8


def run(args: argparse.Namespace) -> None:
    """Sample, show the first rows and a summary, write the file."""
    model = open_model(args)
    cond = parse_cond(args.cond, model)
    guidance = parse_guidance(args.guidance, model)
    formats = getattr(model.experiment.domain, "formats", None)
    if args.output and formats and Path(args.output).suffix.lower() not in formats:
        # Said before the work, not after it.
        raise UsageError(f"--output {args.output}: expected an ending {', '.join(formats)}")
    samples = draw(model, args.number, args, cond=cond, guidance=guidance)
    show(samples)
    if args.output:
        path = write_samples(samples, Path(args.output), conformers=args.conformers)
        note(f"written: {path}")
    else:
        note("nothing was written; --output samples.csv keeps all samples with all columns")


def write_samples(samples: Any, path: Path, *, conformers: bool = False) -> Path:
    """Write native samples as their adapter does.

    Raises:
        UsageError: These samples cannot be written, or have no conformers.
    """
    if not hasattr(samples, "write"):
        raise UsageError(
            f"samples of this domain ({type(samples).__name__}) cannot be written by the command line"
        )
    if not conformers:
        return samples.write(path)
    if "conformers" not in inspect.signature(samples.write).parameters:
        raise UsageError("--conformers: samples of this domain have no conformers")
    return samples.write(path, conformers=True)


def show(samples: Any) -> None:
    """First rows and summary of samples that are a table; else what they say of themselves."""
    table = getattr(samples, "table", None)
    if table is None:
        out(str(samples))
        return
    rows = table.head(_FIRST).to_dict("records")
    print_table(rows, _columns(table))
    out("; ".join(summary(table)))


def _columns(table: Any) -> list[str]:
    """The first column, what was asked and what came; then what else is a number."""
    names = [str(c) for c in table.columns]
    asked = [n for n in names if n.startswith("requested_") and table[n].notna().any()]
    pairs = [x for n in asked for x in (n, n.replace("requested_", "realised_")) if x in names]
    realised = [n for n in names if n.startswith("realised_") and n not in pairs]
    others = [n for n in ("similarity", "in_train") if n in names]
    return list(dict.fromkeys([names[0], *pairs, *realised, *others]))[:8]


def summary(table: Any) -> list[str]:
    """Counts, shares of yes, and means: one phrase each."""
    first = table[table.columns[0]]
    known = first[first.notna() & (first != "")]
    found = [f"{len(table):,} samples, {len(known):,} valid, {known.nunique():,} distinct"]
    for name in map(str, table.columns):
        column = table[name]
        if column.dtype == bool:
            found.append(f"{name} {column.mean():.1%}")
        elif name.startswith("realised_"):
            asked = table.get(name.replace("realised_", "requested_"))
            wanted = f" (asked {asked.mean():.3g})" if asked is not None and asked.notna().any() else ""
            found.append(f"{name.removeprefix('realised_')} {column.mean():.3g} ± {column.std():.2g}{wanted}")
    return found
