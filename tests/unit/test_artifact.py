"""Artifact files: written whole, read strictly, and what the safetensors library reads."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from fedchain_proto import artifact
from fedchain_proto.artifact import ArtifactFile, ArtifactFolder, write_artifact
from fedchain_proto.digest import DTYPES, Array, model_digest, structure
from fedchain_proto.errors import EvidenceError, RuleError, UnavailableError, UsageError
from tests.unit.test_digest import ARRAYS, model

DATA = bytes(range(24))


def file_of(header: object, data: bytes = DATA, *, length: int | None = None) -> bytes:
    """A file with this header (text as it is, else as JSON), padded as writers pad."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: Any = "F32", shape: Any = (6,), offsets: Any = (0, 24), **more: Any) -> Any:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


def opened(tmp_path: Path, raw: bytes) -> ArtifactFile:
    path = tmp_path / "file"
    path.write_bytes(raw)
    return ArtifactFile.open(path)


@given(ARRAYS)
def test_what_was_written_is_read(arrays: dict[str, Array]) -> None:
    """Names, dtypes, shapes and bytes come back, through one mapping and without a copy."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))  # noqa: S108  # hypothesis forbids tmp_path
    path = folder / f"fedchain-artifact-{os.getpid()}"
    try:
        write_artifact(path, arrays)
        with ArtifactFile.open(path) as file:
            assert file.structure == structure(arrays)
            assert file.names == tuple(row[0] for row in file.structure)
            assert file.digest() == model_digest(arrays)
            for name, array in file.arrays().items():
                assert array.tobytes() == arrays[name].tobytes()
                assert array.shape == file.shape(name) == arrays[name].shape
                assert not array.flags.writeable
                assert array.flags.aligned
    finally:
        path.unlink(missing_ok=True)


def test_safetensors_library_reads_ours(tmp_path: Path) -> None:
    """The file is a plain safetensors file: the reference reader finds the same model in it."""
    arrays = {f"t.{name}": np.ones((2, 3), dtype) for name, dtype in DTYPES.items()} | model()
    write_artifact(tmp_path / "m", arrays)
    loaded = safetensors.numpy.load_file(tmp_path / "m")
    assert model_digest(loaded) == model_digest(arrays)


def test_we_read_the_safetensors_librarys(tmp_path: Path) -> None:
    """A file that the reference writer made is an artifact too, as long as it has no metadata."""
    arrays = {name.lower(): np.ones((3, 1), dtype) for name, dtype in DTYPES.items()}
    safetensors.numpy.save_file(arrays, tmp_path / "m")
    assert ArtifactFile.open(tmp_path / "m").digest() == model_digest(arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "m", metadata={"note": "not hashed"})
    with pytest.raises(EvidenceError):  # what no digest covers has no place in evidence
        ArtifactFile.open(tmp_path / "m")


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    """Key order and memory layout leave no trace in the file; one bit does."""
    arrays = model()
    other = {name: np.asfortranarray(x) if x.ndim else x for name, x in reversed(arrays.items())}
    changed = arrays | {"flags": np.array([True, True])}
    files = []
    for i, variant in enumerate([arrays, other, changed]):
        write_artifact(tmp_path / str(i), variant)
        files.append((tmp_path / str(i)).read_bytes())
    assert files[0] == files[1] != files[2]


def test_views_outlive_close(tmp_path: Path) -> None:
    """A view taken before `close` stays readable; a new one is refused."""
    write_artifact(tmp_path / "m", {"a": np.arange(1000.0)})
    file = ArtifactFile.open(tmp_path / "m")
    view = file.flat("a")
    file.close()
    assert view[999] == 999.0
    with pytest.raises(UsageError):
        file.flat("a")


def test_well_formed_file_opens(tmp_path: Path) -> None:
    """The builder of hostile files builds a good one when nothing is bent."""
    raw = file_of({"b": entry("U8", [8], [16, 24]), "a": entry("F32", [2, 2], [0, 16])})
    file = opened(tmp_path, raw)
    assert file.names == ("a", "b")
    assert file.flat("b").tobytes() == DATA[16:]


BIG = 2**62
HOSTILE: dict[str, bytes] = {
    "empty file": b"",
    "truncated length": b"\x10\0\0",
    "header longer than file": file_of({"a": entry()}, length=10**6),
    "header over the bound": struct.pack("<Q", artifact.MAX_HEADER_BYTES + 8)
    + bytes(artifact.MAX_HEADER_BYTES + 100),
    "huge header length": struct.pack("<Q", 2**64 - 8) + b"{}      ",
    "no header": struct.pack("<Q", 0) + DATA,
    "unaligned header": struct.pack("<Q", 2) + b"{}",
    "not UTF-8": file_of(b'{"\xff": 1}'),
    "byte-order mark": file_of(b"\xef\xbb\xbf{}", b""),
    "not JSON": file_of(b"{'a': 1}"),
    "trailing JSON": file_of(b"{} {}", b""),
    "list": file_of([]),
    "null": file_of(None),
    "number": file_of(7),
    "deep nesting": file_of(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "endless digits": file_of(b'{"a":' + b"9" * 100_000 + b"}"),
    "duplicate tensor": file_of(
        b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},'
        b'"a":{"dtype":"I32","shape":[6],"data_offsets":[0,24]}}'
    ),
    "duplicate field": file_of(
        b'{"a":{"dtype":"I32","dtype":"F32","shape":[6],"data_offsets":[0,24]}}'
    ),
    "metadata": file_of({"__metadata__": {"format": "pt"}, "a": entry()}),
    "metadata as tensor": file_of({"__metadata__": entry()}),
    "unknown field": file_of({"a": entry(stride=[1])}),
    "missing field": file_of({"a": {"dtype": "F32", "shape": [6]}}),
    "entry is a list": file_of({"a": [1]}),
    "unknown dtype": file_of({"a": entry("BF16", [12])}),
    "dtype is a list": file_of({"a": entry(["F32"])}),
    "numpy's dtype": file_of({"a": entry("<f4")}),
    "wrong dtype": file_of({"a": entry("F64")}),
    "object dtype": file_of({"a": entry("O")}),
    "negative shape": file_of({"a": entry(shape=[-6])}),
    "two negatives": file_of({"a": entry(shape=[-2, -3])}),
    "shape of floats": file_of({"a": entry(shape=[6.0])}),
    "shape of exponents": file_of(b'{"a":{"dtype":"F32","shape":[6e0],"data_offsets":[0,24]}}'),
    "shape of NaN": file_of(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,24]}}'),
    "shape of booleans": file_of({"a": entry(shape=[6, True])}),
    "shape of strings": file_of({"a": entry(shape=["6"])}),
    "shape is a number": file_of({"a": entry(shape=6)}),
    "shape too long": file_of({"a": entry(shape=[6] + [1] * 32)}),
    "shape wraps to its size": file_of({"a": entry(shape=[2**32, 2**32, 6])}),
    "zero hides a huge shape": file_of({"a": entry(shape=[0, BIG, BIG], offsets=[0, 0])}, b""),
    "shape of one huge number": file_of({"a": entry(shape=[10**200])}),
    "offsets of 4,000 digits": file_of({"a": entry(offsets=[0, 10**4000])}),
    "bytes do not fit shape": file_of({"a": entry(shape=[5])}),
    "offsets backwards": file_of({"a": entry(offsets=[24, 0])}),
    "negative offset": file_of({"a": entry(offsets=[-24, 0])}),
    "three offsets": file_of({"a": entry(offsets=[0, 12, 24])}),
    "offsets beyond file": file_of({"a": entry(shape=[7], offsets=[0, 28])}),
    "offsets beyond 64 bits": file_of({"a": entry(offsets=[2**64, 2**64 + 24])}),
    "truncated data": file_of({"a": entry()}, DATA[:-1]),
    "data behind": file_of({"a": entry()}, DATA + b"\0"),
    "data of no tensor": file_of({}, DATA),
    "gap": file_of(
        {"a": entry(shape=[2], offsets=[0, 8]), "b": entry(shape=[3], offsets=[12, 24])}
    ),
    "gap at start": file_of({"a": entry(shape=[5], offsets=[4, 24])}),
    "overlap": file_of({"a": entry(), "b": entry(shape=[3], offsets=[12, 24])}),
    "same bytes twice": file_of({"a": entry(), "b": entry()}),
    "empty tensor inside another": file_of({"a": entry(), "b": entry(shape=[0], offsets=[8, 8])}),
    "unaligned tensor": file_of(
        {"a": entry("U8", [2], [0, 2]), "b": entry("F16", [1], [2, 4])}
        | {"c": entry("U8", [1], [4, 5]), "d": entry("F16", [1], [5, 7])},
        DATA[:7],
    ),
    "empty name": file_of({"": entry()}),
    "long name": file_of({"x" * 256: entry()}),
    "lone surrogate in name": file_of(b'{"\\ud800":' + json.dumps(entry()).encode() + b"}"),
    "control character in name": file_of({"a\x1b[31m": entry()}),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_file_is_refused(raw: bytes, tmp_path: Path) -> None:
    """Each lie that a header can tell is an EvidenceError in one printable line, and no crash."""
    with pytest.raises(EvidenceError) as error:
        opened(tmp_path, raw)
    message = str(error.value)
    assert message.startswith("artifact file: ")
    assert len(message) < 300
    assert message.isprintable()


@given(st.binary(max_size=64), st.integers(0, 200), st.integers(0, 255))
def test_bent_file_is_refused_or_another_model(junk: bytes, at: int, value: int) -> None:
    """One byte changed anywhere: an EvidenceError, or a model with another digest."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))  # noqa: S108  # hypothesis forbids tmp_path
    path = folder / f"fedchain-bent-{os.getpid()}"
    good = file_of({"a": entry("F32", [6])})
    bent = bytearray(good)
    bent[at % len(bent)] = value
    try:
        path.write_bytes(good)
        digest = ArtifactFile.open(path).digest()
        for raw in (bytes(bent), junk, good[: at % len(good)], good + junk):
            path.write_bytes(raw)
            try:
                changed = ArtifactFile.open(path).digest() != digest
            except EvidenceError:
                changed = True
            # White space in the header is no part of the model.
            assert changed or json.loads(raw[8:-24]) == json.loads(good[8:-24])
    finally:
        path.unlink(missing_ok=True)


