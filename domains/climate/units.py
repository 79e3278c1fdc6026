"""Units of observations: equal, trivially convertible (and then said so), or refused."""

import numpy as np

from sciLDM.errors import DataError

__all__ = ["Conversion", "apply", "convert"]

_NAMES = {
    "K": ("k", "kelvin", "degk", "deg_k", "degrees_kelvin"),
    "degC": ("degc", "°c", "c", "celsius", "deg_c", "degrees_celsius", "degree_celsius", "degreec"),
    "Pa": ("pa", "pascal", "pascals"),
    "hPa": ("hpa", "mb", "mbar", "millibar", "millibars"),
    "m": ("m", "metre", "meter", "metres", "meters"),
    "mm": ("mm", "millimetre", "millimeter"),
    "kg m-2 s-1": ("kg m-2 s-1", "kg/m2/s", "kg m**-2 s**-1", "kg/m^2/s", "mm s-1", "mm/s"),
    "mm day-1": ("mm day-1", "mm/day", "mm d-1", "mm/d", "kg m-2 day-1", "kg m-2 d-1"),
    "m s-1": ("m s-1", "m/s", "m s**-1"),
    "1": ("1", "", "fraction", "0-1", "none", "dimensionless"),
    "%": ("%", "percent"),
    "m2 s-2": ("m2 s-2", "m**2 s**-2", "m^2/s^2", "m2/s2"),
}
_FACTORS = {
    ("hPa", "Pa"): 100.0,
    ("mm", "m"): 1e-3,
    ("mm day-1", "kg m-2 s-1"): 1 / 86400.0,
    ("%", "1"): 0.01,
}

Conversion = tuple[float, float]
"""`(factor, offset)`: value in the model's units = factor * value + offset."""


def convert(name: str, given: str | None, wanted: str | None) -> tuple[Conversion, str | None]:
    """How to bring values to the model's units, and a note when that is not simply taking them.

    Args:
        name: Variable, for messages.
        given: Units of the observations; None where they do not say.
        wanted: The model's; None where the training data did not say.

    Raises:
        DataError: Units that are not the model's and that no trivial conversion leads to.
    """
    if given is None or wanted is None:
        missing = "the observations have" if given is None else "the model's data had"
        return (1.0, 0.0), f"{name}: {missing} no units; taken as {wanted or given or 'the same'}"
    a, b = _canonical(given), _canonical(wanted)
    if a == b:
        return (1.0, 0.0), None
    told = f"{name}: converted from {given} to {wanted}"
    if (a, b) == ("degC", "K"):
        return (1.0, 273.15), told
    if (a, b) == ("K", "degC"):
        return (1.0, -273.15), told
    if (a, b) in _FACTORS:
        return (_FACTORS[a, b], 0.0), told
    if (b, a) in _FACTORS:
        return (1 / _FACTORS[b, a], 0.0), told
    raise DataError(
        f"{name}: expected units {wanted!r} (the model's), got {given!r}; convert the values and set attrs['units']"
    )


def _canonical(units: str) -> str:
    text = " ".join(str(units).split())
    # Case matters only in "K" against nothing else here; names are matched without it.
    return next((name for name, forms in _NAMES.items() if text.lower() in forms), text)


def apply(values: np.ndarray, conversion: Conversion) -> np.ndarray:
    """Converted values."""
    factor, offset = conversion
    return values if (factor, offset) == (1.0, 0.0) else values * factor + offset
