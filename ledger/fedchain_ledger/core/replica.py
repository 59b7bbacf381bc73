"""Rules R1 to R5: what one validator accepts, signs, locks, decides and proposes.

Whatever a peer sends is looked up, then verified, then kept; ``step`` applies one rule, and is
called until none applies. Patience and courtesy (time-outs, resends, tips) are consensus.py's.

Castro & Liskov, OSDI 1999; Moniz, arXiv:2002.03613 (QBFT: values that carry no round).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedchain_ledger.core import messages
from fedchain_ledger.core.application import Application
from fedchain_ledger.core.effects import Decide, Refused
from fedchain_ledger.core.height import HeightState
from fedchain_ledger.core.outbox import Outbox
from fedchain_ledger.core.pacing import Pacing
from fedchain_ledger.core.roundchange import (
    Lock,
    check_body,
    check_justification,
    check_lock,
    choose,
)
from fedchain_ledger.core.signing import HaltError, Voice
from fedchain_ledger.core.timing import SLOT_HEIGHTS
from fedchain_ledger.core.votebook import COMMIT, PREPARE, PROPOSAL, ROUND_CHANGE, same_content
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate, header_id
from fedchain_proto.errors import EvidenceError, FedchainError
from fedchain_proto.votes import check_vote


class Replica:
    """The rules, applied to one height after the other.

    Attributes:
        state: What is known about the height that is being decided.
    """

    def __init__(
        self, chain_id: bytes, app: Application, voice: Voice, pacing: Pacing, outbox: Outbox
    ) -> None:
        """Stand on the application's tip with what the journal says.

        Raises:
            HaltError: The journal is damaged or belongs to another key.
        """
        self._chain_id: Final = chain_id
        self._app: Final = app
        self._voice: Final = voice
        self._pacing: Final = pacing
        self._outbox: Final = outbox
        self.state = self._fresh_height()
        self._restore()

    def me(self) -> int | None:
        """This validator's index at this height; None for an observer."""
        return self._voice.index(self.state.validators)

    def may_sign(self) -> bool:
        """Whether this validator signs at this height."""
        return self._voice.may_sign(self.state)

    def leads(self) -> bool:
        """Whether this validator leads the current round and may sign."""
        return self.state.leader(self.state.round) == self.me() and self.may_sign()

    def pending(self) -> bool:
        """Whether there is something to decide: without it no time-out runs, no block is empty."""
        state = self.state
        return (
            state.accepted is not None
            or state.lock is not None
            or len(state.book.round_changes()) > state.validators.f
            or self._app.has_work()
        )

    # -------------------------------------------------------------- heights

    def _fresh_height(self) -> HeightState:
        """s(h): the previous header's proposer stays for K heights, then comes the next slot."""
        height = self._app.tip_height + 1
        validators = self._app.validators
        slot = self._app.tip_proposer + (height % SLOT_HEIGHTS == 0)
        return HeightState(height, validators, slot % validators.n)

    def _restore(self) -> None:
        """Stand where the journal says that this validator stood (amnesia: Besu, hotstuff #15).

        Another leader's PROPOSAL is not kept: he resends it, and the journaled PREPARE lets no
        other one in.
        """
        state, journal = self.state, self._voice.journal
        signed = journal.messages(state.number)
        state.round = max((vote.round for vote, _, _ in signed), default=0)
        if (stored := journal.lock(state.number)) is not None:
            state.lock = _stored_lock(*stored)
        for vote, message, data in signed:
            if vote.validator != self.me():
                raise HaltError("the journal was written with another key or validator set")
            state.set_verified(vote)
            state.book.add(vote)
            if vote.type == PROPOSAL:
                state.see(vote.block_id, message.proposal.block)
            elif vote.prepared_round:
                state.keep_lock(_stored_lock(vote.prepared_round - 1, message.round_change))
            if vote.round < state.round:
                continue
            state.own.append(data)
            state.committed = state.committed or vote.type == COMMIT
            block = state.find(vote.block_id) if vote.type in (PROPOSAL, COMMIT) else None
            if block is not None:
                state.accepted = vote.block_id, block

    def _enter_height(self) -> None:
        self.state = self._fresh_height()
        if not self._app.has_work():
            self._pacing.reset()
        self._restore()
        if self.state.round == 0 and self.may_sign() and self._app.overlooked():
            self.move_on(1)  # This leader drops somebody's transactions: the next one, please.

    # -------------------------------------------------------------- what peers send

    def verify(self, vote: wire.SignedVote) -> None:
        """Check one vote of this height, once; tell what it proves against its signer.

        Raises:
            EvidenceError: It does not hold.
        """
        state = self.state
        if state.is_verified(vote):
            return
        check_vote(vote, self._chain_id, state.validators)
        state.set_verified(vote)
        if vote.validator == self.me():
            self._voice.heard_own(vote)
        else:
            self._outbox.emit(*state.book.contradictions(vote))

    def on_vote(self, vote: wire.SignedVote) -> None:
        """Count a PREPARE or a COMMIT (R2, R3 act on the count).

        Raises:
            EvidenceError: It does not hold.
        """
        if self._idle(vote) or not self.state.book.wants(vote):
            return
        self.verify(vote)
        self.state.book.add(vote)

    def _idle(self, vote: wire.SignedVote) -> bool:
        """A PREPARE of a lower round, or one more for what we COMMITted: no use verifying it."""
        state = self.state
        if vote.type != PREPARE or vote.round > state.round:
            return False
        accepted = None if state.accepted is None else state.accepted[0]
        return vote.round < state.round or (state.committed and vote.block_id == accepted)

    def on_round_change(self, change: wire.RoundChange) -> None:
        """Note how far a validator is, and its lock if that holds (R4, R5 act on it).

        Raises:
            EvidenceError: Vote or lock do not hold: without its certificate a ROUND_CHANGE says
                nothing (sawtooth-pbft; dedis/cothority #2079 forked).
        """
        state, vote = self.state, change.vote
        if vote.round < state.round or not state.book.wants(vote):
            return
        self.verify(vote)
        lock = None
        if vote.prepared_round:
            lock = state.locks.get((vote.prepared_round - 1, vote.block_id)) or check_lock(
                vote, change.block, change.prepares, state.validators.quorum, self.verify
            )
        state.book.add(vote)
        if lock is not None:
            state.keep_lock(lock)

    def on_proposal(self, proposal: wire.Proposal, now_ms: int) -> None:
        """R1: accept at most one proposal a round, of its leader, in a round not below ours.

        Raises:
            EvidenceError: The vote or the justification do not hold.
            FedchainError: The block does not.
        """
        state, vote = self.state, proposal.vote
        if vote.validator != state.leader(vote.round):
            raise EvidenceError(f"validator {vote.validator} does not lead round {vote.round}")
        if state.round == vote.round and state.accepted is not None:
            if state.book.wants(vote):
                self.verify(vote)  # A second proposal: its leader's to answer for.
            return
        if header_id(proposal.block.header) != vote.block_id:
            raise EvidenceError("a proposal of another block than its vote names")
        self.verify(vote)
        known = state.book.get(vote.validator, PROPOSAL, vote.round)
        state.book.add(vote)
        if known is not None and not same_content(known, vote):
            return
        if vote.round < state.round:
            self._see(vote.block_id, proposal.block)
            return
        signed = self._voice.journal.vote(state.number, vote.round, PREPARE)
        if signed is not None and signed.block_id != vote.block_id:
            return  # Accepted another one at this round before a restart.
        again = self._check_justification(proposal) or signed is not None
        # The clock and the proposer of a block that was validated before are not checked a second
        # time: after a partition none could be proposed again (indy-plenum #1488).
        proposer, clock_ms = (None, None) if again else (vote.validator, now_ms)
        try:
            self._app.validate(proposal.block, proposer=proposer, now_ms=clock_ms)
        except FedchainError:
            self._see(vote.block_id, proposal.block)  # It may be our clock that is wrong.
            raise
        if vote.round > state.round:
            state.enter(vote.round)
        self._accept(vote.block_id, proposal.block)

    def _see(self, block_id: bytes, block: wire.Block) -> None:
        """Keep what we do not PREPARE: COMMITs for it may come all the same."""
        check_body(block)
        self.state.see(block_id, block)

    def _check_justification(self, proposal: wire.Proposal) -> bool:
        """Whether the block was prepared before; raises EvidenceError if it may not be proposed."""
        if proposal.vote.round:
            quorum = self.state.validators.quorum
            return check_justification(proposal, quorum, self.verify)
        if proposal.round_changes or proposal.prepares:
            raise EvidenceError("a proposal of round 0 with a justification")
        return False

    # -------------------------------------------------------------- the rules

    def step(self, now_ms: int) -> bool:
        """Apply one rule; False when none applies."""
        return self._decide() or self._commit() or self._follow() or self._propose(now_ms)

    def _accept(self, block_id: bytes, block: wire.Block) -> None:
        """R1, its end: PREPARE the proposal of the current round."""
        self.state.accepted = block_id, block
        if self.may_sign():
            self._voice.speak(self.state, PREPARE, block_id, messages.encode_vote)

    def _commit(self) -> bool:
        """R2: q PREPAREs of the current round for the accepted block: lock, COMMIT.

        Prepared: the proposal plus q matching PREPAREs of one round, never of several.
        """
        state = self.state
        if state.accepted is None or state.committed or not self.may_sign():
            return False
        block_id, block = state.accepted
        prepares = state.book.quorum(PREPARE, state.round, block_id)
        if prepares is None:
            return False
        state.lock = Lock(state.round, block_id, block, tuple(prepares))
        row = messages.encode_lock(block, prepares)
        self._voice.speak(state, COMMIT, block_id, messages.encode_vote, lock=row)
        state.committed = True
        return True

    def _decide(self) -> bool:
        """R3: q COMMITs of one round, whichever, and the block."""
        state = self.state
        if state.book.certified is None:
            return False
        round_, block_id = state.book.certified
        block = state.find(block_id)
        commits = state.book.quorum(COMMIT, round_, block_id)
        if block is None or commits is None:
            return False  # DECIDED will bring it: our resends show that we lag.
        signatures = tuple((vote.validator, vote.signature) for vote in commits)
        hash_ = state.validators.hash
        self.finish(block, Certificate(state.number, round_, block_id, hash_, signatures))
        return True

    def finish(self, block: wire.Block, certificate: Certificate) -> None:
        """Make a block the tip whose certificate and body were checked, and go on above it.

        Raises:
            HaltError: It does not reproduce here.
        """
        try:
            block_id = self._app.validate(block, proposer=None, now_ms=None)
            committed = self._app.commit(block_id, certificate)
        except FedchainError as error:
            raise HaltError(
                f"block {certificate.height} is certified but does not reproduce here: {error}"
            ) from error
        self._outbox.emit(Decide(certificate.height, block_id, block, certificate, committed))
        self._voice.journal.prune(certificate.height)
        self._enter_height()

    def _follow(self) -> bool:
        """R4: f+1 signers in higher rounds, so an honest one: go where it is."""
        round_ = self.state.ahead()
        if round_ is None:
            return False
        self.move_on(round_)
        return True

    def move_on(self, round_: int) -> None:
        """R4: enter a round and ask for it, with the lock of whichever round that is."""
        state = self.state
        state.enter(round_)
        if not self.may_sign():
            return
        lock = state.lock
        block, prepares = (None, ()) if lock is None else (lock.block, lock.prepares)
        self._voice.speak(
            state,
            ROUND_CHANGE,
            b"" if lock is None else lock.block_id,
            lambda vote: messages.encode_round_change(vote, block, prepares),
            prepared=0 if lock is None else lock.round + 1,
        )
        if lock is not None:
            state.keep_lock(lock)

    def _propose(self, now_ms: int) -> bool:
        """R5: q ROUND_CHANGEs name the block or leave it free; in round 0 it is free."""
        state = self.state
        if state.accepted is not None or state.gave_up == state.round or not self.leads():
            return False
        if state.round == 0:
            cut = self._app.has_work() and self._pacing.due_ms(now_ms) <= now_ms
            return cut and self._propose_new((), now_ms)
        changes = choose(state.book.round_changes().values(), state.round, state.validators.quorum)
        if changes is None:
            return False
        highest = max(changes, key=lambda change: change.prepared_round)
        if not highest.prepared_round:
            return self._app.has_work() and self._propose_new(changes, now_ms)
        return self._propose_again(
            state.locks[highest.prepared_round - 1, highest.block_id], changes
        )

    def _propose_new(self, changes: Sequence[wire.SignedVote], now_ms: int) -> bool:
        me = self.state.leader(self.state.round)
        block = self._app.propose(now_ms, me)
        if block is None:
            return False
        self._pacing.reset()
        try:
            block_id = self._app.validate(block, proposer=me, now_ms=now_ms)
        except FedchainError as error:
            return self._give_up(error)
        self._lead(block_id, block, changes, ())
        return True

    def _propose_again(self, lock: Lock, changes: Sequence[wire.SignedVote]) -> bool:
        """The locked block: the same bytes, the same id, whoever leads now (besu #6613)."""
        try:
            self._app.validate(lock.block, proposer=None, now_ms=None)
        except FedchainError as error:
            return self._give_up(error)
        self._lead(lock.block_id, lock.block, changes, lock.prepares)
        return True

    def _give_up(self, error: FedchainError) -> bool:
        # Another leader may do better; trying again at every event would not.
        state = self.state
        state.gave_up = state.round
        why = f"cannot lead round {state.round} with this block: {error}"
        self._outbox.emit(Refused(state.leader(state.round), why))
        return False

    def _lead(
        self,
        block_id: bytes,
        block: wire.Block,
        changes: Sequence[wire.SignedVote],
        prepares: Sequence[wire.SignedVote],
    ) -> None:
        self._voice.speak(
            self.state,
            PROPOSAL,
            block_id,
            lambda vote: messages.encode_proposal(vote, block, changes, prepares),
        )
        self._accept(block_id, block)


def _stored_lock(round_: int, stored: wire.RoundChange) -> Lock:
    return Lock(round_, header_id(stored.block.header), stored.block, tuple(stored.prepares))
