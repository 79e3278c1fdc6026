"""`scildm edit`."""

import argparse
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sciLDM.cli._console import note
from sciLDM.cli._models import open_model, parse_cond, parse_guidance
from sciLDM.cli._parser import UsageError
from sciLDM.cli._sample import show, write_samples

__all__ = ["MeasuresLikeness", "run"]


@runtime_checkable
class MeasuresLikeness(Protocol):
    """A domain that can say how like its objects are. Static methods of the domain's class."""

    def likeness(self, lead: Any, samples: Any) -> Sequence[float]:
        """Of each sample to the lead; 1 for the same."""
        ...

    def names(self, samples: Any) -> Sequence[Hashable]:
        """Equal for samples that are the same."""
        ...


def run(args: argparse.Namespace) -> None:
    """Variants of a lead, the nearest to the similarity asked for first."""
    if not 0 <= args.similarity <= 1:
        raise UsageError(f"--similarity: expected a number from 0 to 1, got {args.similarity}")
    model = open_model(args)
    domain = model.experiment.domain
    if not isinstance(domain, MeasuresLikeness):
        raise UsageError(f"edit: the domain {domain.name} does not say how like its objects are")
    from sciLDM.explore import variants

    steps, sampler = args.steps, model.experiment.sampler
    made = variants(
        model,  # type: ignore[arg-type]
        args.lead,
        args.similarity,
        measure=domain.likeness,
        keys=domain.names,
        count=args.number,
        draws=max(16 * args.number, 64),
        cond=parse_cond(args.cond, model),
        guidance=parse_guidance(args.guidance, model),
        sampler=sampler if steps is None else sampler.with_steps(steps),
        seed=args.seed,
    )
    if hasattr(made, "table"):
        made.table.insert(1, "realised_likeness", list(domain.likeness(args.lead, made)))
    show(made)
    if args.output:
        note(f"written: {write_samples(made, Path(args.output), domain)}")
