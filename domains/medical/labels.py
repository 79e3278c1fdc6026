"""What volumes are labelled with: columns of a table as numbers or classes, spacing, size and place on the grid."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pandas as pd

from sciLDM.conditions import Category, Condition, FieldMap, Scalar, Vector
from sciLDM.errors import ConfigError, DataError

__all__ = ["LABEL_MAP", "POSITION", "SHAPE", "SPACING", "Column", "columns_of", "declared", "map_of"]

SPACING, SHAPE, POSITION, LABEL_MAP = "spacing", "shape", "position", "labels"
"""Conditions that every model has, or may have, whatever the table says; columns may not be called so."""


@final
@dataclass(frozen=True)
class Column:
    """A column that samples can be asked for.

    Attributes:
        name: As in the table.
        classes: Names of the classes, or empty for a number.
        mean: Mean over the training volumes, for a number.
        std: Standard deviation likewise.
    """

    name: str
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "Column":
        """From plain JSON."""
        return Column(**{**content, "classes": tuple(content["classes"])})

    def encode(self, values: Sequence[Any]) -> np.ndarray:
        """Labels for training: NaN, or -1 for a class, where missing or unknown."""
        if not self.classes:
            numbers = pd.to_numeric(pd.Series(list(values), dtype=object), errors="coerce")
            return np.asarray(numbers, dtype=np.float32)
        index = {name: k for k, name in enumerate(self.classes)}
        return np.array([-1 if _missing(v) else index.get(str(v), -1) for v in values], dtype=np.int64)

    def wanted(self, value: Any) -> Any:
        """A request as a number; classes may be named.

        Raises:
            ConfigError: No such class.
        """
        if not self.classes or not isinstance(value, str):
            return value
        if value not in self.classes:
            raise ConfigError(
                f"condition {self.name!r}: expected one of {', '.join(self.classes)}, got {value!r}"
            )
        return self.classes.index(value)


def columns_of(rows: Sequence[Mapping[str, Any]], train: np.ndarray, names: Sequence[str]) -> list[Column]:
    """Declare the columns called `names`: numbers if all their values are numbers, else classes.

    Raises:
        DataError: No such column, no value in the training split, or nothing to learn from it.
    """
    present = sorted({k for row in rows for k in row})
    found = []
    for name in names:
        if name in (SPACING, SHAPE, POSITION, LABEL_MAP):
            raise ConfigError(
                f"conditions: every model has its own {name!r}; leave it out, or rename the column"
            )
        if name not in present:
            raise DataError(
                f"cannot condition on {name!r}: expected a column of the table ({', '.join(present) or 'it has none'})"
            )
        values = [rows[k].get(name) for k in train]
        known = [v for v in values if not _missing(v)]
        if not known:
            raise DataError(
                f"column {name!r} has no value in the training split; leave it out of `conditions`"
            )
        numbers = pd.to_numeric(pd.Series(known, dtype=object), errors="coerce")
        if numbers.notna().all() and not any(isinstance(v, bool) for v in known):
            spread = float(numbers.std(ddof=0))
            if spread < 1e-8 * max(1.0, abs(float(numbers.mean()))):
                raise DataError(f"column {name!r} is constant ({known[0]}): nothing to learn; leave it out")
            found.append(Column(name, (), float(numbers.mean()), spread))
        else:
            classes = tuple(sorted({str(v) for v in known}))
            if len(classes) > max(2, len(known) // 2):
                raise DataError(
                    f"column {name!r} has {len(classes)} different values in {len(known)} volumes: it names "
                    "volumes rather than classes; leave it out of `conditions`"
                )
            found.append(Column(name, classes))
    return found


def declared(
    columns: Sequence[Column], *, dropout: float, patches: bool, classes: int
) -> tuple[Condition, ...]:
    """All conditions of a model, in a fixed order.

    Args:
        columns: Those of the table.
        dropout: Share of training volumes whose label is hidden.
        patches: Whether the model sees parts of volumes, and is told which.
        classes: Classes of the label map; 0 for a model without one.
    """
    found: list[Condition] = [Vector(SPACING, dropout=0.0, size=3), Vector(SHAPE, dropout=0.0, size=3)]
    if patches:
        found.append(Vector(POSITION, dropout=max(dropout, 0.1), size=6))
    for column in columns:
        if column.classes:
            found.append(Category(column.name, dropout=dropout, classes=len(column.classes)))
        else:
            found.append(Scalar(column.name, dropout=dropout, mean=column.mean, std=column.std))
    if classes:
        found.append(FieldMap(LABEL_MAP, dropout=0.5, channels=classes))
    return tuple(found)


def map_of(label: np.ndarray, classes: int, factor: Sequence[int]) -> np.ndarray:
    """Share of each class in every latent cell, `[class, *latent]`, from class numbers on the grid; NaN without any."""
    coarse = [n // f for n, f in zip(label.shape, factor, strict=True)]
    if not label.size:
        raise DataError("an empty segmentation has no map")
    split = [size for n, f in zip(coarse, factor, strict=True) for size in (n, f)]
    shares = [(label == c).reshape(split).mean(axis=(1, 3, 5)) for c in range(classes)]
    return np.stack(shares).astype(np.float32)


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or value == "" or (isinstance(value, float) and math.isnan(value))
