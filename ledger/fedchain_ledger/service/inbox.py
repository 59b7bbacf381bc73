"""What a node has yet to look at: bounded for each peer, so that none can fill the memory.

The node's own affairs (its users, its timers) are never dropped. A peer has a lane for consensus
and one for gossip, lest one crowd the other out; a full lane loses its oldest message. Both are
sent again if they matter.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

MAX_MESSAGES = 1_024
MAX_BYTES = 32 << 20  # of one peer and lane: three of the largest blocks

# Tag byte of ConsensusMessage.gossip (field 6, length-delimited): what an honest peer's gossip
# starts with. It only chooses the lane, so that lying about it costs the liar alone.
GOSSIP_TAG = 0x32

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FromPeer:
    """A message as it came."""

    sender: int
    data: bytes


class Inbox(Generic[T]):
    """Items of the node's own of type T, and messages of its peers, fairly in turn.

    Used within one event loop; one reader.
    """

    def __init__(self, peers: int) -> None:
        """Make an empty inbox for senders 0 to `peers` - 1."""
        self._own: deque[T] = deque()
        self._lanes = [(_Lane(), _Lane()) for _ in range(peers)]
        self._next = 0
        self._own_first = True
        self._filled = asyncio.Event()
        self.dropped = 0

    def put(self, item: T) -> None:
        """Add an item of the node's own."""
        self._own.append(item)
        self._filled.set()

    def put_message(self, sender: int, data: bytes) -> None:
        """Add a peer's message; one from nobody that we know is dropped."""
        if not 0 <= sender < len(self._lanes) or not data:
            self.dropped += 1
            return
        consensus, gossip = self._lanes[sender]
        lane = gossip if data[0] == GOSSIP_TAG else consensus
        self.dropped += lane.put(data)
        self._filled.set()

    async def get(self) -> T | FromPeer:
        """Wait for the next item: the node's own and each peer's in turn, so that none starves."""
        while True:
            own_first, self._own_first = self._own_first, not self._own_first
            if own_first and self._own:
                return self._own.popleft()
            message = self._next_message()
            if message is not None:
                return message
            if self._own:
                return self._own.popleft()
            self._filled.clear()
            await self._filled.wait()

    def clear(self) -> list[T]:
        """Forget everything; hand back what was the node's own."""
        own = list(self._own)
        self._own.clear()
        self._lanes = [(_Lane(), _Lane()) for _ in self._lanes]
        return own

    def _next_message(self) -> FromPeer | None:
        count = len(self._lanes)
        for step in range(count):
            sender = (self._next + step) % count
            for lane in self._lanes[sender]:
                data = lane.take()
                if data is not None:
                    self._next = (sender + 1) % count
                    return FromPeer(sender, data)
        return None


class _Lane:
    """Messages of one peer, oldest first, bounded in number and bytes."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._bytes = 0

    def put(self, data: bytes) -> int:
        """Add a message; how many old ones had to go for it."""
        self._messages.append(data)
        self._bytes += len(data)
        dropped = 0
        while len(self._messages) > MAX_MESSAGES or self._bytes > MAX_BYTES:
            self.take()
            dropped += 1
        return dropped

    def take(self) -> bytes | None:
        if not self._messages:
            return None
        data = self._messages.popleft()
        self._bytes -= len(data)
        return data
