"""`scildm sample`."""

import argparse
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sciLDM.cli._console import Bars, note, out, print_table
from sciLDM.cli._models import draw, open_model, parse_cond, parse_guidance
from sciLDM.cli._parser import UsageError
from sciLDM.evaluate.hooks import WritesSamples

__all__ = ["Decorates", "in_blocks", "run", "samples_name", "summary", "write_samples"]

_FIRST = 8


@runtime_checkable
class Decorates(Protocol):
    """A domain whose samples can be built around a given part."""

    def decorate(
        self,
        model: Any,
        scaffold: str,
        count: int,
        *,
        cond: Mapping[str, Any],
        guidance: float | Mapping[str, float] | None,
        steps: int | None,
        seed: int,
        batch_size: int,
        progress: Callable[[int, int], None],
    ) -> Any:
        """Native samples that all contain it. A static method of the domain's class."""
        ...


def run(args: argparse.Namespace) -> None:
    """Sample, show the first rows and a summary, write the file."""
    model = open_model(args)
    cond = parse_cond(args.cond, model)
    guidance = parse_guidance(args.guidance, model)
    formats = getattr(model.experiment.domain, "formats", None)
    if args.output and formats and Path(args.output).suffix.lower() not in formats:
        # Said before the work, not after it.
        raise UsageError(f"--output {args.output}: expected an ending {', '.join(formats)}")
    if args.candidates > 1 and (args.scaffold is not None or not cond):
        raise UsageError(
            "--candidates: expected a request to choose by (--cond NAME=VALUE), and no --scaffold"
        )
    if args.scaffold is None and args.candidates == 1 and args.output and in_blocks(model, Path(args.output)):
        note(f"written: {_streamed(model, args, cond=cond, guidance=guidance)}")
        return
    if args.scaffold is None:
        samples = draw(model, args.number, args, cond=cond, guidance=guidance)
    else:
        samples = _decorated(model, args, cond=cond, guidance=guidance)
    show(samples)
    if args.output:
        path = write_samples(samples, Path(args.output), model.experiment.domain, conformers=args.conformers)
        note(f"written: {path}")
    else:
        note(
            f"nothing was written; --output {samples_name(model.experiment.domain)} keeps all samples in full"
        )


def in_blocks(model: Any, path: Path) -> bool:
    """Whether the model writes this format block by block, with the memory of one block."""
    return path.suffix.lower() in getattr(model.codec, "block_formats", ())


def _streamed(model: Any, args: argparse.Namespace, *, cond: Any, guidance: Any) -> Path:
    """Large ensembles never are in memory; an interrupted command goes on where it stopped."""
    from sciLDM.data.ensemble import write_ensemble

    with Bars() as bars:
        return write_ensemble(
            model,
            Path(args.output),
            args.number,
            cond=cond,
            guidance=guidance,
            steps=args.steps,
            seed=args.seed,
            batch_size=args.batch_size,
            progress=lambda done, total: bars("sampling", done, total),
        )


def _decorated(model: Any, args: argparse.Namespace, *, cond: Any, guidance: Any) -> Any:
    """Samples that contain the scaffold asked for."""
    domain = model.experiment.domain
    if not isinstance(domain, Decorates):
        raise UsageError(f"--scaffold: samples of the domain {domain.name} have no scaffolds")
    with Bars() as bars:
        return domain.decorate(
            model,
            args.scaffold,
            args.number,
            cond=cond,
            guidance=guidance,
            steps=args.steps,
            seed=args.seed,
            batch_size=args.batch_size,
            progress=lambda done, total: bars("sampling", done, total),
        )


def samples_name(domain: object) -> str:
    """`samples`, with the first of the endings that the domain writes."""
    return f"samples{(getattr(domain, 'formats', None) or ('.csv',))[0]}"


def write_samples(samples: Any, path: Path, domain: object, *, conformers: bool = False) -> Path:
    """Write native samples as their adapter does.

    Raises:
        UsageError: These samples cannot be written, or have no conformers.
    """
    if isinstance(domain, WritesSamples) and not conformers:
        return domain.write_samples(samples, path)
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
