"""What a domain may offer beyond `sciLDM.domain.Domain`. Each is optional: without it that part is left out.

A domain offers a hook by having the method; it inherits nothing for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from sciLDM.domain import Codec

__all__ = [
    "ConditionalEvaluation",
    "ConditionalSampling",
    "Material",
    "ReadsSamples",
    "ReportsSections",
    "ScoresConditions",
    "Section",
    "WritesSamples",
]


@dataclass(frozen=True)
class Section:
    """A piece of a report.

    Attributes:
        title: Heading.
        html: Body; self-contained, and escaped where it quotes data.
        place: `opening` comes before the metrics, `results` after them, `data` after the training curves.
    """

    title: str
    html: str
    place: Literal["opening", "results", "data"] = "results"


@dataclass(frozen=True)
class Material:
    """What there is to report on.

    Attributes:
        run: The run folder.
        samples: Table written by `scildm evaluate`, or None.
        points: Table of requested and realised values, or None.
        evaluation: Content of `evaluation.json`; empty when nothing was evaluated.
        codec: Codec of the trained model.
        reference: Folder written by `Corpus.write_reference`, or None.
    """

    run: Path
    samples: Path | None
    points: Path | None
    evaluation: Mapping[str, Any]
    codec: Codec
    reference: Path | None


@dataclass(frozen=True)
class ConditionalEvaluation:
    """How well samples have the properties that were asked for.

    Attributes:
        rows: One per property: `property`, `mae`, `mae_unconditional`, `ratio`, `spearman`, `validity`,
            `uniqueness`, `samples`, `targets`.
        points: One per sample: `property`, `requested`, `realised`, and what else the domain wants to keep.
        notes: Lines that a strict reader must see.
    """

    rows: Sequence[Mapping[str, Any]]
    points: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


ConditionalSampling = Callable[[int, Mapping[str, Any]], Any]
"""`sample(count, cond)`: native samples of one model at fixed settings; `cond` holds one number, or one per sample, in
the user's units."""


@runtime_checkable
class ReportsSections(Protocol):
    """A domain with pictures and tables of its own."""

    def report_sections(self, material: Material) -> Sequence[Section]:
        """Sections for the report, in reading order."""
        ...


@runtime_checkable
class ScoresConditions(Protocol):
    """A domain that can measure what it asked for."""

    def evaluate_conditional(
        self, sample: ConditionalSampling, codec: Codec, names: Sequence[str] | None, *, per_target: int
    ) -> ConditionalEvaluation:
        """Compare requested with realised values; `names` None takes every property that can be measured."""
        ...


@runtime_checkable
class WritesSamples(Protocol):
    """A domain whose samples are another library's objects, without a `write` of their own."""

    def write_samples(self, samples: Any, path: Path) -> Path:
        """Write native samples; the ending names the format."""
        ...


@runtime_checkable
class ReadsSamples(Protocol):
    """A domain that reads back what its samples wrote."""

    def read_samples(self, path: Path) -> Any:
        """Native samples from a file written by `samples.write(path)`."""
        ...
