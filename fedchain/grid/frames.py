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
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from fedchain_proto.errors import EvidenceError

from fedchain.grid.codec import Packed

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
        self._limit = limit_bytes
        self._part = bytearray(_PRELUDE.size)
        self._filled = 0
        self._steps = self._parse()
        next(self._steps)

    def read(self, sock: socket.socket) -> Frame | None:
        """Take what the socket has; the frame once it is whole, else None.

        Raises:
            EvidenceError: Not a frame, or one over the limit.
            EOFError: The other side hung up.
            OSError: The other side is gone.
        """
        while True:
            while self._filled < len(self._part):
                try:
                    got = sock.recv_into(memoryview(self._part)[self._filled :])
                except BlockingIOError:
                    return None
                if not got:
                    raise EOFError
                self._filled += got
            step = next(self._steps)
            if isinstance(step, Frame):
                return step
            self._part, self._filled = step, 0

    def _parse(self) -> Iterator[bytearray | Frame]:
        """Turn each part, once filled, into the room for the next one; last, the frame."""
        yield self._part
        magic, meta_size, *counts = _PRELUDE.unpack(self._part)
        content_head, content_count, state_head, state_count = counts
        if magic != _MAGIC:
            raise EvidenceError("what came is not a message")
        if meta_size > _META_BYTES or max(content_head, state_head) > _HEAD_BYTES:
            raise EvidenceError("the message's head is too long")
        if content_count + state_count > _BUFFERS:
            raise EvidenceError("the message has too many parts")

        count = content_count + state_count
        yield bytearray(8 * count + meta_size + content_head + state_head)
        opening = bytes(self._part)
        sizes = struct.unpack_from(f"<{count}Q", opening)
        if sum(sizes) > self._limit:
            raise EvidenceError(f"the message is larger than the {self._limit} bytes allowed")
        meta_end = 8 * count + meta_size

        yield self._room(sum(sizes))
        body, end, buffers = memoryview(self._part), 0, []
        for size in sizes:
            buffers.append(bytes(body[end : end + size]))
            end += size
        yield Frame(
            opening[8 * count : meta_end],
            Packed(opening[meta_end : meta_end + content_head], tuple(buffers[:content_count])),
            Packed(opening[meta_end + content_head :], tuple(buffers[content_count:])),
        )

    def _room(self, size: int) -> bytearray:
        try:
            return bytearray(size)
        except MemoryError as error:
            raise EvidenceError(f"no memory for a message of {size} bytes") from error
