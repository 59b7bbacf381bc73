"""One core under test, and a test that plays all the other validators by hand.

Built on the toy application of the simulator; signatures are real ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fedchain_ledger.core import messages
from fedchain_ledger.core.consensus import Core
from fedchain_ledger.core.effects import (
    Accuse,
    Decide,
    Effect,
    JournalEntry,
    MessageReceived,
    Persist,
    Refused,
    Send,
    SendDecided,
    SetTimer,
    TimerFired,
    WorkArrived,
)
from fedchain_ledger.core.timing import Timing
from fedchain_ledger.core.votebook import COMMIT, PREPARE, PROPOSAL, ROUND_CHANGE
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import Certificate, header_id
from fedchain_proto.votes import sign_vote
from tests.sim.toy import CHAIN_ID, START_MS, ToyApplication, ToyStore, toy_keys, toy_set

TX = b"a transaction"


@dataclass
class Lock:
    """A prepared block, as a ROUND_CHANGE carries it."""

    round: int
    block: wire.Block
    prepares: list[wire.SignedVote]


@dataclass
class Bench:
    """Validator ``me`` of ``n``; everything that it does is kept in ``done``."""

    n: int = 4
    me: int = 1
    timing: Timing = field(default_factory=Timing)
    journal_lost: bool = False
    observer: bool = False

    def __post_init__(self) -> None:
        self.keys = toy_keys(self.n, fast=False)
        self.validators = toy_set(self.keys)
        self.now = START_MS
        self.store = ToyStore()
        self.done: list[Effect] = []
        self.restart(journal_lost=self.journal_lost)

    def restart(self, *, journal_lost: bool = False) -> list[Effect]:
        """A new process on the same disk."""
        self.app = ToyApplication(self.validators)
        self.app.replay(self.store.chain)
        self.core = Core(
            chain_id=CHAIN_ID,
            key=None if self.observer else self.keys[self.me],
            app=self.app,
            timing=self.timing,
            journal=tuple(self.store.journal.values()),
            journal_lost=journal_lost,
        )
        return self._run(self.core.start(self.now))

    def _run(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, Persist):
                self.store.persist(effect.entries)
            elif isinstance(effect, Decide):
                self.store.decide(effect.committed)  # type: ignore[arg-type]  # the toy's Stored
        self.done += effects
        return effects

    # -------------------------------------------------------------- what happens to it

    def hear(self, sender: int, *raw: bytes) -> list[Effect]:
        """Messages from one peer."""
        effects: list[Effect] = []
        for message in raw:
            effects += self._run(self.core.handle(MessageReceived(sender, message), self.now))
        return effects

    def fire(self, name: str, after_ms: int = 0) -> list[Effect]:
        """A timer elapses."""
        self.now += after_ms
        return self._run(self.core.handle(TimerFired(name), self.now))

    def work(self, transaction: bytes = TX, *, flush: bool = True) -> list[Effect]:
        """The pool gains a transaction."""
        self.app.submit(transaction)
        return self._run(self.core.handle(WorkArrived(flush), self.now))

    # -------------------------------------------------------------- what others say

    def block(self, proposer: int = 0, transaction: bytes = TX, time_ms: int = 0) -> wire.Block:
        """A block on the tip."""
        earliest = max(self.now, self.app._tip_ms + 1)
        return self.app._make([transaction], time_ms or earliest, proposer)

    def vote(
        self,
        type_: wire.VoteType.ValueType,
        who: int,
        round_: int,
        block: wire.Block | None,
        *,
        height: int = 0,
        prepared: int = 0,
        chain_id: bytes = CHAIN_ID,
    ) -> wire.SignedVote:
        """A vote, truly signed by ``who``."""
        return sign_vote(
            self.keys[who],
            chain_id,
            self.validators.hash,
            type_,
            height or self.core.height,
            round_,
            b"" if block is None else header_id(block.header),
            prepared,
            who,
        )

    def votes(
        self,
        type_: wire.VoteType.ValueType,
        who: Iterable[int],
        round_: int,
        block: wire.Block | None,
    ) -> list[wire.SignedVote]:
        """The same vote of several."""
        return [self.vote(type_, index, round_, block) for index in who]

    def say(
        self, type_: wire.VoteType.ValueType, who: Iterable[int], round_: int, block: wire.Block
    ) -> list[Effect]:
        """PREPAREs or COMMITs of several arrive, each from its signer."""
        effects: list[Effect] = []
        for vote in self.votes(type_, who, round_, block):
            effects += self.hear(vote.validator, messages.encode_vote(vote))
        return effects

    def proposal(
        self,
        block: wire.Block,
        round_: int = 0,
        *,
        leader: int | None = None,
        changes: Sequence[wire.SignedVote] = (),
        prepares: Sequence[wire.SignedVote] = (),
    ) -> bytes:
        """A PROPOSAL of the round's leader, or of somebody else."""
        leader = self.core._replica.state.leader(round_) if leader is None else leader
        vote = self.vote(PROPOSAL, leader, round_, block)
        return messages.encode_proposal(vote, block, changes, prepares)

    def propose(self, block: wire.Block, round_: int = 0, **justification: object) -> list[Effect]:
        """That PROPOSAL arrives."""
        raw = self.proposal(block, round_, **justification)  # type: ignore[arg-type]  # passed on
        leader = messages.parse(raw).proposal.vote.validator
        return self.hear(leader, raw)

    def lock(self, round_: int, block: wire.Block, who: Iterable[int]) -> Lock:
        """A block that those PREPAREd."""
        return Lock(round_, block, self.votes(PREPARE, who, round_, block))

    def change_vote(self, who: int, round_: int, lock: Lock | None = None) -> wire.SignedVote:
        """The vote of a ROUND_CHANGE."""
        if lock is None:
            return self.vote(ROUND_CHANGE, who, round_, None)
        return self.vote(ROUND_CHANGE, who, round_, lock.block, prepared=lock.round + 1)

    def change(self, who: int, round_: int, lock: Lock | None = None) -> list[Effect]:
        """A ROUND_CHANGE arrives."""
        vote = self.change_vote(who, round_, lock)
        block, prepares = (None, []) if lock is None else (lock.block, lock.prepares)
        return self.hear(who, messages.encode_round_change(vote, block, prepares))

    def decided(
        self, block: wire.Block, who: Iterable[int], round_: int = 0, sender: int = 0
    ) -> list[Effect]:
        """A DECIDED arrives, with those signatures."""
        raw = self.certificate(block, who, round_).encode()
        return self.hear(sender, messages.encode_decided(block, raw))

    def certificate(
        self,
        block: wire.Block,
        who: Iterable[int],
        round_: int = 0,
        *,
        commits: Sequence[wire.SignedVote] | None = None,
    ) -> Certificate:
        """A certificate of the current height with those signatures, or with those of votes."""
        if commits is None:
            commits = self.votes(COMMIT, who, round_, block)
        signatures = tuple((vote.validator, vote.signature) for vote in commits)
        block_id = header_id(block.header)
        return Certificate(self.core.height, round_, block_id, self.validators.hash, signatures)

    def decide(self, transaction: bytes = TX, proposer: int = 0) -> list[Effect]:
        """The next block arrives decided, by the first q others."""
        others = [index for index in range(self.n) if index != self.me]
        block = self.block(proposer, transaction)
        return self.decided(block, others[: self.validators.quorum], sender=others[0])


