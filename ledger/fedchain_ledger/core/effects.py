"""What goes into the consensus core and what comes out: events and effects, all frozen.

The shell runs the effects of one ``handle`` in the order given and stops at the first that
fails (etcd/raft's ``Ready`` says the same): ``Persist`` precedes the ``Send`` of what it
holds, ``Decide`` precedes every message of the next height. After a failure the process ends
and a new ``Core`` is built from what is durable; a core whose effects did not all run is
never used again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate

# ------------------------------------------------------------------ events


@dataclass(frozen=True)
class MessageReceived:
    """A ``wire.ConsensusMessage`` from an authenticated peer.

    ``sender`` is the validator index that the transport proved, or any number from n up for a
    peer that is no validator. Gossip is the shell's own: the core ignores it.
    """

    sender: int
    data: bytes


@dataclass(frozen=True)
class TimerFired:
    """The latest ``SetTimer`` of this name has elapsed. Replaced timers never fire."""

    name: str


@dataclass(frozen=True)
class WorkArrived:
    """The pool gained transactions; ``flush``: a submitter waits, or enough came: cut at once."""

    flush: bool = False


Event = MessageReceived | TimerFired | WorkArrived

# ------------------------------------------------------------------ journal


class JournalType(IntEnum):
    """Third part of a journal key; 1 to 4 are ``wire.VoteType``."""

    PROPOSAL = 1
    PREPARE = 2
    COMMIT = 3
    ROUND_CHANGE = 4
    LOCK = 100  # the prepared block and its PREPAREs, beside the COMMIT of the same key
    LOST = 101  # the journal was lost: see abstention.py; height FOR_EVER, round counts up


FOR_EVER = (1 << 63) - 1  # a height that no decision prunes; fits SQLite's integer


@dataclass(frozen=True)
class JournalEntry:
    """One row: ``(height, round, type)`` is the key, ``data`` the exact message bytes.

    The store refuses a second, different ``data`` for one key; an equal one is no error.
    """

    height: int
    round: int
    type: int
    data: bytes


# ------------------------------------------------------------------ effects


@dataclass(frozen=True)
class Persist:
    """Write these rows in one transaction, durably, before the next effect runs."""

    entries: tuple[JournalEntry, ...]


@dataclass(frozen=True)
class Decide:
    """Store in one transaction: block, certificate, log leaves; and delete journal rows with
    ``height`` up to this one. ``block.parent_certificate`` replaces the stored one of the parent.
    """

    height: int
    block_id: bytes
    block: wire.Block
    certificate: Certificate
    committed: object  # what Application.commit returned


@dataclass(frozen=True)
class Send:
    """Send message bytes to one peer, or to all others when ``to`` is None. May be lost."""

    to: int | None
    message: bytes


@dataclass(frozen=True)
class SendDecided:
    """Send ``to`` the stored block of ``height`` with its certificate: ``messages.decided``."""

    to: int
    height: int


@dataclass(frozen=True)
class SetTimer:
    """(Re)place the timer of this name; fire ``TimerFired(name)`` at ``at_ms``."""

    name: str
    at_ms: int


@dataclass(frozen=True)
class Accuse:
    """Two signed votes (serialised ``SignedVote``, ascending) that one key must not have signed."""

    offence: wire.Offence.ValueType
    accused: bytes  # key id
    first: bytes
    second: bytes


@dataclass(frozen=True)
class Refused:
    """For the log: this peer sent what no honest peer sends, or we could not use our own."""

    sender: int
    reason: str


Effect = Persist | Decide | Send | SendDecided | SetTimer | Accuse | Refused
