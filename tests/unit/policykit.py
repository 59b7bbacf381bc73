"""Stages of a small chain, and statements on them, for tests of the contract.

Each stage is a state that some statements have led to; nobody may write to it but on a fork.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import Message

from fedchain_ledger.core import policy
from fedchain_ledger.core.policy import CONTRACT, GRACE_MS
from fedchain_ledger.core.rules.case import Case
from fedchain_ledger.core.state import ChainState
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import Signed, decode
from fedchain_proto.hashing import sha256
from fedchain_proto.keys import SigningKey
from fedchain_proto.statements import Statement
from fedchain_proto.votes import sign_vote
from tests.unit.chainkit import (
    ALICE,
    BOB,
    CAROL,
    MODEL_0,
    MODEL_2,
    SERVER,
    START_MS,
    Consortium,
    Scribe,
    key,
    tx_id,
)

S = TypeVar("S", bound=Message)
WHO = Consortium(threshold=2)
RUN_SAID = WHO.run_opened()
RUN = tx_id(RUN_SAID)
SECOND_SERVER = "second-server"
DEADLINE_MS = 60_000  # after the round's opening
PAST = DEADLINE_MS + GRACE_MS + 1_000  # after START_MS: later than any deadline here


@cache
def admitted() -> ChainState:
    """Alice, Bob and Carol own data, two servers aggregate, Dan was revoked."""
    scribe = Scribe(WHO)
    scribe.write(*WHO.admissions(), WHO.admitted(SECOND_SERVER, wire.ROLE_AGGREGATOR))
    scribe.write(WHO.admitted("dan"), WHO.admitted("old-server", wire.ROLE_AGGREGATOR))
    scribe.write(WHO.revoked("dan"), WHO.revoked("old-server"))
    return scribe.chain.state


def after(state: ChainState, *said: Statement, after_ms: int = 0) -> ChainState:
    """Apply statements that the rules let by, each signed by whom it names."""
    fork = state.fork()
    for one in said:
        signed = decode(WHO.seal(one))
        time_ms = START_MS + after_ms
        policy.apply(fork, signed, one, height=fork.height + 1, time_ms=time_ms)
    return fork


@cache
def running() -> ChainState:
    return after(admitted(), RUN_SAID)


@cache
def round_open() -> ChainState:
    return after(running(), WHO.round_opened(RUN))


FROM_ALICE, FROM_BOB = WHO.update(RUN, ALICE), WHO.update(RUN, BOB, examples=30)


@cache
def trained() -> ChainState:
    """Alice's and Bob's updates stand in the log, Carol's does not."""
    return after(round_open(), FROM_ALICE, FROM_BOB)


def close(**changes: Any) -> wire.RoundClosed:
    """The close of `trained` that the rules let by once the deadline has passed."""
    excluded = [(CAROL, b"", wire.REASON_SILENT)]
    said = WHO.closed(RUN, [FROM_ALICE, FROM_BOB], excluded=excluded)
    return with_fields(said, **changes)


@cache
def closed() -> ChainState:
    return after(trained(), close(), after_ms=PAST)


@cache
def ended() -> ChainState:
    return after(closed(), WHO.run_closed(RUN))


def with_fields(said: S, **changes: Any) -> S:
    """A copy of a statement with other fields."""
    other = type(said).FromString(said.SerializeToString())
    for name, value in changes.items():
        if isinstance(value, list):
            other.ClearField(name)
            getattr(other, name).extend(value)
        else:
            setattr(other, name, value)
    return other


def excluding(*entries: tuple[str, bytes, wire.Reason.ValueType]) -> wire.RoundClosed:
    """A close that leaves these out, and includes who remains of Alice and Bob."""
    out = {name for name, _, _ in entries}
    updates = [update for update in (FROM_ALICE, FROM_BOB) if update.participant not in out]
    said = WHO.closed(RUN, updates, excluded=entries)
    if len(updates) < 2:
        return with_fields(said, outcome=wire.OUTCOME_ABANDONED, model=MODEL_0)
    return said


@dataclass(frozen=True)
class Breach:
    """A statement that breaks one rule and none before it."""

    code: str
    claim: str
    state: Callable[[], ChainState]
    said: Statement
    signers: tuple[SigningKey, ...] = ()
    after_ms: int = 1_000

    def signed(self) -> Signed:
        return decode(WHO.seal(self.said, *self.signers))

    def judge(self, tally: Counter[str] | None = None) -> None:
        state = self.state()
        policy.check(
            state,
            self.signed(),
            self.said,
            height=state.height + 1,
            time_ms=START_MS + self.after_ms,
            tally=tally,
        )

    def first_broken(self) -> int:
        """Which rule of its kind it breaks, by place in the contract."""
        state = self.state()
        case: Case[Any] = Case(
            state, self.signed(), self.said, state.height + 1, START_MS + self.after_ms
        )
        rules = CONTRACT[type(self.said)]
        return next(at for at, rule in enumerate(rules) if rule.judge(case) is not None)


def votes(
    first: tuple[int, int, bytes, int], second: tuple[int, int, bytes, int], index: int = 1
) -> list[bytes]:
    """Two votes (type, round, block, prepared) of one validator, ascending by their bytes."""
    chain, validators = WHO.genesis.chain_id, WHO.genesis.validators
    return sorted(
        sign_vote(
            WHO.validator_keys[index], chain, validators.hash, wire.VoteType.ValueType(kind), 7,
            round_, block, prepared, index,
        ).SerializeToString()
        for kind, round_, block, prepared in (first, second)
    )  # fmt: skip


def evidence(offence: wire.Offence.ValueType, accused: SigningKey, parts: list[bytes]) -> Any:
    first, second = sorted(parts)
    return wire.Evidence(
        chain_id=WHO.genesis.chain_id,
        offence=offence,
        accused=accused.key_id,
        first=first,
        second=second,
    )


BLOCK_A, BLOCK_B = sha256(b"block a"), sha256(b"block b")
PREPARE, COMMIT, CHANGE = (
    int(wire.VOTE_TYPE_PREPARE),
    int(wire.VOTE_TYPE_COMMIT),
    int(wire.VOTE_TYPE_ROUND_CHANGE),
)
LIAR = WHO.validator_keys[1]
DOUBLE_VOTE = evidence(
    wire.OFFENCE_DOUBLE_VOTE, LIAR, votes((PREPARE, 0, BLOCK_A, 0), (PREPARE, 0, BLOCK_B, 0))
)
AMNESIA = evidence(
    wire.OFFENCE_AMNESIA, LIAR, votes((COMMIT, 1, BLOCK_A, 0), (CHANGE, 2, BLOCK_B, 1))
)
TWO_UPDATES = evidence(
    wire.OFFENCE_TWO_UPDATES,
    key(ALICE),
    [WHO.seal(FROM_ALICE), WHO.seal(with_fields(FROM_ALICE, num_examples=11))],
)
TWO_CLOSES = evidence(
    wire.OFFENCE_TWO_CLOSES,
    key(SERVER),
    [WHO.seal(close()), WHO.seal(close(model=MODEL_2))],
)
ERIN = WHO.admitted("erin")
