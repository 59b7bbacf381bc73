"""Tensors as Flower carries them: the .npy file format, read strictly and without a copy.

`numpy.load` evaluates the header as a Python literal and believes its sizes. Tensors come from
strangers, so this reader takes the one header that numpy writes, byte for byte, and refuses all
else; pickled objects among it.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, version 1
(numpy needs a later one only for headers over 64 KiB, which no plain array has).
"""

import math
import re
import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Protocol

import numpy as np

from fedchain_proto.digest import MAX_DIMS, Array
from fedchain_proto.errors import EvidenceError
from fedchain_proto.names import printable

STYPE = "numpy.ndarray"
MAX_BYTES = 1 << 40  # of one tensor; far over any memory, far under what overflows
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '([<>|][fiub][1-8])', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,13}, )*[0-9]{0,13},?)\), \} *\n"
)


class FlowerArray(Protocol):
    """What a `flwr.app.Array` shows; named here so that proto needs no flwr."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


def read_arrays(record: Mapping[str, FlowerArray]) -> dict[str, Array]:
    """View a Flower ArrayRecord's tensors in place, read-only.

    Args:
        record: Names to arrays; nothing in it is trusted.

    Raises:
        EvidenceError: A tensor is not a plain numpy array, or is not what it says it is.
    """
    return {name: _read_one(name, array) for name, array in record.items()}


def read_npy(data: bytes) -> Array:
    """View one .npy file's array, shape as written, native byte order.

    Args:
        data: The whole file; big-endian elements are converted, all others stay where they are.

    Raises:
        EvidenceError: It is not exactly what numpy writes for a plain array of numbers.
    """
    start, header = _split(data)
    match = _HEADER.fullmatch(header)
    if match is None:
        raise EvidenceError("its header is not one that numpy writes for a plain array of numbers")
    descr, fortran, dims = (part.decode("ascii") for part in match.groups())
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise EvidenceError(f"its dtype {descr} does not exist") from None
    shape = tuple(int(dim) for dim in dims.split(",") if dim.strip())
    if len(shape) > MAX_DIMS:
        raise EvidenceError(f"it has {len(shape)} dimensions, more than {MAX_DIMS}")
    # numpy refuses dimensions whose non-zero part overflows even when another one is zero.
    if math.prod(dim or 1 for dim in shape) * dtype.itemsize > MAX_BYTES:
        raise EvidenceError(f"it claims more than {MAX_BYTES} bytes")
    size = math.prod(shape) * dtype.itemsize
    if len(data) - start != size:
        raise EvidenceError(f"it holds {len(data) - start} bytes where its shape needs {size}")
    flat = np.frombuffer(data, dtype, offset=start) if size else np.empty(0, dtype)
    array = flat.reshape(shape, order="F" if fortran == "True" else "C")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def write_npy(array: Array) -> bytes:
    """Write what `numpy.save` writes for a C-ordered array, with one copy instead of three."""
    buffer = BytesIO()
    fields: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    np.lib.format.write_array_header_1_0(buffer, fields)
    # reshape before ascontiguousarray, which would turn a 0-dim array into one of shape (1,).
    flat = np.ascontiguousarray(array.reshape(-1))
    return b"".join((buffer.getvalue(), flat.view(np.uint8).data))


def _read_one(name: str, array: FlowerArray) -> Array:
    """Read one tensor and compare it with what stands beside it."""
    label = f"tensor {printable(name, 40)!r}"
    if array.stype != STYPE:
        raise EvidenceError(f"{label}: serialised as {printable(array.stype, 40)!r}, not {STYPE!r}")
    try:
        read = read_npy(array.data)
    except EvidenceError as error:
        raise EvidenceError(f"{label}: {error}") from None
    if tuple(array.shape) != read.shape:
        raise EvidenceError(f"{label}: says shape {tuple(array.shape)!s:.80}, holds {read.shape}")
    # numpy spells a foreign byte order in front ('>f4'); the element type is what must agree.
    if array.dtype not in (str(read.dtype), str(read.dtype.newbyteorder("S"))):
        raise EvidenceError(
            f"{label}: says dtype {printable(array.dtype, 20)!r}, holds {read.dtype}"
        )
    return read


def _split(data: bytes) -> tuple[int, bytes]:
    """Find where a file's elements start; return that and the header before them."""
    if data[:8] != _MAGIC or len(data) < 10:
        raise EvidenceError("it is not a .npy file of version 1")
    start = 10 + struct.unpack_from("<H", data, 8)[0]
    return start, data[10:start]
