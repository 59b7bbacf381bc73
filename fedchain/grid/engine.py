"""What runs calls for the grid, seen from the grid: submit a batch, take outcomes one by one."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Metadata

from fedchain.grid.codec import Packed
from fedchain.grid.nodes import NodeSpec
from fedchain.grid.outcome import Outcome


@dataclass(frozen=True)
class Call:
    """One instruction for one node, encoded.

    Attributes:
        node: Whom it is for.
        metadata: Flower's metadata; its ``message_id`` is unique in the grid.
        content: The instruction.
    """

    node: NodeSpec
    metadata: Metadata
    content: Packed


@dataclass
class Batch:
    """Calls that were submitted together.

    Attributes:
        pending: Not started, in order.
        running: Started, without an outcome yet.
        ready: Outcomes that wait to be taken.
        held: Most calls that may be running or ready at once, so that replies nobody takes
            do not pile up; None for no bound.
        cancelled: Nobody waits for the rest any more.
    """

    pending: deque[Call]
    held: int | None
    running: list[Call] = field(default_factory=list)
    ready: deque[tuple[Call, Outcome]] = field(default_factory=deque)
    cancelled: bool = False

    @property
    def has_room(self) -> bool:
        """Whether another of its calls may start."""
        return self.held is None or len(self.running) + len(self.ready) < self.held


class Engine(Protocol):
    """Runs calls: in worker processes, or in threads where processes cannot be forked."""

    def submit(self, calls: Iterable[Call], *, held: int | None) -> Batch:
        """Take on calls; at most `held` may run or lie ready at once."""

    def take(self, batch: Batch, until: float | None) -> tuple[Call, Outcome] | None:
        """Wait for an outcome until `until` (monotonic seconds; None: for ever).

        Returns:
            A call and its outcome; None when the time is up or no call is left.

        Raises:
            FedchainError: No call can be run any more; the text says why.
        """

    def cancel(self, batch: Batch) -> list[Call]:
        """Stop what runs, forget the rest; returns the calls without an outcome taken."""

    def close(self) -> None:
        """Stop everything, at once."""
