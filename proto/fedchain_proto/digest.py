"""Canonical digests: the one way a model or an update becomes 32 bytes.

Clients, server, ledger and audit call this module and hash no tensor themselves, so equal weights
have equal names everywhere. A digest covers every tensor's name, dtype, shape and raw bytes, and
one tensor verifies alone against it. Pure: no torch, no IO, no clock.
Golden vectors: tests/vectors/numbers.json.

    chunk leaf   = H(0x00 || 1 MiB of the tensor's contiguous little-endian bytes)
    tensor root  = RFC 9162 tree over its chunks
    tensor leaf  = H(0x00 || "fedchain/tensor/v1\\0" || u32 name length || name || dtype[8]
                     || u32 ndim || u64 shape[ndim] || u64 byte count || u32 chunk size
                     || tensor root)
    model digest = H("fedchain/model/v1\\0" || u32 tensor count
                     || RFC 9162 root over the tensor leaves, sorted by name bytes)
"""

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fedchain_proto import merkle
from fedchain_proto.errors import EvidenceError, RuleError
from fedchain_proto.hashing import sha256
from fedchain_proto.names import is_text, printable

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, Array]
Structure = tuple[tuple[str, str, tuple[int, ...]], ...]

CHUNK_BYTES = 1 << 20
MAX_DIMS = 32  # numpy 1.x carries no more
MAX_BYTES = 1 << 62
MAX_NAME_BYTES = 255

