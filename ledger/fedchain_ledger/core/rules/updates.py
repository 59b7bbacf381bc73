"""What a data owner may put into the log: rules of UpdateSubmitted."""

from fedchain_ledger.core.rules.case import (
    Case,
    has_passed,
    of_a_known_run,
    of_an_open_run,
    of_this_chain,
    rule,
    run_of,
)
from fedchain_ledger.core.state import Round
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.hashing import short
from fedchain_proto.keys import key_id

Update = Case[wire.UpdateSubmitted]


def _round(case: Update) -> Round:
    """The open round that the update names; `for_the_open_round` has let it through."""
    current = run_of(case).open_round
    if current is None:
        raise AssertionError("rules out of order: for_the_open_round comes first")
    return current


@rule("unknown-member", "C4")
def by_a_member(case: Update) -> str | None:
    """The participant was admitted."""
    name = case.said.participant
    return None if name in case.state.members else f"{name} is no member"


@rule("wrong-role", "C4")
def who_owns_data(case: Update) -> str | None:
    """An aggregator does not train."""
    member = case.state.members[case.said.participant]
    return None if member.role == wire.ROLE_PARTICIPANT else f"{member.name} is no participant"


@rule("revoked", "C4")
def who_is_in_force(case: Update) -> str | None:
    """A revoked participant's signature does not count."""
    member = case.state.members[case.said.participant]
    return None if member.in_force else f"{member.name} was revoked"


@rule("wrong-signer", "C4")
def signed_by_its_owner(case: Update) -> str | None:
    """Signed with the key of the participant that it names: Bob cannot sign for Alice."""
    member = case.state.members[case.said.participant]
    if case.signers == (key_id(member.public_key),):
        return None
    return f"not signed by {member.name}, or not by {member.name} alone"


@rule("round-not-open", "C10")
def for_a_round_that_began(case: Update) -> str | None:
    """Nobody trains for a round that was not opened."""
    run = run_of(case)
    last = run.open_round.number if run.open_round else run.closed_rounds
    return None if case.said.round <= last else f"round {case.said.round} is not open"


@rule("late", "C10")
def for_the_open_round(case: Update) -> str | None:
    """What comes after a round's close is late."""
    closed = run_of(case).closed_rounds
    return None if case.said.round > closed else f"round {case.said.round} has closed"


@rule("not-in-cohort", "C10")
def of_the_cohort(case: Update) -> str | None:
    """Only whom the round asked may answer."""
    name = case.said.participant
    return None if _round(case).asks(name) else f"{name} is not in the round's cohort"


@rule("wrong-base-model", "C5")
def from_the_base_model(case: Update) -> str | None:
    """It started from the model that the round published."""
    base = _round(case).base_model
    if case.said.base_model == base:
        return None
    return f"trained from {short(case.said.base_model)}, but the round's base is {short(base)}"


@rule("wrong-instruction", "C5")
def as_instructed(case: Update) -> str | None:
    """It was trained under the instruction that all of the cohort got."""
    if case.said.instruction == _round(case).instruction:
        return None
    return "trained under another instruction than the round's"


@rule("second-update", "C11")
def one_voice(case: Update) -> str | None:
    """At most one update per participant and round."""
    name = case.said.participant
    return f"{name} has an update in this round" if name in _round(case).updates else None


@rule("weight-not-positive", "C7")
def weight_counts(case: Update) -> str | None:
    """A weight of no examples is no weight."""
    return None if case.said.num_examples > 0 else "it claims no training example"


@rule("weight-over-cap", "C7")
def weight_within_cap(case: Update) -> str | None:
    """Nobody outvotes all with a made-up number of examples."""
    cap = run_of(case).rules.max_examples_per_client
    if case.said.num_examples <= cap:
        return None
    return f"claims {case.said.num_examples} examples; the run allows {cap}"


@rule("late", "C10")
def in_time(case: Update) -> str | None:
    """The deadline is judged by header time, with the grace for clocks."""
    deadline = _round(case).deadline_ms
    if not has_passed(deadline, case.time_ms):
        return None
    return f"{case.time_ms - deadline} ms after the round's deadline"


SUBMITTED = (
    of_this_chain, by_a_member, who_owns_data, who_is_in_force, signed_by_its_owner,
    of_a_known_run, of_an_open_run, for_a_round_that_began, for_the_open_round, of_the_cohort,
    from_the_base_model, as_instructed, one_voice, weight_counts, weight_within_cap, in_time,
)  # fmt: skip
