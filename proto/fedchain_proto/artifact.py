"""Artifacts: models and updates as safetensors files, named by their model digest.

A file is written whole or not at all (temporary file, fsync, rename) and equal arrays give equal
files. Reading is strict and lazy: the header is checked against every lie that a file from
outside can tell, the tensors are memory-mapped and never copied. This module never trusts a
file's name: only `digest` says what a file holds.
Format: u64 header length, JSON header padded with spaces to 8 bytes, tensor bytes without gaps
(https://github.com/huggingface/safetensors). Golden vectors: tests/vectors/numbers.json.
"""

import json
import math
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from fedchain_proto.digest import (
    DTYPES,
    MAX_BYTES,
    Array,
    Arrays,
    Structure,
    model_digest,
    shape_fits,
    structure,
    tensor_name_bytes,
)
from fedchain_proto.errors import EvidenceError, RuleError, UnavailableError, UsageError
from fedchain_proto.hashing import DIGEST_SIZE, digest_text, short
from fedchain_proto.names import printable
from fedchain_proto.strictjson import members, strict_json, text

MAX_HEADER_BYTES = 8 << 20
_ALIGNMENT = 8


class _Tensor(NamedTuple):
    """Where one tensor lies: dtype name, shape, and byte range in the data section."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class ArtifactFile:
    """One artifact, memory-mapped and read-only. A context manager; also a TensorSource."""

    def __init__(self, name: str, data: Array, tensors: Mapping[str, _Tensor]) -> None:
        self._name = name
        self._data: Array | None = data
        self._tensors = tensors

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map `path` and check its header; the tensors' bytes are not looked at.

        Raises:
            EvidenceError: It is not a well-formed artifact.
            UnavailableError: It is not there or cannot be read.
        """
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < 8:
                    raise EvidenceError(
                        f"artifact {path.name}: {size} bytes is no safetensors file"
                    )
                mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UnavailableError(f"artifact {path}: {error.strerror or error}") from error
        data = np.frombuffer(mapped, dtype=np.uint8)
        try:
            start, tensors = _parse(data)
        except EvidenceError as error:
            raise EvidenceError(f"artifact {path.name}: {error}") from error
        return cls(path.name, data[start:], tensors)

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names, sorted by their UTF-8 bytes."""
        return tuple(self._tensors)

    @property
    def structure(self) -> Structure:
        """(name, dtype name, shape) of every tensor, sorted by name bytes."""
        return tuple((name, t.dtype, t.shape) for name, t in self._tensors.items())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._tensors[name].shape

    def flat(self, name: str) -> Array:
        """View one tensor's elements in C order: read-only, shape (n,), nothing is copied.

        The view keeps the mapping alive, also after `close`.
        """
        if self._data is None:
            raise UsageError(f"artifact {self._name} is closed")
        tensor = self._tensors[name]
        return self._data[tensor.begin : tensor.end].view(DTYPES[tensor.dtype])

    def arrays(self) -> dict[str, Array]:
        """View every tensor in its shape; read-only, nothing is copied."""
        return {name: self.flat(name).reshape(t.shape) for name, t in self._tensors.items()}

    def digest(self, threads: int = 1) -> bytes:
        """Compute the model digest of what the file holds."""
        return model_digest(self.arrays(), threads=threads)

    def close(self) -> None:
        """Let go of the mapping; it ends when the last view of it does."""
        self._data = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


ArtifactReader = Callable[[bytes], ArtifactFile]
"""Digest -> opened artifact, not verified; raises UnavailableError when it is missing."""


def write_artifact(path: Path, arrays: Arrays) -> None:
    """Write `arrays` to `path`, atomically and durably; the folder must exist.

    The file is readable by its owner alone: an update leaks data.

    Raises:
        RuleError: A name, dtype or shape is not allowed, or the header would be over 8 MiB.
        OSError: The disk refuses (full, not writable). Nothing is left behind.
    """
    header, order = _header(arrays)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(struct.pack("<Q", len(header)))
            file.write(header)
            for name in order:
                array = arrays[name]
                little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
                file.write(little.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _fsync_folder(path.parent)


class ArtifactFolder:
    """A folder of artifacts, each under the hex of its model digest: ab/cdef….safetensors."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: bytes) -> Path:
        """Where the artifact with this digest lies, or would."""
        if len(digest) != DIGEST_SIZE:
            raise UsageError(f"a model digest has {DIGEST_SIZE} bytes, not {len(digest)}")
        name = digest.hex()
        return self.root / name[:2] / f"{name[2:]}.safetensors"

    def has(self, digest: bytes) -> bool:
        """Whether a file stands under this digest; what it holds is not looked at."""
        return self.path(digest).is_file()

    def put(self, arrays: Arrays, digest: bytes | None = None, *, threads: int = 1) -> bytes:
        """Keep `arrays`; what is there already is not written again.

        Args:
            arrays: As for `model_digest`.
            digest: Their model digest, if the caller has just computed it; else it is computed.
            threads: For the digest.

        Returns:
            The model digest, under which `open` finds them.
        """
        if digest is None:
            digest = model_digest(arrays, threads=threads)
        path = self.path(digest)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_artifact(path, arrays)
        return digest

    def open(self, digest: bytes, verify: bool = True) -> ArtifactFile:
        """Open an artifact, by default only after its digest was recomputed.

        Raises:
            UnavailableError: It is missing.
            EvidenceError: The file is malformed, or (`verify`) holds something else.
        """
        path = self.path(digest)
        if not path.is_file():
            raise UnavailableError(f"artifact missing: {digest_text(digest)}")
        artifact = ArtifactFile.open(path)
        if verify and artifact.digest() != digest:
            artifact.close()
            raise EvidenceError(f"artifact {short(digest)} holds other weights than its name says")
        return artifact

    def open_unverified(self, digest: bytes) -> ArtifactFile:
        """Be an `ArtifactReader`: the caller checks the digest itself."""
        return self.open(digest, verify=False)


