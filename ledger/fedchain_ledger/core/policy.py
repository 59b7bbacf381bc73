"""The ledger's contract: who may say what, when, and with whose keys; and what then follows.

One table, from kind of statement to rules in order. Validators admit and vote by it, the audit
replays by it, so that what one lets in the other lets pass. Each rule names the auditor's claim
that it serves. A rule may rely on those before it; the first that is broken speaks.
"""

from collections import Counter
from typing import Any, Final

from fedchain_ledger.core.rules import closes, evidence, members, runs, updates
from fedchain_ledger.core.rules.case import GRACE_MS, Case, Complaint, Rule, has_passed
from fedchain_ledger.core.rules.evidence import evidence_key
from fedchain_ledger.core.state import ChainState, CommittedUpdate, Member, Round, Run, RunRules
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import Signed
from fedchain_proto.errors import RuleError
from fedchain_proto.statements import Statement

__all__ = ["CONTRACT", "GRACE_MS", "Rule", "ViolationError", "apply", "check", "has_passed"]

CONTRACT: Final[dict[type[Any], tuple[Rule, ...]]] = {
    wire.MemberAdmitted: members.ADMITTED,
    wire.MemberRevoked: members.REVOKED,
    wire.RunOpened: runs.RUN_OPENED,
    wire.RoundOpened: runs.ROUND_OPENED,
    wire.UpdateSubmitted: updates.SUBMITTED,
    wire.RoundClosed: closes.CLOSED,
    wire.RunClosed: runs.RUN_CLOSED,
    wire.Evidence: evidence.BROUGHT,
}


class ViolationError(RuleError):
    """A statement breaks a rule of the contract, whose code and claim this carries.

    Attributes:
        participant: Whom it concerns, if that is not whoever the statement speaks for.
    """

    def __init__(self, complaint: str | Complaint, rule: Rule) -> None:
        why = complaint.why if isinstance(complaint, Complaint) else complaint
        super().__init__(why, code=rule.code, claim=rule.claim)
        self.participant = complaint.participant if isinstance(complaint, Complaint) else None


def check(
    state: ChainState,
    signed: Signed,
    statement: Statement,
    *,
    height: int,
    time_ms: int,
    tally: Counter[str] | None = None,
) -> None:
    """Judge one statement by every rule of its kind.

    Args:
        state: After all that stands before it; not changed.
        signed: Its envelope; every listed signature was verified under the key that it names.
        statement: Its payload, parsed.
        height: Of the block that carries it.
        time_ms: That block's header time, unix milliseconds.
        tally: Gets 1 added for every claim that a rule of this statement served.

    Raises:
        ViolationError: The first broken rule.
    """
    case = Case(state, signed, statement, height, time_ms)
    rules = CONTRACT[type(statement)]
    for rule in rules:
        complaint = rule.judge(case)
        if complaint is not None:
            raise ViolationError(complaint, rule)
    if tally is not None:
        tally.update({rule.claim for rule in rules})


def apply(
    state: ChainState,
    signed: Signed,
    statement: Statement,
    *,
    height: int,
    time_ms: int,
    tally: Counter[str] | None = None,
) -> None:
    """Judge one statement as `check` does, then write down in `state` what it says.

    Raises:
        ViolationError: As `check`; `state` is then as it was.
    """
    check(state, signed, statement, height=height, time_ms=time_ms, tally=tally)
    match statement:
        case wire.MemberAdmitted():
            member = Member(statement.name, statement.role, statement.public_key, height)
            state.admit_member(member)
        case wire.MemberRevoked():
            state.revoke_member(statement.name, height)
        case wire.RunOpened():
            state.open_run(_run(signed.tx_id, statement))
        case wire.RoundOpened():
            state.open_round(statement.run, _round(state, statement, height, time_ms))
        case wire.UpdateSubmitted():
            state.record_update(statement.run, _update(signed.tx_id, statement))
        case wire.RoundClosed():
            state.close_round(statement.run, statement.model)
        case wire.RunClosed():
            state.close_run(statement.run, statement.outcome)
        case wire.Evidence():
            state.keep_evidence(evidence_key(state, statement), signed.tx_id)


def _run(run_id: bytes, said: wire.RunOpened) -> Run:
    policy = said.policy
    rules = RunRules(
        policy.min_clients, policy.max_examples_per_client, policy.round_deadline_ms, policy.rule
    )
    return Run(run_id, said.aggregator, rules, said.initial_model, said.initial_model)


def _round(state: ChainState, said: wire.RoundOpened, height: int, time_ms: int) -> Round:
    return Round(
        number=said.round,
        base_model=said.base_model,
        instruction=said.instruction,
        cohort=tuple(said.cohort),
        opened_height=height,
        deadline_ms=time_ms + state.runs[said.run].rules.round_deadline_ms,
    )


def _update(tx_id: bytes, said: wire.UpdateSubmitted) -> CommittedUpdate:
    return CommittedUpdate(said.participant, tx_id, said.num_examples, said.update)
