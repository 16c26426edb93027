"""Arrays and plain values as bytes, without pickle: msgpack, an array being a map of its dtype, shape and raw bytes.

The layout is that of openpi's websocket policy server, so that its clients and ours speak with either server. What arrives is
checked before an array is made of it.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack
import numpy as np

KINDS = "biuf"
"""Kinds of numbers that may travel: bool, int, unsigned, float."""


class WireError(ValueError):
    """Bytes that are no message of ours."""


def pack(values: Any) -> bytes:
    """``values``: maps, lists, strings, numbers, bytes and arrays of KINDS."""
    return msgpack.packb(values, default=_encode)


def unpack(data: bytes) -> Any:
    """The inverse of `pack`; arrays are copies. WireError for anything malformed."""
    try:
        return msgpack.unpackb(data, object_hook=_decode, strict_map_key=False)
    except WireError:
        raise
    except Exception as error:  # msgpack raises a dozen kinds
        raise WireError(f"not a message: {type(error).__name__}: {error}") from error


def _encode(value):
    if isinstance(value, np.ndarray) and value.dtype.kind in KINDS:
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic) and value.dtype.kind in KINDS:
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _decode(value):
    if b"__ndarray__" in value:
        try:
            dtype, shape, data = np.dtype(value[b"dtype"]), tuple(value[b"shape"]), value[b"data"]
            sound = dtype.kind in KINDS and all(isinstance(n, int) and n >= 0 for n in shape)
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"a malformed array ({error})") from error
        if not sound or len(data) != math.prod(shape) * dtype.itemsize:
            raise WireError(f"an array of {dtype} {shape} does not have {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(shape).copy()
    if b"__npgeneric__" in value:
        return value.get(b"data")
    return value
