"""All that one validator knows about one height; thrown away when it is decided.

Nothing here decides anything: ``consensus.Core`` applies the rules to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fedchain_ledger.core.roundchange import Lock
from fedchain_ledger.core.votebook import VoteBook
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.trust import ValidatorSet

MAX_SEEN = 3  # blocks kept only because COMMITs for them may come
MAX_VERIFIED = 1 << 14

VerifiedKey = tuple[int, int, int, int, bytes, int, bytes, bytes]


@dataclass
class HeightState:
    """Attributes:
    number: The height.
    validators: The set in force.
    first_leader: s(h), the leader's index in round 0.
    round: The current one; only rises.
    accepted: Block and id that this validator accepted in the current round.
    lock: Its own lock; kept for the height, whatever rounds are skipped.
    locks: Verified locks that the latest ROUND_CHANGEs name.
    own: This validator's messages of the current round, for R6.
    committed: Whether it COMMITted in the current round.
    timer_runs: Whether the current round will time out.
    gave_up: Round in which this leader had nothing that it could propose, or -1.
    """

    number: int
    validators: ValidatorSet
    first_leader: int
    round: int = 0
    accepted: tuple[bytes, wire.Block] | None = None
    lock: Lock | None = None
    locks: dict[tuple[int, bytes], Lock] = field(default_factory=dict)
    own: list[bytes] = field(default_factory=list)
    committed: bool = False
    timer_runs: bool = False
    gave_up: int = -1
    book: VoteBook = field(init=False)
    _seen: dict[bytes, wire.Block] = field(default_factory=dict)
    _verified: set[VerifiedKey] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.book = VoteBook(self.validators)

    def leader(self, round_: int) -> int:
        """V[(s(h) + r) mod n]."""
        return (self.first_leader + round_) % self.validators.n

    def enter(self, round_: int) -> None:
        """Start a higher round. The lock stays: it lives for the height (R4)."""
        if self.accepted is not None:
            self.see(*self.accepted)
        self.round = round_
        self.accepted = None
        self.own = []
        self.committed = False
        self.timer_runs = False

    def see(self, block_id: bytes, block: wire.Block) -> None:
        """Keep a block that cannot be accepted any more but may be decided; a few at most."""
        self._seen.pop(block_id, None)
        self._seen[block_id] = block
        while len(self._seen) > MAX_SEEN:
            del self._seen[next(iter(self._seen))]

    def find(self, block_id: bytes) -> wire.Block | None:
        """The block of an id, from wherever it was seen at this height."""
        for known, block in self._blocks():
            if known == block_id:
                return block
        return None

    def _blocks(self) -> Iterator[tuple[bytes, wire.Block]]:
        if self.accepted is not None:
            yield self.accepted
        for lock in (self.lock, *self.locks.values()):
            if lock is not None:
                yield lock.block_id, lock.block
        yield from self._seen.items()

    # -------------------------------------------------------------- round changes

    def keep_lock(self, lock: Lock) -> None:
        """Keep a verified lock as long as somebody's latest ROUND_CHANGE names it.

        Call after that vote is in the book. Real locks are few: each took q PREPAREs.
        """
        self.locks.setdefault(lock.key, lock)
        named = {
            (change.prepared_round - 1, change.block_id)
            for change in self.book.round_changes().values()
        }
        self.locks = {key: kept for key, kept in self.locks.items() if key in named}

    def gate_open(self, me: int | None) -> bool:
        """Whether the current round's timer may start: q validators are known to be this far.

        PBFT section 4.5.2. Without it one dead and one lonely validator of four stall for ever
        after a partition heals, each time-out having made the other's capped wait miss its own.
        """
        if self.round == 0 or self.accepted is not None:
            return True
        changes = self.book.round_changes()
        there = {index for index, change in changes.items() if change.round >= self.round}
        if me is not None:
            there.add(me)
        return len(there) >= self.validators.quorum

    def ahead(self) -> int | None:
        """R4: the (f+1)-th highest round of the ROUND_CHANGEs, if that is above ours.

        One liar's huge number is among the f highest; an honest validator stands behind this.
        """
        rounds = sorted(
            (change.round for change in self.book.round_changes().values()), reverse=True
        )
        f = self.validators.f
        if len(rounds) > f and rounds[f] > self.round:
            return rounds[f]
        return None

    # -------------------------------------------------------------- verified votes

    def is_verified(self, vote: wire.SignedVote) -> bool:
        """Whether exactly this vote was verified at this height before."""
        return _verified_key(vote) in self._verified

    def set_verified(self, vote: wire.SignedVote) -> None:
        """Remember that; bounded."""
        if len(self._verified) < MAX_VERIFIED:
            self._verified.add(_verified_key(vote))


def _verified_key(vote: wire.SignedVote) -> VerifiedKey:
    return (
        vote.type,
        vote.height,
        vote.round,
        vote.validator,
        vote.block_id,
        vote.prepared_round,
        vote.validators_hash,
        vote.signature,
    )
