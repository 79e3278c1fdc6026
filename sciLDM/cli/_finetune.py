"""`scildm finetune`."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sciLDM.cli._console import note, steps
from sciLDM.cli._models import open_model
from sciLDM.cli._parser import UsageError

__all__ = ["run"]

_FULL_RATE = 1e-4


@runtime_checkable
class ReadsItems(Protocol):
    """A domain that reads native objects from a file."""

    def read_items(self, path: Path, codec: Any) -> tuple[Any, Mapping[str, Any]]:
        """What `from_native` of its codec takes: objects, and labels that replace their own."""
        ...


def run(args: argparse.Namespace) -> None:
    """Adapt a model to the items of a file, and say what to do with the new one."""
    from sciLDM.adapt import FineTune, finetune

    data, output = Path(args.data), Path(args.output)
    if not data.is_file():
        raise UsageError(f"--data {data}: expected a file with the items to adapt to, there is none")
    settings = FineTune(rank=None if args.full else args.lora_rank, decoder_steps=args.decoder_steps)
    changes: dict[str, Any] = {"seed": args.seed, "precision": "bf16" if args.bf16 else "fp32"}
    if args.full:
        changes["learning_rate"] = _FULL_RATE
    if args.learning_rate is not None:
        changes["learning_rate"] = args.learning_rate
    if args.max_steps is not None:
        changes["max_steps"] = args.max_steps
    settings = replace(settings, stage=replace(settings.stage, **changes))
    model: Any = open_model(args)
    domain = model.experiment.domain
    if not isinstance(domain, ReadsItems):
        raise UsageError(
            f"finetune: the domain {domain.name} reads no items from a file; in Python, "
            "sciLDM.adapt.finetune(model, items, folder) takes what its codec's from_native reads"
        )
    items, cond = domain.read_items(data, model.codec)
    if cond:
        note(f"labels from the file: {', '.join(cond)}")
    finetune(model, items, output, settings, cond=cond, say=note)
    note(f"the model is in {output / 'model'}, its curves in {output / 'denoiser' / 'metrics.csv'}")
    steps("next", {"draw samples": f"scildm sample {output} -n 1000 --output samples.csv"})
