"""What one rule looks at, and what a rule is.

A rule judges one statement against the state that it would change and the block that would carry
it, nothing else, so that every validator and every auditor comes to the same answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from fedchain_ledger.core.state import ChainState, Run
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import Signed
from fedchain_proto.statements import Statement

# A deadline counts as passed only so long after it, in header time: honest clocks differ by less.
GRACE_MS = 5_000

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)

RunStatement: TypeAlias = (
    wire.RoundOpened | wire.UpdateSubmitted | wire.RoundClosed | wire.RunClosed
)


@dataclass(frozen=True, slots=True)
class Case(Generic[S_co]):
    """One statement before the rules.

    Attributes:
        state: After everything that stands before the statement in the log.
        signed: Its envelope, whose listed signatures all hold.
        said: The statement.
        height: Of the block that would carry it.
        time_ms: That block's header time, unix milliseconds.
    """

    state: ChainState
    signed: Signed
    said: S_co
    height: int
    time_ms: int

    @property
    def signers(self) -> tuple[bytes, ...]:
        """Key ids of the envelope, distinct and ascending."""
        return tuple(signer for signer, _ in self.signed.signatures)


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong, where it is about somebody whom the statement itself does not speak for.

    Attributes:
        why: In plain words.
        participant: Whom it concerns.
    """

    why: str
    participant: str


Verdict: TypeAlias = str | Complaint | None
"""What is wrong with a case, in plain words; None if nothing is."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One clause of the contract.

    Attributes:
        code: Stable kebab-case name, for programs.
        claim: The auditor's claim under which a violation is filed.
        judge: Finds what is wrong with a case. May rely on the rules that stand before it in the
            contract.
    """

    code: str
    claim: str
    judge: Callable[[Case[Any]], Verdict]


def rule(code: str, claim: str) -> Callable[[Callable[[Case[S]], Verdict]], Rule]:
    """Make a rule of the function that finds its violations."""

    def made(judge: Callable[[Case[S]], Verdict]) -> Rule:
        return Rule(code, claim, judge)

    return made


def has_passed(deadline_ms: int, time_ms: int) -> bool:
    """Whether a deadline counts as passed in a block of that header time."""
    return time_ms > deadline_ms + GRACE_MS


# ---------------------------------------------------------------- rules of more than one statement


@rule("wrong-chain", "C4")
def of_this_chain(case: Case[Statement]) -> str | None:
    """A statement signed for another chain counts for nothing here."""
    if case.said.chain_id == case.state.genesis.chain_id:
        return None
    return f"signed for the chain {case.said.chain_id.hex()[:12]}"


@rule("unknown-run", "C10")
def of_a_known_run(case: Case[RunStatement]) -> str | None:
    """A run exists from its RunOpened on."""
    return None if case.said.run in case.state.runs else f"no run {case.said.run.hex()[:12]}"


@rule("run-closed", "C10")
def of_an_open_run(case: Case[RunStatement]) -> str | None:
    """Nothing is added to a run that has ended."""
    return None if run_of(case).outcome is None else "the run has ended"


def run_of(case: Case[RunStatement]) -> Run:
    """Return the run that a statement names; `of_a_known_run` has let it through."""
    return case.state.runs[case.said.run]
