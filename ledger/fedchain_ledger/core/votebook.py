"""What validators signed at one height, as far as it can still matter, and who contradicts himself.

Bounded: per validator the highest few rounds of PREPARE, COMMIT and PROPOSAL, and the latest
ROUND_CHANGE only. A liar's huge round numbers push out nothing but the liar's own votes
(FISCO #2312), and signers are counted, never messages. Holds verified votes only; verifies none.
"""

from __future__ import annotations

from fedchain_ledger.core.effects import Accuse
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.trust import ValidatorSet

KEPT_ROUNDS = 4  # per validator and type; an honest one votes in rising rounds
MAX_ACCUSATIONS = 8  # per validator and height; one is enough to remove it

PROPOSAL = wire.VOTE_TYPE_PROPOSAL
PREPARE = wire.VOTE_TYPE_PREPARE
COMMIT = wire.VOTE_TYPE_COMMIT
ROUND_CHANGE = wire.VOTE_TYPE_ROUND_CHANGE


def same_content(a: wire.SignedVote, b: wire.SignedVote) -> bool:
    """Whether two votes of one (validator, height, round, type) say the same."""
    return a.block_id == b.block_id and a.prepared_round == b.prepared_round


class VoteBook:
    """The votes of one height. Rules: R2 and R3 count here, R4 and the gate read round changes."""

    def __init__(self, validators: ValidatorSet) -> None:
        self._validators = validators
        self._votes: dict[tuple[int, int], dict[int, wire.SignedVote]] = {}
        self._accused: dict[int, set[tuple[int, int, int]]] = {}  # (offence, type, round) told
        # Round and block of the latest quorum of COMMITs; the block is always the same.
        self.certified: tuple[int, bytes] | None = None

    # -------------------------------------------------------------- look up

    def get(self, validator: int, type_: int, round_: int) -> wire.SignedVote | None:
        """The vote of one journal key, if it is kept."""
        return self._votes.get((validator, type_), {}).get(round_)

    def wants(self, vote: wire.SignedVote) -> bool:
        """Whether verifying this vote could teach anything: it is new, or a contradiction.

        Cheap on purpose: it is asked before the signature is looked at.
        """
        rounds = self._votes.get((vote.validator, vote.type), {})
        known = rounds.get(vote.round)
        if known is not None:
            key = (wire.OFFENCE_DOUBLE_VOTE, vote.type, vote.round)
            return not same_content(known, vote) and not self._told(vote.validator, key)
        return len(rounds) < _kept(vote.type) or vote.round > min(rounds)

    def signers(self, type_: int, round_: int, block_id: bytes) -> list[wire.SignedVote]:
        """Votes of one type, round and block: distinct validators, ascending."""
        found = (self.get(index, type_, round_) for index in range(self._validators.n))
        return [vote for vote in found if vote is not None and vote.block_id == block_id]

    def quorum(self, type_: int, round_: int, block_id: bytes) -> list[wire.SignedVote] | None:
        """Exactly q such votes, of the lowest indices; None if there are fewer."""
        votes = self.signers(type_, round_, block_id)
        q = self._validators.quorum
        return votes[:q] if len(votes) >= q else None

    def round_changes(self) -> dict[int, wire.SignedVote]:
        """The latest ROUND_CHANGE of each validator that sent one."""
        latest = {}
        for index in range(self._validators.n):
            if rounds := self._votes.get((index, ROUND_CHANGE)):
                latest[index] = next(iter(rounds.values()))
        return latest

    # -------------------------------------------------------------- write

    def add(self, vote: wire.SignedVote) -> list[Accuse]:
        """Keep a verified vote; return what it proves against its signer."""
        accusations = self.contradictions(vote)
        rounds = self._votes.setdefault((vote.validator, vote.type), {})
        rounds.setdefault(vote.round, vote)
        while len(rounds) > _kept(vote.type):
            del rounds[min(rounds)]
        if vote.type == COMMIT and self.quorum(COMMIT, vote.round, vote.block_id) is not None:
            self.certified = (vote.round, vote.block_id)
        return accusations

    def contradictions(self, vote: wire.SignedVote) -> list[Accuse]:
        """What a verified vote proves together with those kept; each offence is told once."""
        found = []
        known = self.get(vote.validator, vote.type, vote.round)
        if known is not None and not same_content(known, vote):
            found += self._accuse(wire.OFFENCE_DOUBLE_VOTE, known, vote)
        if vote.type == ROUND_CHANGE:
            for commit in self._votes.get((vote.validator, COMMIT), {}).values():
                found += self._amnesia(commit, vote)
        elif vote.type == COMMIT:
            for change in self._votes.get((vote.validator, ROUND_CHANGE), {}).values():
                found += self._amnesia(vote, change)
        return found

    def _amnesia(self, commit: wire.SignedVote, change: wire.SignedVote) -> list[Accuse]:
        """A COMMIT at r1, then a ROUND_CHANGE to r2 > r1 that claims a lock below r1, or none."""
        # prepared_round is the lock's round + 1.
        if commit.round < change.round and change.prepared_round <= commit.round:
            return self._accuse(wire.OFFENCE_AMNESIA, commit, change)
        return []

    def _accuse(
        self, offence: wire.Offence.ValueType, one: wire.SignedVote, other: wire.SignedVote
    ) -> list[Accuse]:
        key = (offence, one.type, one.round)
        if self._told(one.validator, key):
            return []
        self._accused.setdefault(one.validator, set()).add(key)
        first, second = sorted((one.SerializeToString(), other.SerializeToString()))
        return [Accuse(offence, self._validators[one.validator].key_id, first, second)]

    def _told(self, validator: int, key: tuple[int, int, int]) -> bool:
        """Whether that was accused before, or enough is known of this validator."""
        told = self._accused.get(validator, set())
        return key in told or len(told) >= MAX_ACCUSATIONS


def _kept(type_: int) -> int:
    return 1 if type_ == ROUND_CHANGE else KEPT_ROUNDS