# safetensors' names; BF16 is absent because numpy has no such dtype.
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {(dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items()}
_TENSOR_DOMAIN = b"fedchain/tensor/v1\0"
_MODEL_DOMAIN = b"fedchain/model/v1\0"
_RUN_BYTES = 4 * CHUNK_BYTES  # what one task of a thread hashes at least: 3 ms


def tensor_name_bytes(name: str) -> bytes:
    """Encode a tensor's name, which is what the canonical order sorts by.

    Raises:
        RuleError: Not 1 to 255 bytes of UTF-8, hides characters (names.py), or is the key
            under which safetensors keeps its metadata.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        encoded = b""
    if not 1 <= len(encoded) <= MAX_NAME_BYTES:
        raise RuleError(
            f"tensor name is not 1 to {MAX_NAME_BYTES} bytes of UTF-8: {printable(name, 40)!r}",
            code="tensor-name",
            claim="C1",
        )
    if name == "__metadata__" or not is_text(name, MAX_NAME_BYTES):
        raise RuleError(
            f"tensor name is reserved or hides characters: {printable(name, 40)!r}",
            code="tensor-name",
            claim="C1",
        )
    return encoded


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Name a dtype from the closed list, whatever its byte order.

    Raises:
        RuleError: It is not in the list.
    """
    name = _NAMES.get((dtype.kind, dtype.itemsize))
    if name is None:
        raise RuleError(
            f"dtype {dtype} has no place in a model; known are {', '.join(DTYPES)}",
            code="tensor-dtype",
            claim="C1",
        )
    return name


def structure(arrays: Arrays) -> Structure:
    """List (name, dtype name, shape) of every tensor, sorted by name bytes.

    Raises:
        RuleError: A name, dtype or shape is not allowed.
    """
    rows: list[tuple[str, str, tuple[int, ...]]] = []
    for name in sorted(arrays, key=tensor_name_bytes):
        shape, dtype = arrays[name].shape, arrays[name].dtype
        if not shape_fits(shape, dtype.itemsize):
            raise RuleError(
                f"tensor {name!r} has over {MAX_DIMS} dimensions, or 2**62 bytes but for a zero",
                code="tensor-shape",
                claim="C1",
            )
        rows.append((name, dtype_name(dtype), shape))
    return tuple(rows)


def shape_fits(shape: Sequence[int], itemsize: int) -> bool:
    """Whether every numpy can hold an array of this shape.

    numpy refuses dimensions whose product overflows even where another one is zero.
    """
    return len(shape) <= MAX_DIMS and itemsize * math.prod(dim or 1 for dim in shape) < MAX_BYTES


def model_digest(arrays: Arrays, *, threads: int = 1) -> bytes:
    """Hash a model; 32 bytes that do not depend on memory layout, key order or `threads`.

    Contiguous little-endian tensors are hashed where they lie; of any other at most one chunk a
    thread is copied at a time.

    Args:
        arrays: Any shapes, 0-dim and zero-size included; dtypes of `DTYPES`.
        threads: Python threads that hash at once (hashlib releases the GIL).

    Raises:
        RuleError: A name, dtype or shape is not allowed.
    """
    return _model(tensor_leaves(arrays, threads=threads))


def tensor_leaf(name: str, array: Array) -> bytes:
    """Hash one tensor into the 32-byte leaf that stands for it in the model's tree."""
    return tensor_leaves({name: array})[0]


def tensor_leaves(arrays: Arrays, *, threads: int = 1) -> list[bytes]:
    """Hash every tensor into its leaf, in the order of `structure`."""
    rows = structure(arrays)
    chunks = [(read, i) for name, _, _ in rows for read, i in _chunks(arrays[name])]
    hashes = iter(_hash_chunks(chunks, threads))
    leaves = []
    for row in rows:
        array = arrays[row[0]]
        own = [next(hashes) for _ in range(-(-array.nbytes // CHUNK_BYTES))]
        leaves.append(_tensor_leaf(row, array.nbytes, merkle.root(own)))
    return leaves


def tensor_path(arrays: Arrays, name: str) -> merkle.Path:
    """Build the path with which the tensor `name` verifies alone against the model digest."""
    names = [row[0] for row in structure(arrays)]
    return merkle.path(tensor_leaves(arrays), names.index(name))


def verify_tensor(name: str, array: Array, proof: merkle.Path, digest: bytes) -> None:
    """Check one tensor against a model digest.

    Raises:
        EvidenceError: The model of that digest has no such tensor at `proof.leaf_index`.
    """
    root = merkle.root_from_path(tensor_leaf(name, array), proof)
    if _model_from_root(proof.tree_size, root) != digest:
        raise EvidenceError(f"tensor {name!r} does not belong to the model with this digest")


def _tensor_leaf(
    row: tuple[str, str, tuple[int, ...]], byte_count: int, tensor_root: bytes
) -> bytes:
    name, dtype, shape = row
    encoded = tensor_name_bytes(name)
    head = struct.pack(f"<I{len(encoded)}s8s", len(encoded), encoded, dtype.encode())
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    tail = struct.pack("<QI", byte_count, CHUNK_BYTES)
    return merkle.leaf_hash(b"".join((_TENSOR_DOMAIN, head, dims, tail, tensor_root)))


def _model(leaves: Sequence[bytes]) -> bytes:
    return _model_from_root(len(leaves), merkle.root(leaves))


def _model_from_root(tensor_count: int, root: bytes) -> bytes:
    if tensor_count >= 1 << 32:
        raise EvidenceError(f"a model has no {tensor_count} tensors")
    return sha256(_MODEL_DOMAIN, struct.pack("<I", tensor_count), root)


_ChunkReader = Callable[[int], memoryview]


def _chunks(array: Array) -> Iterator[tuple[_ChunkReader, int]]:
    """Yield (reader, i) for each chunk: reader(i) gives chunk i's little-endian bytes, C order."""
    little = array.dtype.newbyteorder("<")
    elements = CHUNK_BYTES // array.itemsize
    # reshape(-1) of a contiguous array is a view; flatiter copies only the slice it is asked for.
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat

    def read(i: int) -> memoryview:
        part = np.asarray(flat[i * elements : (i + 1) * elements]).astype(little, copy=False)
        return part.view(np.uint8).data

    for i in range(-(-array.nbytes // CHUNK_BYTES)):
        yield read, i


def _hash_chunks(chunks: Sequence[tuple[_ChunkReader, int]], threads: int) -> list[bytes]:
    def run(part: Sequence[tuple[_ChunkReader, int]]) -> list[bytes]:
        return [merkle.leaf_hash(read(i)) for read, i in part]

    step = _RUN_BYTES // CHUNK_BYTES
    if threads <= 1 or len(chunks) <= step:
        return run(chunks)
    parts = [chunks[i : i + step] for i in range(0, len(chunks), step)]
    with ThreadPoolExecutor(threads) as pool:
        return [digest for hashes in pool.map(run, parts) for digest in hashes]
