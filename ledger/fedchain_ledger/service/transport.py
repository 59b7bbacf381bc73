"""How messages get from one validator to another; here, inside one process.

A transport may lose, delay, repeat and reorder: consensus repairs all of that. It authenticates
the sender, and it never waits: who cannot keep up loses messages, and nobody else notices.
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias

from fedchain_proto.errors import UsageError

Receive: TypeAlias = Callable[[int, bytes], None]
"""Called with (index of the sender in the validator set, message); must not block."""


class Transport(Protocol):
    """One validator's way to its peers."""

    def send(self, to: int, message: bytes) -> None:
        """Send to one peer, by its index in the validator set. Returns at once."""
        ...

    def broadcast(self, message: bytes) -> None:
        """Send to every peer but oneself. Returns at once."""
        ...


class InProcessHub:
    """Connects validators of one event loop."""

    def __init__(self) -> None:
        self._receivers: dict[int, Receive] = {}

    def attach(self, index: int, receive: Receive) -> "InProcessTransport":
        """Connect a validator.

        Args:
            index: Its place in the validator set.
            receive: Called for each message to it, from the sender's turn of the event loop.
        """
        if index in self._receivers:
            raise UsageError(f"validator {index} is connected already")
        self._receivers[index] = receive
        return InProcessTransport(self, index)

    def detach(self, index: int) -> None:
        """Disconnect a validator: what is sent to it from now on is lost."""
        self._receivers.pop(index, None)

    def deliver(self, sender: int, to: int, message: bytes) -> None:
        """Hand a message over, or lose it if nobody is there."""
        receive = self._receivers.get(to)
        if receive is not None:
            receive(sender, message)

    def peers(self, index: int) -> list[int]:
        """List who else is connected."""
        return [other for other in self._receivers if other != index]


class InProcessTransport:
    """A `Transport` between validators of one process: the caller's identity is its index."""

    def __init__(self, hub: InProcessHub, index: int) -> None:
        self._hub = hub
        self._index = index

    def send(self, to: int, message: bytes) -> None:
        """Send to one peer."""
        self._hub.deliver(self._index, to, message)

    def broadcast(self, message: bytes) -> None:
        """Send to every connected peer."""
        for to in self._hub.peers(self._index):
            self._hub.deliver(self._index, to, message)
