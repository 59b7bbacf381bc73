"""What this validator has signed: the journal's mirror, and the refusal to sign twice.

The rows that a ``Core`` starts from are the store's; every later row goes through ``record``
here and, as a ``Persist`` effect, into the store, before its message is sent. The store refuses
a second, different row for one key as well: this is the belt, that are the braces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fedchain_ledger.core.abstention import Abstention
from fedchain_ledger.core.effects import JournalEntry, JournalType
from fedchain_ledger.core.height import HeightState
from fedchain_ledger.core.messages import parse, parse_lock, vote_of
from fedchain_ledger.core.outbox import Outbox
from fedchain_ledger.core.votebook import same_content
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate
from fedchain_proto.errors import EvidenceError, FedchainError
from fedchain_proto.keys import SigningKey
from fedchain_proto.trust import ValidatorSet
from fedchain_proto.votes import sign_vote


class HaltError(FedchainError):
    """Going on could break a promise. React: stop this validator, repair, start again."""


class Journal:
    """Rows by (height, round, type), of heights that are not decided."""

    def __init__(self, entries: Iterable[JournalEntry]) -> None:
        self._rows: dict[tuple[int, int, int], bytes] = {}
        for entry in entries:
            self.record(entry)

    def get(self, height: int, round_: int, type_: int) -> bytes | None:
        """The exact bytes of one key, or None."""
        return self._rows.get((height, round_, type_))

    def vote(self, height: int, round_: int, type_: int) -> wire.SignedVote | None:
        """The vote in the row of one key, or None.

        Raises:
            HaltError: The row is damaged.
        """
        key = (height, round_, type_)
        data = self._rows.get(key)
        return None if data is None else _stored(data, key)[0]

    def record(self, entry: JournalEntry) -> None:
        """Remember a row.

        Raises:
            HaltError: Another one has its key.
        """
        key = (entry.height, entry.round, entry.type)
        if self._rows.setdefault(key, entry.data) != entry.data:
            raise HaltError(
                f"refusing to sign a second, different {JournalType(entry.type).name} for"
                f" height {entry.height}, round {entry.round}"
            )

    def prune(self, height: int) -> None:
        """Forget what was signed up to a decided height."""
        for key in [key for key in self._rows if key[0] <= height]:
            del self._rows[key]

    def messages(self, height: int) -> list[tuple[wire.SignedVote, wire.ConsensusMessage, bytes]]:
        """Vote, message and bytes of all that was signed at a height, by round, then type.

        Raises:
            HaltError: A row is damaged.
        """
        return [
            (*_stored(self._rows[key], key), self._rows[key])
            for key in sorted(self._rows)
            if key[0] == height and key[2] != JournalType.LOCK
        ]

    def lock(self, height: int) -> tuple[int, wire.RoundChange] | None:
        """The round and content of the highest lock at a height.

        Raises:
            HaltError: The row is damaged.
        """
        rounds = [r for (h, r, t) in self._rows if h == height and t == JournalType.LOCK]
        if not rounds:
            return None
        round_ = max(rounds)
        try:
            return round_, parse_lock(self._rows[height, round_, JournalType.LOCK])
        except EvidenceError as error:
            raise _damaged(error) from error


def _stored(
    data: bytes, key: tuple[int, int, int]
) -> tuple[wire.SignedVote, wire.ConsensusMessage]:
    try:
        message = parse(data)
    except EvidenceError as error:
        raise _damaged(error) from error
    vote = vote_of(message)
    if vote is None or (vote.height, vote.round, vote.type) != key:
        raise _damaged(f"the row {key} holds another message")
    return vote, message


def _damaged(why: object) -> HaltError:
    # tendermint #3295: a damaged journal that is skipped is amnesia.
    return HaltError(f"the journal is damaged: {why}")


class Voice:
    """Signs this validator's messages: journal first, then send. The only place that signs."""

    def __init__(
        self,
        key: SigningKey | None,
        chain_id: bytes,
        entries: Iterable[JournalEntry],
        outbox: Outbox,
    ) -> None:
        rows = tuple(entries)
        self._key = key
        self._chain_id = chain_id
        self._outbox = outbox
        self.journal = Journal(row for row in rows if row.type != JournalType.LOST)
        self.abstention = Abstention(rows)

    def index(self, validators: ValidatorSet) -> int | None:
        """This validator's place in a set; None for an observer."""
        return None if self._key is None else validators.index_of(self._key.key_id)

    def may_sign(self, state: HeightState) -> bool:
        """Whether this is a validator of the height that has not lost its journal."""
        return self.index(state.validators) is not None and not self.abstention.silent_at(
            state.number
        )

    def speak(
        self,
        state: HeightState,
        type_: wire.VoteType.ValueType,
        block_id: bytes,
        encode: Callable[[wire.SignedVote], bytes],
        *,
        prepared: int = 0,
        lock: bytes | None = None,
    ) -> None:
        """Sign, journal and send to all one message of the current round.

        What the journal holds for its key is sent again, verbatim, and nothing is signed.

        Args:
            state: The height and round that it is for.
            type_: Of the vote.
            block_id: That it names; empty for none.
            encode: Makes the message from the vote.
            prepared: ROUND_CHANGE with a lock: its round + 1.
            lock: COMMIT: the lock's row, written in the same transaction.

        Raises:
            HaltError: It would contradict the journal.
        """
        index = self.index(state.validators)
        if self._key is None or index is None or self.abstention.silent_at(state.number):
            raise HaltError("about to sign without a key, a place in the set or a whole journal")
        key = (state.number, state.round, type_)
        vote, message = self.journal.vote(*key), self.journal.get(*key)
        if vote is None or message is None:
            vote = sign_vote(
                self._key,
                self._chain_id,
                state.validators.hash,
                type_,
                state.number,
                state.round,
                block_id,
                prepared,
                index,
            )
            message = encode(vote)
            rows = [JournalEntry(*key, message)]
            if lock is not None:
                rows.append(JournalEntry(state.number, state.round, JournalType.LOCK, lock))
            for row in rows:
                self.journal.record(row)
            self._outbox.persist(rows)
        elif (vote.block_id, vote.prepared_round) != (block_id, prepared):
            raise HaltError(f"about to contradict what was signed for height, round, type {key}")
        state.set_verified(vote)
        state.book.add(vote)
        state.own.append(message)
        self._outbox.send(None, message)

    def heard_own(self, vote: wire.SignedVote) -> None:
        """Compare a verified vote of our own above the tip, come from outside, with the journal.

        One that the journal lacks proves that it is not the journal that we signed with: a
        restored backup or a failed-over replica is amnesia too.
        """
        known = self.journal.vote(vote.height, vote.round, vote.type)
        if known is None or not same_content(known, vote):
            self.lose()

    def heard_commit(self, certificate: Certificate) -> None:
        """The same for a verified certificate above the tip that has our signature."""
        known = self.journal.vote(certificate.height, certificate.round, JournalType.COMMIT)
        if known is None or known.block_id != certificate.block_id:
            self.lose()

    def lose(self) -> None:
        """The journal is lost: stop signing (abstention.py), durably."""
        row = self.abstention.begin()
        if row is not None:
            self._outbox.persist([row])
