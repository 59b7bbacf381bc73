"""What crosses between server and worker: it comes back equal, or it is refused."""

import gc
import json
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedchain.grid import codec
from fedchain.grid.codec import Packed, pack, unpack
from fedchain.grid.frames import Frame, FrameReader, FrameWriter
from fedchain.grid.outcome import REASON_CHARS, clean
from fedchain_proto.errors import EvidenceError

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False)
KEYS = st.text(max_size=20)
ARRAYS = st.dictionaries(
    KEYS,
    hnp.arrays(
        st.sampled_from(["f4", ">f8", "f2", "i8", "u1", "?"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ).map(Array),
    max_size=3,
).map(ArrayRecord)


def lists(*kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(*kinds, *(st.lists(kind, max_size=3) for kind in kinds))


METRICS = st.dictionaries(KEYS, lists(INT64, FLOATS), max_size=3).map(MetricRecord)
CONFIGS = st.dictionaries(
    KEYS, lists(INT64, FLOATS, st.booleans(), KEYS, st.binary(max_size=20)), max_size=4
).map(ConfigRecord)
RECORDS = st.dictionaries(KEYS, st.one_of(ARRAYS, METRICS, CONFIGS), max_size=4).map(RecordDict)

WEIGHTS = Array(np.arange(6, dtype=np.float32).reshape(2, 3))


def one_array(dtype: str, shape: list[object], data: bytes, stype: str = "numpy.ndarray") -> Packed:
    head = [["r", "arrays", [["w", dtype, shape, stype]]]]
    return Packed(json.dumps(head).encode(), (data,))


@given(RECORDS)
def test_records_come_back_equal(records: RecordDict) -> None:
    """Every record Flower allows survives, types and order included."""
    back = unpack(pack(records))
    assert back == records
    assert list(back) == list(records)
    for name, record in records.items():
        assert type(back[name]) is type(record)
        assert [(k, type(v)) for k, v in back[name].items()] == [
            (k, type(v)) for k, v in record.items()
        ]


def test_not_a_number_survives() -> None:
    """A metric may be NaN or infinite: that is for the server's intake to judge."""
    back = unpack(pack(RecordDict({"m": MetricRecord({"loss": [float("nan"), float("inf")]})})))
    assert str(back["m"]["loss"]) == "[nan, inf]"


def test_arrays_are_not_copied() -> None:
    """Encoding a model refers to its bytes, so that ten clients do not cost ten copies."""
    packed = pack(RecordDict({"a": ArrayRecord({"w": WEIGHTS})}))
    assert packed.buffers[0] is WEIGHTS.data


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xff",
        b"{}",
        b"null",
        b"[" * 100_000,
        b'[["r","config"]]',
        b'[["r","config",[],1]]',
        b'[[1,"config",[]]]',
        b'[["r","pickle",[]]]',
        b'[["r","config",{}]]',
        b'[["r","config",[["k",{}]]]]',
        b'[["r","config",[["k",[[1]]]]]]',
        b'[["r","config",[["k",[1,"a"]]]]]',
        b'[["r","config",[["k",1],["k",2]]]]',
        b'[["r","config",[]],["r","metrics",[]]]',
        b'[["r","metrics",[["k",true]]]]',
        b'[["r","metrics",[["k","a"]]]]',
        b'[["r","metrics",[["k",18446744073709551616]]]]',
        b'[["r","config",[["k",null]]]]',
        b'[["r","arrays",[["w","float32",[1],"numpy.ndarray"]]]]',
    ],
)
def test_a_head_that_pack_never_writes_is_refused(head: bytes) -> None:
    """Junk, wrong shapes, wrong types, names twice and missing buffers are all refused."""
    with pytest.raises(EvidenceError):
        unpack(Packed(head, ()))


def test_a_buffer_too_many_is_refused() -> None:
    """Bytes that no record refers to were put there for something else."""
    packed = pack(RecordDict({"c": ConfigRecord({"k": b"x"})}))
    assert unpack(packed)
    with pytest.raises(EvidenceError, match="no record"):
        unpack(Packed(packed.head, (*packed.buffers, b"")))


def test_an_array_must_be_what_it_claims() -> None:
    """dtype, shape and length of the stored .npy agree with the record, or it is refused."""
    assert unpack(one_array("float32", [2, 3], WEIGHTS.data))
    lies: list[tuple[str, list[object], bytes]] = [
        ("float64", [2, 3], WEIGHTS.data),
        ("float32", [3, 2], WEIGHTS.data),
        ("float32", [2, 3], WEIGHTS.data[:-1]),
        ("float32", [2, 3], WEIGHTS.data + b"\0"),
        ("float32", [-2, -3], WEIGHTS.data),
        ("float32", ["2", 3], WEIGHTS.data),
        ("float32", [True, 6], Array(np.zeros((1, 6), np.float32)).data),
        ("float32", [2, 3], b"serialized_data..."),
        ("float32", [2, 3], b""),
        ("float32", [1] * 65, WEIGHTS.data),
    ]
    for dtype, shape, data in lies:
        with pytest.raises(EvidenceError):
            unpack(one_array(dtype, shape, data))


@pytest.mark.parametrize("header", [b"{'shape': (2,", b"((((", b"'" * 9, b"\xff\xfe", b""])
def test_a_header_that_nobody_can_parse_is_refused(header: bytes) -> None:
    """Whatever numpy's own parser makes of a header, one client's junk ends no run."""
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with pytest.raises(EvidenceError, match=r"no \.npy"):
        codec._npy_header(data)


def test_an_array_of_python_objects_is_refused() -> None:
    """An object array is a pickle, and loading one runs the sender's code."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 8
    with pytest.raises(EvidenceError, match="objects"):
        unpack(one_array("object", [1], data))


def test_a_header_that_lies_about_the_size_is_refused_unallocated() -> None:
    """A few bytes that claim to be a terabyte never get room for it."""
    shape = (1 << 40,)
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    with pytest.raises(EvidenceError, match="wrong length"):
        unpack(one_array("float32", list(shape), data))


def test_arrays_of_another_kind_pass_through() -> None:
    """Flower allows other serialisations; their bytes are carried and not interpreted."""
    back = unpack(one_array("q4", [2], b"anything", stype="quantised"))
    record = back["r"]
    assert isinstance(record, ArrayRecord)
    assert record["w"].data == b"anything"


class Odd(RecordDict):
    """A RecordDict that holds what Flower's own checks would have kept out."""

    def items(self) -> Any:
        return {"r": "not a record"}.items()


def test_what_is_no_record_is_not_packed() -> None:
    """Rubbish is found where it is made, so that it costs its maker only."""
    rubbish: list[Any] = [None, {}, "text", Odd()]
    for records in rubbish:
        with pytest.raises(EvidenceError):
            pack(records)
    record = ArrayRecord({"w": WEIGHTS})
    record["w"].data = "no bytes"  # type: ignore[assignment]
    with pytest.raises(EvidenceError):
        pack(RecordDict({"a": record}))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def receive(ours: socket.socket, limit: int = 1 << 26) -> Frame:
    reader = FrameReader(limit)
    while (frame := reader.read(ours)) is None:
        pass
    return frame


@pytest.mark.parametrize("size", [0, 1, 1000, 3_000_000])
def test_frames_cross_a_socket_that_takes_them_in_parts(
    pair: tuple[socket.socket, socket.socket], size: int
) -> None:
    """However little a socket takes at once, the frame arrives whole, and so does the next."""
    ours, theirs = pair
    content = Packed(b"[1]", (b"a" * size, b"", b"b"))
    state = Packed(b"[]", tuple(bytes([n % 256]) for n in range(2000)))
    sent = Frame(b"{}", content, state)

    def send() -> None:
        FrameWriter(sent).write(theirs)
        FrameWriter(sent).write(theirs)

    sender = threading.Thread(target=send)
    sender.start()
    assert receive(ours) == sent
    assert receive(ours) == sent
    sender.join()


def test_a_reader_leaves_nothing_for_the_garbage_collector(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A reply's memory is free at once: forty megabytes that wait for a cycle's end pile up."""
    ours, theirs = pair
    gc.collect()
    gc.disable()
    try:
        FrameWriter(Frame(b"{}", Packed(b"[]", (b"x",)), Packed(b"[]", ()))).write(theirs)
        assert receive(ours).content.buffers == (b"x",)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_writer_waits_for_room(pair: tuple[socket.socket, socket.socket]) -> None:
    """A full socket is reported, not waited for; writing goes on where it stopped."""
    ours, theirs = pair
    frame = Frame(b"{}", Packed(b"[]", (b"x" * 5_000_000,)), Packed(b"[]", ()))
    writer, reader = FrameWriter(frame), FrameReader(1 << 26)
    theirs.setblocking(False)
    assert not writer.write(ours)
    done = None
    while done is None:
        writer.write(ours)
        done = reader.read(theirs)
    assert done == frame


PRELUDE = struct.Struct("<4s5I")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x80\x04\x95" + bytes(40),
        PRELUDE.pack(b"FCG2", 2, 2, 0, 2, 0),
        PRELUDE.pack(b"FCG1", 1 << 17, 2, 0, 2, 0),
        PRELUDE.pack(b"FCG1", 2, 1 << 24, 0, 2, 0),
        PRELUDE.pack(b"FCG1", 2, 2, 1 << 16, 2, 1 << 17),
        PRELUDE.pack(b"FCG1", 0, 0, 1, 0, 0) + struct.pack("<Q", 1 << 60),
        PRELUDE.pack(b"FCG1", 0, 0, 2, 0, 0) + struct.pack("<QQ", (1 << 64) - 1, 1),
    ],
)
def test_junk_on_the_socket_is_refused_before_room_is_made(
    pair: tuple[socket.socket, socket.socket], data: bytes
) -> None:
    """No magic, or sizes out of bounds: refused at the first bytes that show it."""
    ours, theirs = pair
    theirs.sendall(data)
    with pytest.raises(EvidenceError):
        receive(ours)


def test_hanging_up_in_the_middle_is_noticed(pair: tuple[socket.socket, socket.socket]) -> None:
    """Half a frame is no frame."""
    ours, theirs = pair
    theirs.sendall(PRELUDE.pack(b"FCG1", 2, 2, 0, 2, 0))
    theirs.close()
    with pytest.raises(EOFError):
        receive(ours)


def test_what_a_client_says_is_made_safe_to_print() -> None:
    """A reason is one line of bounded length, and steers no terminal."""
    assert clean("a\nb\t c") == "a b c"
    assert "\x1b" not in clean("\x1b[2Jgone")
    assert len(clean("x" * 10**6)) == REASON_CHARS
