"""How a run begins, goes from round to round, and ends: RunOpened, RoundOpened, RunClosed."""

from fedchain_ledger.core.rules.case import (
    Case,
    Complaint,
    RunStatement,
    Verdict,
    of_a_known_run,
    of_an_open_run,
    of_this_chain,
    rule,
    run_of,
)
from fedchain_ledger.core.state import Member
from fedchain_proto import average
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.hashing import short
from fedchain_proto.keys import key_id


def _not_signed_by(signers: tuple[bytes, ...], member: Member) -> str | None:
    if signers == (key_id(member.public_key),):
        return None
    return f"not signed by {member.name}, or not by {member.name} alone"


# ---------------------------------------------------------------- RunOpened


@rule("unknown-member", "C4")
def by_a_member(case: Case[wire.RunOpened]) -> str | None:
    """The aggregator was admitted."""
    name = case.said.aggregator
    return None if name in case.state.members else f"{name} is no member"


@rule("wrong-role", "C4")
def who_may_aggregate(case: Case[wire.RunOpened]) -> str | None:
    """A data owner cannot make itself the server."""
    member = case.state.members[case.said.aggregator]
    return None if member.role == wire.ROLE_AGGREGATOR else f"{member.name} is no aggregator"


@rule("revoked", "C4")
def who_is_in_force(case: Case[wire.RunOpened]) -> str | None:
    """A revoked aggregator opens nothing."""
    member = case.state.members[case.said.aggregator]
    return None if member.in_force else f"{member.name} was revoked"


@rule("wrong-signer", "C4")
def signed_by_its_aggregator(case: Case[wire.RunOpened]) -> str | None:
    """Signed with the key of the aggregator that it names, and no other."""
    return _not_signed_by(case.signers, case.state.members[case.said.aggregator])


@rule("run-exists", "C10")
def new(case: Case[wire.RunOpened]) -> str | None:
    """One opening, one run: else a replay would start it again from round 1."""
    return "this run was opened before" if case.signed.tx_id in case.state.runs else None


@rule("unknown-rule", "C10")
def under_a_known_rule(case: Case[wire.RunOpened]) -> str | None:
    """An aggregation rule that no auditor can recompute is not agreed to."""
    named = case.said.policy.rule
    return None if named == average.RULE else f"{named} is not known here; {average.RULE} is"


# ---------------------------------------------------------------- every later statement of the run


@rule("revoked", "C4")
def while_aggregator_in_force(case: Case[RunStatement]) -> str | None:
    """A revoked aggregator says nothing more, about its own runs either."""
    member = case.state.members[run_of(case).aggregator]
    return None if member.in_force else f"{member.name} was revoked"


@rule("wrong-signer", "C4")
def signed_by_the_aggregator(case: Case[RunStatement]) -> str | None:
    """Signed with the key of the run's own aggregator, and no other."""
    return _not_signed_by(case.signers, case.state.members[run_of(case).aggregator])


BY_AGGREGATOR = (
    of_this_chain, of_a_known_run, while_aggregator_in_force, signed_by_the_aggregator,
)  # fmt: skip

# ---------------------------------------------------------------- RoundOpened


@rule("round-open", "C10")
def one_at_a_time(case: Case[wire.RoundOpened]) -> str | None:
    """A round opens when the one before it has closed."""
    current = run_of(case).open_round
    return None if current is None else f"round {current.number} is still open"


@rule("round-order", "C5")
def next_number(case: Case[wire.RoundOpened]) -> str | None:
    """Rounds count from 1 without gaps; a number is used once, also by an abandoned round."""
    expected = run_of(case).closed_rounds + 1
    return None if case.said.round == expected else f"round {case.said.round}, not {expected}"


@rule("wrong-base-model", "C5")
def from_last_model(case: Case[wire.RoundOpened]) -> str | None:
    """The base model is the previous round's output, or the run's initial model."""
    model = run_of(case).model
    if case.said.base_model == model:
        return None
    return f"starts from {short(case.said.base_model)}, but the run's model is {short(model)}"


@rule("cohort-not-admitted", "C10")
def cohort_of_participants(case: Case[wire.RoundOpened]) -> Verdict:
    """Everybody in the cohort is an admitted data owner, not revoked."""
    members = case.state.members
    for name in case.said.cohort:
        member = members.get(name)
        if member is None or member.role != wire.ROLE_PARTICIPANT or not member.in_force:
            return Complaint(f"{name} is no participant in force", name)
    return None


@rule("cohort-too-small", "C10")
def cohort_can_average(case: Case[wire.RoundOpened]) -> str | None:
    """A round that cannot reach the run's fewest updates is not begun."""
    least = run_of(case).rules.min_clients
    size = len(case.said.cohort)
    return None if size >= least else f"a cohort of {size}; the run needs {least} updates"


# ---------------------------------------------------------------- RunClosed


@rule("round-open", "C10")
def complete_between_rounds(case: Case[wire.RunClosed]) -> str | None:
    """Only an abort leaves a round open."""
    current = run_of(case).open_round
    if case.said.outcome != wire.RUN_OUTCOME_COMPLETED or current is None:
        return None
    return f"completed while round {current.number} is open"


@rule("wrong-rounds", "C10")
def counted_rounds(case: Case[wire.RunClosed]) -> str | None:
    """It says how many rounds have closed."""
    closed = run_of(case).closed_rounds
    return None if case.said.rounds == closed else f"says {case.said.rounds} rounds of {closed}"


@rule("wrong-model", "C5")
def with_last_model(case: Case[wire.RunClosed]) -> str | None:
    """The run's model is its last round's output."""
    model = run_of(case).model
    if case.said.model == model:
        return None
    return f"ends with {short(case.said.model)}, but the run's model is {short(model)}"


RUN_OPENED = (
    of_this_chain, by_a_member, who_may_aggregate, who_is_in_force, signed_by_its_aggregator, new,
    under_a_known_rule,
)  # fmt: skip
ROUND_OPENED = (
    *BY_AGGREGATOR, of_an_open_run, one_at_a_time, next_number, from_last_model,
    cohort_of_participants, cohort_can_average,
)  # fmt: skip
RUN_CLOSED = (
    *BY_AGGREGATOR, of_an_open_run, complete_between_rounds, counted_rounds, with_last_model,
)  # fmt: skip
