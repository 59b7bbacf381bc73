"""The consensus core: chained QBFT, one height at a time, as a sans-IO state machine.

``handle(event, now_ms)`` takes one event and returns the effects that the shell must run in
order (effects.py). No clock, randomness, await, socket or logging. This file is the shell's
side, and patience and courtesy: routing, time-outs with their gate, R6. What is signed and
decided is replica.py's; the core never looks into a transaction (application.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fedchain_ledger.core import messages
from fedchain_ledger.core.application import Application
from fedchain_ledger.core.effects import (
    Effect,
    Event,
    JournalEntry,
    MessageReceived,
    Refused,
    SendDecided,
    SetTimer,
    TimerFired,
    WorkArrived,
)
from fedchain_ledger.core.future import Future
from fedchain_ledger.core.outbox import Outbox
from fedchain_ledger.core.pacing import Pacing
from fedchain_ledger.core.peers import MAX_PEERS, Peers
from fedchain_ledger.core.replica import Replica
from fedchain_ledger.core.roundchange import check_body
from fedchain_ledger.core.signing import HaltError, Voice
from fedchain_ledger.core.timing import Timing
from fedchain_ledger.core.votebook import COMMIT, PREPARE, ROUND_CHANGE
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate, header_id
from fedchain_proto.errors import EvidenceError, FedchainError
from fedchain_proto.keys import SigningKey
from fedchain_proto.votes import check_vote

__all__ = ["Core", "HaltError", "Status"]

ROUND_TIMER: Final = "round"
RESEND_TIMER: Final = "resend"
TIP_TIMER: Final = "tip"
CUT_TIMER: Final = "cut"


@dataclass(frozen=True)
class Status:
    """Where a core stands, for operators.

    Attributes:
        height: That is being decided; the tip is one below.
        round: The current one.
        leader: Index of its leader.
        accepted: Whether its proposal was accepted.
        locked_round: Round of the lock, if any.
        round_changes: Latest round that each validator asked for.
        timer_runs: Whether the round will time out.
        may_sign: Whether this is a validator that signs at this height.
    """

    height: int
    round: int
    leader: int
    accepted: bool
    locked_round: int | None
    round_changes: dict[int, int]
    timer_runs: bool
    may_sign: bool


class Core:
    """One validator, or an observer, of one chain."""

    def __init__(
        self,
        *,
        chain_id: bytes,
        key: SigningKey | None,
        app: Application,
        timing: Timing | None = None,
        journal: Iterable[JournalEntry] = (),
        journal_lost: bool = False,
    ) -> None:
        """Stand on the application's tip with what was signed above it.

        Args:
            chain_id: 32 bytes.
            key: The validator's; None, or one that is not in the set, observes.
            app: State at the durable tip.
            timing: Patience; the default suits a local network.
            journal: All rows of the store's journal.
            journal_lost: The shell knows that rows are missing: a restored backup, a new
                database under an old key. Sign nothing until that is safe (abstention.py).

        Raises:
            HaltError: The journal is damaged or belongs to another key.
        """
        self._chain_id: Final = chain_id
        self._app: Final = app
        self._timing: Final = timing or Timing()
        self._outbox: Final = Outbox()
        self._voice: Final = Voice(key, chain_id, journal, self._outbox)
        self._pacing: Final = Pacing(self._timing)
        self._replica: Final = Replica(chain_id, app, self._voice, self._pacing, self._outbox)
        self._peers: Final = Peers(self._timing)
        self._future: Final = Future()
        self._behind = False  # Somebody says that his tip is above ours.
        self._cut_ms: int | None = None
        self._entered = self.height  # The last height whose early messages were looked at.
        self._lost = journal_lost
        self._usable = True

    # -------------------------------------------------------------- the shell's side

    @property
    def height(self) -> int:
        """The height that is being decided."""
        return self._replica.state.number

    @property
    def round(self) -> int:
        """The current round."""
        return self._replica.state.round

    def leader(self) -> int:
        """Index of the current round's leader."""
        return self._replica.state.leader(self.round)

    def status(self) -> Status:
        """Where this core stands."""
        state = self._replica.state
        changes = state.book.round_changes()
        return Status(
            height=state.number,
            round=state.round,
            leader=self.leader(),
            accepted=state.accepted is not None,
            locked_round=None if state.lock is None else state.lock.round,
            round_changes={index: vote.round for index, vote in changes.items()},
            timer_runs=state.timer_runs,
            may_sign=self._replica.may_sign(),
        )

    def start(self, now_ms: int) -> list[Effect]:
        """Begin; call once, before any ``handle``."""
        self._usable = False
        if self._lost:
            self._voice.lose()
        self._outbox.emit(SetTimer(RESEND_TIMER, now_ms + self._timing.resend_ms))
        self._outbox.emit(SetTimer(TIP_TIMER, now_ms + self._timing.tip_ms))
        self._tell_tip(None)
        return self._advance(now_ms)

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """Take one event; the effects must be run in order, all of them, or the process ends.

        Raises:
            HaltError: This validator must stop; and so does every later call.
        """
        if not self._usable:
            raise HaltError("this core has stopped; build a new one from what is durable")
        self._usable = False  # An exception leaves half a step behind: nobody goes on from it.
        if isinstance(event, MessageReceived):
            self._on_message(event.sender, event.data, now_ms)
        elif isinstance(event, TimerFired):
            self._on_timer(event.name, now_ms)
        elif isinstance(event, WorkArrived):
            self._pacing.arrived(now_ms, event.flush)
        return self._advance(now_ms)

    def _advance(self, now_ms: int) -> list[Effect]:
        """Apply the rules until none applies; each height may bring up messages kept for it."""
        stepped = True
        while stepped:
            if self.height != self._entered:
                self._on_height(now_ms)
            stepped = self._replica.step(now_ms)
        self._arm(now_ms)
        self._usable = True
        return self._outbox.take()

    def _on_height(self, now_ms: int) -> None:
        self._peers.decided(self._entered, now_ms)
        self._entered = self.height
        self._behind = False
        for sender, data in self._future.take(self.height):
            self._on_message(sender, data, now_ms)

    # -------------------------------------------------------------- timers

    def _on_timer(self, name: str, now_ms: int) -> None:
        state = self._replica.state
        if name == ROUND_TIMER and state.timer_runs:
            state.timer_runs = False
            if self._replica.pending() and state.round < messages.MAX_ROUND:
                self._replica.move_on(state.round + 1)
        elif name == RESEND_TIMER:
            self._resend()
            self._outbox.emit(SetTimer(RESEND_TIMER, now_ms + self._timing.resend_ms))
        elif name == TIP_TIMER:
            self._tell_tip(None)
            self._outbox.emit(SetTimer(TIP_TIMER, now_ms + self._timing.tip_ms))
        elif name == CUT_TIMER:
            self._cut_ms = None

    def _resend(self) -> None:
        """R6: own messages of the current round, else a partition lasts for ever (fabric #1917)."""
        state = self._replica.state
        if self._replica.may_sign():
            for message in state.own:
                self._outbox.send(None, message)
        if self._behind or len(self._future) or state.book.certified is not None:
            self._tell_tip(None)

    def _arm(self, now_ms: int) -> None:
        """Let the round's timer run if the gate is open; stop it if there is nothing to decide."""
        replica, state = self._replica, self._replica.state
        if not (replica.may_sign() and replica.pending()):
            state.timer_runs = False
            return
        if not state.timer_runs and state.gate_open(replica.me()):
            state.timer_runs = True
            patience = self._timing.timeout_ms(state.round)
            self._outbox.emit(SetTimer(ROUND_TIMER, now_ms + patience))
        if state.round == 0 and state.accepted is None and replica.leads():
            due = self._pacing.due_ms(now_ms)
            if due > now_ms and due != self._cut_ms:
                self._cut_ms = due
                self._outbox.emit(SetTimer(CUT_TIMER, due))

    # -------------------------------------------------------------- messages

    def _on_message(self, sender: int, data: bytes, now_ms: int) -> None:
        """Route one message. Junk earns a line for the log, never an exception."""
        try:
            if not 0 <= sender < MAX_PEERS:
                raise EvidenceError("a peer of no number")
            message = messages.parse(data)
            vote = messages.vote_of(message)
            if vote is not None:
                self._on_vote_message(sender, vote, message, data, now_ms)
            elif message.HasField("tip"):
                self._on_tip(sender, message.tip.height, now_ms)
            elif message.HasField("decided"):
                self._on_decided(sender, message.decided)
        except HaltError:
            raise
        except FedchainError as error:
            self._outbox.emit(Refused(sender, str(error)))

    def _on_vote_message(
        self,
        sender: int,
        vote: wire.SignedVote,
        message: wire.ConsensusMessage,
        data: bytes,
        now_ms: int,
    ) -> None:
        """Look at height and signer before anything is verified."""
        state = self._replica.state
        if vote.validator == self._replica.me():
            if vote.height >= state.number:
                check_vote(vote, self._chain_id, state.validators)
                self._voice.heard_own(vote)
            return
        if vote.validator != sender:
            raise EvidenceError(f"a vote of validator {vote.validator} from peer {sender}")
        if vote.height < state.number:
            if self._peers.lags(sender, vote.height, now_ms):
                self._serve(sender, vote.height - 1, now_ms)
            return
        if vote.height > state.number:
            self._future.keep(state.number, vote, data, state.validators.f)
            return
        self._peers.at(sender, vote.height)
        if vote.round < state.round:
            self._answer_round(sender, now_ms)
        if message.HasField("round_change"):
            self._replica.on_round_change(message.round_change)
        elif vote.type in (PREPARE, COMMIT):
            self._replica.on_vote(vote)
        elif not self._is_repeated(vote, now_ms):
            self._replica.on_proposal(message.proposal, now_ms)

    def _is_repeated(self, vote: wire.SignedVote, now_ms: int) -> bool:
        """A proposal that was refused may hold later (a clock): looked at again, not too often."""
        book = self._replica.state.book
        known = book.get(vote.validator, vote.type, vote.round) is not None
        return (
            known
            and not book.wants(vote)
            and not self._peers.may_answer("proposal", vote.validator, now_ms)
        )

    # -------------------------------------------------------------- R6: courtesy and catch-up

    def _answer_round(self, peer: int, now_ms: int) -> None:
        """A peer in a lower round learns ours from our ROUND_CHANGE."""
        change = self._voice.journal.get(self.height, self.round, ROUND_CHANGE)
        if (
            change is not None
            and self._replica.may_sign()
            and self._peers.may_answer("round", peer, now_ms)
        ):
            self._outbox.send(peer, change)

    def _tell_tip(self, to: int | None) -> None:
        self._outbox.send(to, messages.encode_tip(self._app.tip_height))

    def _serve(self, peer: int, has: int, now_ms: int) -> None:
        """A peer at a lower height gets what was decided there."""
        for height in self._peers.serve(peer, has, self._app.tip_height, now_ms):
            self._outbox.emit(SendDecided(peer, height))

    def _on_tip(self, sender: int, height: int, now_ms: int) -> None:
        validators = self._replica.state.validators
        if sender < validators.n and sender != self._replica.me():
            self._voice.abstention.claim(sender, height)
            self._settle()
        tip = self._app.tip_height
        if height < tip:
            self._serve(sender, height, now_ms)
        elif height > tip:
            self._behind = True
            if self._peers.may_answer("tip", sender, now_ms):
                self._tell_tip(sender)

    def _on_decided(self, sender: int, decided: wire.Decided) -> None:
        """Catch up by one verified block; its peer is asked for the next.

        Raises:
            EvidenceError: A lie: no certificate of the set in force, or another body.
        """
        state = self._replica.state
        certificate = Certificate.decode(decided.certificate)
        if certificate.height != state.number:
            return
        if header_id(decided.block.header) != certificate.block_id:
            raise EvidenceError("a decided block that is not the certified one")
        certificate.verify(self._chain_id, state.validators)
        check_body(decided.block)
        if self._replica.me() in dict(certificate.signatures):
            self._voice.heard_commit(certificate)
        self._replica.finish(decided.block, certificate)
        self._settle()
        self._tell_tip(sender)

    def _settle(self) -> None:
        quorum = self._replica.state.validators.quorum
        row = self._voice.abstention.settle(self._app.tip_height, quorum)
        if row is not None:
            self._outbox.persist([row])