def test_absent_or_unreadable_file_is_unavailable(tmp_path: Path) -> None:
    """Not there is no lie: the caller may get it elsewhere."""
    with pytest.raises(UnavailableError):
        ArtifactFile.open(tmp_path / "nothing")
    with pytest.raises(UnavailableError):
        ArtifactFile.open(tmp_path)


def test_too_large_a_header_is_refused_before_writing(tmp_path: Path) -> None:
    """We write nothing that we would not read."""
    empty = np.zeros(0, np.float32)
    arrays = {f"{'x' * 240}{i:07}": empty for i in range(30_000)}
    with pytest.raises(RuleError, match="header"):
        write_artifact(tmp_path / "m", arrays)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails leaves neither a torn file nor a temporary one, and keeps the old one."""
    write_artifact(tmp_path / "m", {"a": np.zeros(3)})
    before = (tmp_path / "m").read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_artifact(tmp_path / "m", {"a": np.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m").read_bytes() == before


def test_file_is_the_owners_alone(tmp_path: Path) -> None:
    """An update leaks data: nobody else on the machine may read it."""
    write_artifact(tmp_path / "m", {"a": np.zeros(3)})
    assert (tmp_path / "m").stat().st_mode & 0o077 == 0


def test_folder_names_by_digest(tmp_path: Path) -> None:
    """What was put is found under its digest, once, and verifies."""
    folder = ArtifactFolder(tmp_path / "artifacts")
    arrays = model()
    digest = folder.put(arrays, threads=2)
    assert digest == model_digest(arrays)
    name = digest.hex()
    assert folder.path(digest) == folder.root / name[:2] / f"{name[2:]}.safetensors"
    assert folder.has(digest)
    assert not folder.has(bytes(32))
    before = folder.path(digest).stat().st_mtime_ns
    assert folder.put(arrays, digest) == digest
    assert folder.path(digest).stat().st_mtime_ns == before
    for opened_file in (folder.open(digest), folder.open_unverified(digest)):
        assert opened_file.digest() == digest


def test_folder_does_not_believe_names(tmp_path: Path) -> None:
    """A file under another model's name opens unverified only; a missing one is unavailable."""
    folder = ArtifactFolder(tmp_path)
    false_name = folder.put({"a": np.zeros(3)}, bytes(32))
    folder.open(false_name, verify=False)
    with pytest.raises(EvidenceError, match="other weights"):
        folder.open(false_name, verify=True)
    with pytest.raises(UnavailableError, match="missing"):
        folder.open(b"\1" * 32)
    with pytest.raises(UsageError):
        folder.path(b"short")


@pytest.mark.parametrize("bend", [lambda raw: raw[:-1], lambda raw: raw[:-1] + b"\1"])
def test_damaged_artifact_is_found(tmp_path: Path, bend: Callable[[bytes], bytes]) -> None:
    """A truncated file or one flipped byte does not pass verification."""
    folder = ArtifactFolder(tmp_path)
    digest = folder.put({"a": np.zeros(3)})
    path = folder.path(digest)
    path.write_bytes(bend(path.read_bytes()))
    with pytest.raises(EvidenceError):
        folder.open(digest, verify=True)