def _fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _header(arrays: Arrays) -> tuple[bytes, list[str]]:
    """Build the JSON header and the order of the tensors' bytes.

    Widest dtype first, then by name: every tensor is aligned to its own size without gaps.
    """
    rows = sorted(
        structure(arrays), key=lambda row: (-DTYPES[row[1]].itemsize, tensor_name_bytes(row[0]))
    )
    entries: dict[str, dict[str, object]] = {}
    begin = 0
    for name, dtype, shape in rows:
        end = begin + arrays[name].nbytes
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
        begin = end
    header = json.dumps(entries, separators=(",", ":")).encode("ascii")
    header += b" " * (-len(header) % _ALIGNMENT)
    if len(header) > MAX_HEADER_BYTES:
        raise RuleError(
            f"too many tensors: the header has {len(header)} bytes, over {MAX_HEADER_BYTES}",
            code="artifact-header",
            claim="C1",
        )
    return header, list(entries)


def _parse(data: Array) -> tuple[int, dict[str, _Tensor]]:
    """Check a whole file's bytes; return where the data section starts, and its tensors."""
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    if not 2 <= length <= min(MAX_HEADER_BYTES, data.size - 8):
        raise EvidenceError(f"header of {length} bytes in a file of {data.size}")
    if length % _ALIGNMENT:
        raise EvidenceError(f"header of {length} bytes leaves the tensors unaligned")
    header = strict_json(data[8 : 8 + length].tobytes(), MAX_HEADER_BYTES)
    if not isinstance(header, dict):
        raise EvidenceError("header is not a JSON object")
    tensors = {name: _tensor(name, entry) for name, entry in header.items()}
    _check_layout(tensors, data.size - 8 - length)
    try:
        names = sorted(tensors, key=tensor_name_bytes)
    except RuleError as error:
        raise EvidenceError(str(error)) from error
    return 8 + length, {name: tensors[name] for name in names}


def _tensor(name: str, entry: object) -> _Tensor:
    """Check one header entry on its own."""
    label = f"tensor {printable(name, 40)!r}"
    fields = members(entry, label, {"dtype", "shape", "data_offsets"})
    dtype = text(fields, "dtype")
    if dtype not in DTYPES:
        raise EvidenceError(f"{label}: dtype {printable(dtype, 20)!r} has no place in a model")
    shape, offsets = _counts(label, fields["shape"]), _counts(label, fields["data_offsets"])
    itemsize = DTYPES[dtype].itemsize
    if not shape_fits(shape, itemsize):
        raise EvidenceError(f"{label}: shape has too many dimensions or is too large")
    if len(offsets) != 2:
        raise EvidenceError(f"{label}: data_offsets are not two numbers")
    size = itemsize * math.prod(shape)
    begin, end = offsets
    if end - begin != size:
        raise EvidenceError(f"{label}: {end - begin} bytes where its shape needs {size}")
    if begin % itemsize:
        raise EvidenceError(f"{label}: not aligned to its {itemsize}-byte elements")
    return _Tensor(dtype, shape, begin, end)


def _counts(label: str, value: object) -> tuple[int, ...]:
    """Read a JSON list of integers, 0 <= n < 2**62 (true is not 1)."""
    if not isinstance(value, list) or any(
        type(n) is not int or not 0 <= n < MAX_BYTES for n in value
    ):
        raise EvidenceError(f"{label}: shape and data_offsets are lists of counts")
    return tuple(value)


def _check_layout(tensors: Mapping[str, _Tensor], size: int) -> None:
    """Check that the tensors tile the data section: no gap, no overlap, nothing behind."""
    at = 0
    for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.end)):
        if tensor.begin != at:
            raise EvidenceError(f"tensors overlap or leave a gap at byte {min(at, tensor.begin)}")
        at = tensor.end
    if at != size:
        raise EvidenceError(f"tensors take {at} bytes, the file has {size}")
