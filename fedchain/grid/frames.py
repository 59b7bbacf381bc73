"""Frames: one message on a worker's socket, and reading and writing it bit by bit.

    prelude   magic "FCG1", then five u32: meta bytes, and for content and state each
              head bytes and number of buffers (little-endian)
    table     u64 length of every buffer, content's first
    meta      JSON: who, what, how it ended
    heads     content's, then state's (see `codec`)
    body      the buffers, one after another

Readers and writers take what the socket has and say whether they are done, so that one loop
serves many workers and a worker that stops halfway holds up nobody. Sizes are checked before
anything is allocated for them.
"""

import socket
import struct
from collections.abc import Generator
from itertools import accumulate, islice
from typing import NamedTuple

from fedchain.grid.codec import Packed
from fedchain_proto.errors import EvidenceError

_MAGIC = b"FCG1"
_PRELUDE = struct.Struct("<4s5I")
_META_BYTES = 1 << 16
_HEAD_BYTES = 1 << 23
_BUFFERS = 1 << 17
_IOV = 512  # buffers for one sendmsg; Linux takes 1,024


class Frame(NamedTuple):
    """A message: meta (JSON), the Flower content, and the node's ``context.state``."""

    meta: bytes
    content: Packed
    state: Packed

    @property
    def size_bytes(self) -> int:
        """What the buffers and heads weigh; the framing itself is not counted."""
        parts = (self.content, self.state)
        return sum(len(p.head) + sum(map(len, p.buffers)) for p in parts)


class FrameWriter:
    """Sends one frame, as much at a time as the socket takes; copies no buffer."""

    def __init__(self, frame: Frame) -> None:
        content, state = frame.content, frame.state
        buffers = content.buffers + state.buffers
        counts = (len(content.head), len(content.buffers), len(state.head), len(state.buffers))
        opening = b"".join(
            (
                _PRELUDE.pack(_MAGIC, len(frame.meta), *counts),
                struct.pack(f"<{len(buffers)}Q", *map(len, buffers)),
                frame.meta,
                content.head,
                state.head,
            )
        )
        self._views = [memoryview(b) for b in (opening, *buffers) if len(b)]
        self._next = 0

    def write(self, sock: socket.socket) -> bool:
        """Send until the socket is full (False) or the frame is out (True).

        Raises:
            OSError: The other side is gone.
        """
        while self._next < len(self._views):
            try:
                sent = sock.sendmsg(islice(self._views, self._next, self._next + _IOV))
            except BlockingIOError:
                return False
            self._drop(sent)
        return True

    def _drop(self, sent: int) -> None:
        """Forget `sent` bytes from the front."""
        while sent:
            view = self._views[self._next]
            if sent < len(view):
                self._views[self._next] = view[sent:]
                return
            sent -= len(view)
            self._views[self._next] = memoryview(b"")  # An array sent need not be kept.
            self._next += 1


class FrameReader:
    """Receives one frame of at most `limit_bytes`, into memory allocated once per part."""

    def __init__(self, limit_bytes: int) -> None:
        # The parser knows nothing of this object: a cycle would keep every reply until the
        # garbage collector comes by.
        self._parser = _parse(limit_bytes)
        self._room = memoryview(next(self._parser))

    def read(self, sock: socket.socket) -> Frame | None:
        """Take what the socket has; the frame once it is whole, else None.

        Raises:
            EvidenceError: Not a frame, or one over the limit.
            EOFError: The other side hung up.
            OSError: The other side is gone.
        """
        while True:
            while self._room:
                try:
                    got = sock.recv_into(self._room)
                except BlockingIOError:
                    return None
                if not got:
                    raise EOFError
                self._room = self._room[got:]
            try:
                self._room = memoryview(next(self._parser))
            except StopIteration as done:
                frame: Frame = done.value
                return frame


def _parse(limit_bytes: int) -> Generator[bytearray, None, Frame]:
    """Ask for the parts of a frame, one after another, each to be filled before the next."""
    prelude = bytearray(_PRELUDE.size)
    yield prelude
    magic, meta_size, *counts = _PRELUDE.unpack(prelude)
    content_head, content_count, state_head, state_count = counts
    count = content_count + state_count
    if magic != _MAGIC:
        raise EvidenceError("what came is not a message")
    if meta_size > _META_BYTES or max(content_head, state_head) > _HEAD_BYTES:
        raise EvidenceError("the message's head is too long")
    if count > _BUFFERS:
        raise EvidenceError("the message has too many parts")

    opening = bytearray(8 * count + meta_size + content_head + state_head)
    yield opening
    sizes = struct.unpack_from(f"<{count}Q", opening)
    meta = bytes(opening[8 * count : 8 * count + meta_size])
    heads = bytes(opening[8 * count + meta_size :])
    if sum(sizes) > limit_bytes:
        raise EvidenceError(f"the message is larger than the {limit_bytes} bytes allowed")

    try:
        body = bytearray(sum(sizes))
    except MemoryError as error:
        raise EvidenceError(f"no memory for a message of {sum(sizes)} bytes") from error
    yield body
    view, ends = memoryview(body), list(accumulate(sizes))
    buffers = tuple(bytes(view[e - n : e]) for e, n in zip(ends, sizes, strict=True))
    return Frame(
        meta,
        Packed(heads[:content_head], buffers[:content_count]),
        Packed(heads[content_head:], buffers[content_count:]),
    )
