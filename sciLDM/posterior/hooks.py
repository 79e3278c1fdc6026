"""What a codec may offer beyond `FieldCodec`. It offers a hook by having the method, and inherits nothing for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.operators import Operator
from sciLDM.posterior.result import Posterior

__all__ = ["HasRegions", "HasTarget", "OperatorSpec", "ReadsObservations", "WritesPosterior"]


@final
@dataclass(frozen=True)
class OperatorSpec:
    """An operator as named on a command line: `thick:factor=4,axis=z`.

    Attributes:
        name: What the domain calls it.
        options: Numbers where they can be read as such, else text.
    """

    name: str
    options: Mapping[str, float | str] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> "OperatorSpec":
        """Read `NAME` or `NAME:KEY=VALUE,KEY=VALUE`.

        Raises:
            ConfigError: Neither of the two, or a key that is given twice.
        """
        name, colon, rest = text.strip().partition(":")
        options: dict[str, float | str] = {}
        for entry in rest.split(",") if colon else []:
            key, equals, value = (part.strip() for part in entry.partition("="))
            if not (key and equals and value) or key in options:
                raise ConfigError(
                    f"operator {text!r}: expected NAME or NAME:KEY=VALUE,KEY=VALUE, got {entry!r}"
                )
            options[key] = _number_or_text(value)
        if not name:
            raise ConfigError(f"operator {text!r}: expected NAME or NAME:KEY=VALUE,KEY=VALUE")
        return OperatorSpec(name, options)


@runtime_checkable
class ReadsObservations(Protocol):
    """A codec that reads observations from a file, for `scildm reconstruct`."""

    def read_observation(self, path: Path, operator_spec: OperatorSpec | None) -> tuple[Any, Operator | None]:
        """`(observed, operator)` as `FieldCodec.task` takes them.

        Args:
            path: What the user named.
            operator_spec: How it was observed; None where the file says it (gaps, coordinates of stations).

        Raises:
            DataError: A file that cannot be read, or holds something else.
            ConfigError: An operator that the domain does not know; names those it does.
        """
        ...


@runtime_checkable
class WritesPosterior(Protocol):
    """A codec that writes what `FieldCodec.deliver` returned."""

    def write_posterior(self, result: Any, folder: Path) -> None:
        """Write mean, standard deviation and samples into an existing folder, in the domain's own formats."""
        ...


@runtime_checkable
class HasRegions(Protocol):
    """A codec that wants its uncertainty calibrated region by region (tissues, sea and land)."""

    def calibration_regions(self, posterior: Posterior) -> Tensor:
        """Integer labels that broadcast to `[case, channel, *grid]`; negative ones are left out."""
        ...


@runtime_checkable
class HasTarget(Protocol):
    """A codec whose autoencoder's input is not simply the field that the decoder should return."""

    def target(self, fields: Any) -> Tensor:
        """What `Autoencoder.decode` should say of these fields, `[batch, channel, *grid]`; NaN where not known."""
        ...


def _number_or_text(text: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text
