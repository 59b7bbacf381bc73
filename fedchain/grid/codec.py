"""RecordDicts as bytes: how messages cross between the server's process and a worker.

A record dictionary becomes a JSON head, which names records, keys, types and shapes, and the
buffers that the head leaves out: each array's data and each ``bytes`` value, in the order in
which the head meets them (a ``bytes`` value is ``null`` there). Encoding copies no array.

What a worker sends was written by a client's code. So nothing is ever unpickled, every part is
checked for type and bounds, and an array must be the ``.npy`` of exactly the dtype and shape
that it claims, so that ``Array.numpy()`` cannot fail or allocate for a lie later.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedchain_proto.errors import EvidenceError

_NPY = "numpy.ndarray"  # Flower's name for an array that is stored as .npy
_NPY_HEADER_BYTES = 4096
_MAX_DIMENSIONS = 64
_INTEGERS = range(-(2**63), 2**64)  # what Flower's own wire can carry


class Packed(NamedTuple):
    """An encoded record dictionary: JSON head (UTF-8) and the buffers that it refers to."""

    head: bytes
    buffers: tuple[bytes, ...]


def pack(records: RecordDict) -> Packed:
    """Encode; arrays and bytes values are referred to, not copied.

    Raises:
        EvidenceError: A record holds what Flower's types do not allow.
    """
    if not isinstance(records, RecordDict):
        raise EvidenceError(f"not a RecordDict but {type(records).__name__}")
    buffers: list[bytes] = []
    head = [[name, *_pack_record(record, buffers)] for name, record in records.items()]
    try:
        return Packed(json.dumps(head, separators=(",", ":")).encode(), tuple(buffers))
    except (TypeError, ValueError, RecursionError) as error:
        raise EvidenceError(f"records that cannot be encoded: {error}") from error


def _pack_record(record: object, buffers: list[bytes]) -> tuple[str, list[object]]:
    if isinstance(record, ArrayRecord):
        arrays: list[object] = []
        for name, array in record.items():
            arrays.append([name, array.dtype, list(array.shape), array.stype])
            buffers.append(_bytes(array.data))
        return "arrays", arrays
    if isinstance(record, MetricRecord):
        return "metrics", [[key, _pack_value(value, buffers)] for key, value in record.items()]
    if isinstance(record, ConfigRecord):
        return "config", [[key, _pack_value(value, buffers)] for key, value in record.items()]
    raise EvidenceError(f"not a record but {type(record).__name__}")


def _pack_value(value: object, buffers: list[bytes]) -> object:
    if isinstance(value, list):
        return [_pack_value(item, buffers) for item in value]
    if isinstance(value, bytes):
        buffers.append(value)
        return None
    return value


def _bytes(data: object) -> bytes:
    if not isinstance(data, bytes):
        raise EvidenceError(f"array data must be bytes, not {type(data).__name__}")
    return data


def unpack(packed: Packed) -> RecordDict:
    """Decode and check; the arrays share their memory with `packed`.

    Raises:
        EvidenceError: Anything but what `pack` writes.
    """
    try:
        head = json.loads(packed.head)
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"the records' head is not JSON: {error}") from error
    buffers = iter(packed.buffers)
    records = RecordDict()
    for name, kind, items in _entries(head, (str, str, list)):
        if name in records:
            raise EvidenceError(f"record {name!r} comes twice")
        if kind not in _READERS:
            raise EvidenceError(f"unknown kind of record {kind[:20]!r}")
        records[name] = _READERS[kind](items, buffers)
    if next(buffers, None) is not None:
        raise EvidenceError("buffers that no record refers to")
    return records


def _entries(items: object, kinds: tuple[type, ...]) -> Iterator[list[Any]]:
    """Walk a list of lists whose members have the given types, one by one."""
    if not isinstance(items, list):
        raise EvidenceError("the records' head has the wrong shape")
    for item in items:
        fits = isinstance(item, list) and len(item) == len(kinds)
        if not fits or not all(map(isinstance, item, kinds)):
            raise EvidenceError("the records' head has the wrong shape")
        yield item


def _take(buffers: Iterator[bytes]) -> bytes:
    taken = next(buffers, None)
    if taken is None:
        raise EvidenceError("fewer buffers than the records refer to")
    return taken


def _read_arrays(items: object, buffers: Iterator[bytes]) -> ArrayRecord:
    arrays = ArrayRecord()
    for name, dtype, shape, stype in _entries(items, (str, str, list, str)):
        if name in arrays:
            raise EvidenceError(f"array {name!r} comes twice")
        data = _take(buffers)
        sizes = _shape(shape)
        if stype == _NPY:
            _check_npy(dtype, sizes, data)
        arrays[name] = Array(dtype=dtype, shape=sizes, stype=stype, data=data)
    return arrays


def _shape(shape: list[object]) -> tuple[int, ...]:
    sizes = tuple(n for n in shape if type(n) is int and 0 <= n < 2**63)
    if len(sizes) != len(shape) or len(sizes) > _MAX_DIMENSIONS:
        raise EvidenceError("an array's shape is no list of sizes")
    return sizes


def _check_npy(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    """Refuse an array whose .npy header is not of this dtype, shape and length."""
    if len(data) < 12:
        raise EvidenceError("array data is no .npy")
    wide = data[6] > 1  # version 1 has a 2-byte header length, 2 and 3 have 4 bytes
    start = 12 if wide else 10
    length = int.from_bytes(data[8:start], "little")
    if length > _NPY_HEADER_BYTES or len(data) < start + length:
        raise EvidenceError("array data is no .npy, or its header is too long")
    found_dtype, found_shape, item_bytes = _npy_header(data[: start + length])
    if (found_dtype, found_shape) != (dtype, shape):
        raise EvidenceError(f"array data is {found_dtype}{found_shape}, not {dtype}{shape}")
    if len(data) - start - length != math.prod(shape) * item_bytes:
        raise EvidenceError("array data has the wrong length for its shape")


@lru_cache(maxsize=4096)  # A model's layers have the same few headers in every reply.
def _npy_header(header: bytes) -> tuple[str, tuple[int, ...], int]:
    """Read dtype name, shape and item size (bytes) from a whole .npy header."""
    stream = BytesIO(header)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(stream)
        shape, _, dtype = readers[version](stream)
    except Exception as error:  # numpy tokenizes a hostile header: anything comes
        raise EvidenceError(f"array data is no .npy: {error}") from error
    if dtype.hasobject:
        raise EvidenceError("array data holds Python objects")
    return str(dtype), shape, dtype.itemsize


def _read_metrics(items: object, buffers: Iterator[bytes]) -> MetricRecord:
    record = MetricRecord()
    _read_values(items, buffers, record)
    return record


def _read_config(items: object, buffers: Iterator[bytes]) -> ConfigRecord:
    record = ConfigRecord()
    _read_values(items, buffers, record)
    return record


def _read_values(
    items: object, buffers: Iterator[bytes], record: MetricRecord | ConfigRecord
) -> None:
    for key, value in _entries(items, (str, object)):
        if key in record:
            raise EvidenceError(f"key {key!r} comes twice")
        try:
            record[key] = _read_value(value, buffers)
        except TypeError as error:  # Flower's own check of a value's type
            raise EvidenceError(f"key {key!r} holds what Flower does not allow") from error


def _read_value(value: Any, buffers: Iterator[bytes]) -> Any:
    if value is None:
        return _take(buffers)
    if isinstance(value, list):
        if any(isinstance(item, list) for item in value):
            raise EvidenceError("a list within a list")
        return [_read_value(item, buffers) for item in value]
    if isinstance(value, int) and value not in _INTEGERS:
        raise EvidenceError("an integer of more than 64 bits")
    return value


_READERS: dict[
    object, Callable[[object, Iterator[bytes]], ArrayRecord | MetricRecord | ConfigRecord]
] = {"arrays": _read_arrays, "metrics": _read_metrics, "config": _read_config}