# ------------------------------------------------------------------ reading effects


def sent(effects: Iterable[Effect], type_: int | None = None) -> list[wire.SignedVote]:
    """The votes that were sent, of one type or of all, in order."""
    found = []
    for effect in effects:
        if isinstance(effect, Send):
            vote = messages.vote_of(messages.parse(effect.message))
            if vote is not None and type_ in (None, vote.type):
                found.append(vote)
    return found


def sent_messages(effects: Iterable[Effect], kind: str) -> list[wire.ConsensusMessage]:
    """The messages of one kind that were sent."""
    parsed = [messages.parse(e.message) for e in effects if isinstance(e, Send)]
    return [message for message in parsed if message.WhichOneof("body") == kind]


def decisions(effects: Iterable[Effect]) -> list[Decide]:
    """What was decided."""
    return [effect for effect in effects if isinstance(effect, Decide)]


def refusals(effects: Iterable[Effect]) -> list[Refused]:
    """What was refused."""
    return [effect for effect in effects if isinstance(effect, Refused)]


def accusations(effects: Iterable[Effect]) -> list[Accuse]:
    """Who was accused."""
    return [effect for effect in effects if isinstance(effect, Accuse)]


def served(effects: Iterable[Effect]) -> list[tuple[int, int]]:
    """(peer, height) of the blocks that were sent to laggards."""
    return [(e.to, e.height) for e in effects if isinstance(e, SendDecided)]


def timer(effects: Iterable[Effect], name: str) -> int | None:
    """When the last timer of a name was set to fire; None if it was not set."""
    times = [e.at_ms for e in effects if isinstance(e, SetTimer) and e.name == name]
    return times[-1] if times else None


def journaled(effects: Iterable[Effect]) -> list[JournalEntry]:
    """The rows that were persisted."""
    return [row for e in effects if isinstance(e, Persist) for row in e.entries]
