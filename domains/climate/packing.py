"""Arrays and CF attributes as plain JSON, given back bit by bit.

The codec's state travels in the model's card. Climatologies and coordinates go into it as zlib-compressed base64 rather
than into buffers of the autoencoder: units must be known before (and without) any network, a network may be borrowed by
another data set, and the arrays are small beside the weights (a 2.5 degree global field with two harmonics: 0.2 MB).
"""

import base64
import zlib
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from sciLDM.errors import DataError

__all__ = ["pack", "pack_attrs", "pack_variable", "unpack", "unpack_attrs", "unpack_variable"]

_ENCODING = ("_FillValue", "missing_value", "dtype", "scale_factor", "add_offset", "units", "calendar", "zlib",
             "complevel", "shuffle")  # fmt: skip
"""What of an encoding is about values and still holds for arrays of another shape (chunk sizes do not)."""


def pack(array: np.ndarray) -> dict[str, Any]:
    """Dtype, shape and values of an array of numbers, booleans, dates or text.

    Raises:
        DataError: An array of Python objects other than text.
    """
    array = np.asarray(array)
    if array.dtype.kind in "OUST":
        if not all(isinstance(value, str) for value in array.ravel().tolist()):
            raise DataError(f"cannot store an array of {array.dtype} (only numbers, dates and text)")
        return {"dtype": "text", "shape": list(array.shape), "data": [str(v) for v in array.ravel()]}
    # Little-endian whatever the file was, so that equal data give equal text.
    plain = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    data = base64.b64encode(zlib.compress(plain.tobytes(), 6)).decode("ascii")
    return {"dtype": plain.dtype.str, "shape": list(array.shape), "data": data}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    """The array that `pack` was given (in the machine's own byte order)."""
    if packed["dtype"] == "text":
        return np.array(packed["data"], dtype=object).reshape(packed["shape"])
    raw = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), dtype=np.dtype(packed["dtype"]))
    return raw.astype(raw.dtype.newbyteorder("=")).reshape(packed["shape"])


def pack_attrs(attrs: Mapping[Hashable, Any]) -> dict[str, Any]:
    """Attributes with their types: `float32` stays `float32`, an array stays an array. Unprintable ones become text."""
    return {str(name): _pack_value(value) for name, value in attrs.items()}


def unpack_attrs(packed: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that `pack_attrs` was given."""
    return {name: _unpack_value(value) for name, value in packed.items()}


def _pack_value(value: Any) -> Any:
    if isinstance(value, str | bool | int):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return {"scalar": isinstance(value, np.generic), **pack(np.asarray(value))}
    if isinstance(value, float):
        # JSON knows no NaN; a list marks the Python float.
        return {"float": value.hex()}
    if isinstance(value, np.dtype | type):
        return {"dtype_name": np.dtype(value).str}
    if isinstance(value, list | tuple):
        return {"list": [_pack_value(v) for v in value]}
    return str(value)


def _unpack_value(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "float" in value:
        return float.fromhex(value["float"])
    if "dtype_name" in value:
        return np.dtype(value["dtype_name"])
    if "list" in value:
        return [_unpack_value(v) for v in value["list"]]
    array = unpack(value)
    return array[()] if value["scalar"] else array


def pack_variable(variable: xr.Variable, *, values: bool = True) -> dict[str, Any]:
    """Dimensions, attributes, encoding and (with `values`) the values of a variable."""
    encoding = {k: v for k, v in variable.encoding.items() if k in _ENCODING and v is not None}
    if "dtype" in encoding:
        encoding["dtype"] = _storable(encoding["dtype"])
    packed = {
        "dims": [str(d) for d in variable.dims],
        "dtype": variable.dtype.str,
        "attrs": pack_attrs(variable.attrs),
        "encoding": pack_attrs({k: v for k, v in encoding.items() if v is not None}),
    }
    return {**packed, "values": pack(variable.values)} if values else packed


def unpack_variable(packed: Mapping[str, Any]) -> xr.Variable:
    """A variable that `pack_variable` stored with its values."""
    return xr.Variable(
        packed["dims"],
        unpack(packed["values"]),
        unpack_attrs(packed["attrs"]),
        unpack_attrs(packed["encoding"]),
    )


def _storable(dtype: Any) -> np.dtype | None:
    try:
        found = np.dtype(dtype)
    except TypeError:
        return None
    return found if found.kind in "biuf" else None
