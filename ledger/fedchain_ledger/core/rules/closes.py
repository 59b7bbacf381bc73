"""How a round ends: rules of RoundClosed. No update that stands in the log can be dropped here."""

from fedchain_ledger.core.rules.case import (
    Case,
    Complaint,
    Verdict,
    has_passed,
    of_an_open_run,
    rule,
    run_of,
)
from fedchain_ledger.core.rules.runs import BY_AGGREGATOR
from fedchain_ledger.core.state import Round
from fedchain_proto import reasons
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.hashing import short

Close = Case[wire.RoundClosed]

# No update of which these are true gets into the log: of one that stands there they are false.
_REFUTED_BY_THE_LOG = frozenset({
    wire.REASON_SILENT, wire.REASON_BAD_SIGNATURE, wire.REASON_UNKNOWN_PARTICIPANT,
    wire.REASON_WRONG_RUN, wire.REASON_WRONG_ROUND, wire.REASON_WRONG_BASE_MODEL,
    wire.REASON_WRONG_INSTRUCTION, wire.REASON_WEIGHT_NOT_POSITIVE, wire.REASON_WEIGHT_OVER_CAP,
})  # fmt: skip
# Faults of arrays, which the kept arrays of a signed update must show to an auditor.
_NEEDS_AN_UPDATE = reasons.PROVEN - {wire.REASON_SILENT}


def _round(case: Close) -> Round:
    """The open round that the close names; `of_the_open_round` has let it through."""
    current = run_of(case).open_round
    if current is None:
        raise AssertionError("rules out of order: of_the_open_round comes first")
    return current


@rule("second-close", "C11")
def closes_once(case: Close) -> str | None:
    """A round closes once."""
    closed = run_of(case).closed_rounds
    return None if case.said.round > closed else f"round {case.said.round} was closed before"


@rule("round-not-open", "C10")
def of_the_open_round(case: Close) -> str | None:
    """Only the open round closes."""
    current = run_of(case).open_round
    if current is not None and current.number == case.said.round:
        return None
    return f"round {case.said.round} is not open"


@rule("wrong-base-model", "C5")
def on_the_base_model(case: Close) -> str | None:
    """It names the model that the round began with."""
    base = _round(case).base_model
    if case.said.base_model == base:
        return None
    return f"closes on {short(case.said.base_model)}, but the round's base is {short(base)}"


@rule("wrong-rule", "C10")
def under_the_runs_rule(case: Close) -> str | None:
    """The aggregation rule does not change in the middle of a run."""
    agreed = run_of(case).rules.rule
    return None if case.said.rule == agreed else f"averaged by {case.said.rule}, not by {agreed}"


@rule("cohort-not-covered", "C8")
def accounts_for_everybody(case: Close) -> Verdict:
    """Included plus excluded are the cohort, each member once."""
    said, cohort = case.said, _round(case).cohort
    named = [entry.participant for entry in said.included]
    named += [entry.participant for entry in said.excluded]
    missing = sorted(set(cohort).difference(named))
    if missing:
        return Complaint(f"says nothing of {missing[0]}{_and_more(len(missing))}", missing[0])
    strangers = sorted(set(named).difference(cohort))
    if strangers:
        who = f"{strangers[0]}{_and_more(len(strangers))}"
        return Complaint(f"names {who}, not of the cohort", strangers[0])
    return None if len(named) == len(cohort) else "names a member of the cohort twice"


@rule("dropped-update", "C8")
def drops_nothing(case: Close) -> Verdict:
    """Every update in the log is in the result, or is excluded under its own transaction."""
    updates = _round(case).updates
    for entry in case.said.excluded:
        update = updates.get(entry.participant)
        if update is not None and entry.transaction != update.tx_id:
            why = f"hides the update of {entry.participant}, {short(update.tx_id)}"
            return Complaint(why, entry.participant)
    return None


@rule("invented-update", "C8")
def invents_nothing(case: Close) -> Verdict:
    """What is named stands in the log: no receipt, no weight."""
    updates = _round(case).updates
    for participant, transaction in (
        *((entry.participant, entry.transaction) for entry in case.said.included),
        *((entry.participant, entry.transaction) for entry in case.said.excluded),
    ):
        update = updates.get(participant)
        if transaction and (update is None or update.tx_id != transaction):
            why = f"no update {short(transaction)} of {participant} stands in the log"
            return Complaint(why, participant)
    return None


@rule("wrong-weight", "C7")
def weighs_as_signed(case: Close) -> Verdict:
    """The weight that counts is the one that the participant signed."""
    updates = _round(case).updates
    for entry in case.said.included:
        signed = updates[entry.participant].num_examples
        if entry.num_examples != signed:
            why = f"weighs {entry.participant} with {entry.num_examples}, who signed {signed}"
            return Complaint(why, entry.participant)
    return None


@rule("wrong-total", "C7")
def adds_up(case: Close) -> str | None:
    """The total weight is the sum of the included ones."""
    total = sum(entry.num_examples for entry in case.said.included)
    if case.said.total_weight == total:
        return None
    return f"says a total weight of {case.said.total_weight}; it is {total}"


@rule("unfounded-reason", "C8")
def gives_reasons_that_can_be(case: Close) -> Verdict:
    """A reason must not be one that the log refutes, nor one that nothing kept could show."""
    for entry in case.said.excluded:
        excludes = f"excludes {entry.participant} as {reasons.code(entry.reason)}, but"
        if entry.transaction and entry.reason in _REFUTED_BY_THE_LOG:
            return Complaint(f"{excludes} its update stands in the log", entry.participant)
        if not entry.transaction and entry.reason in _NEEDS_AN_UPDATE:
            return Complaint(f"{excludes} no update of it stands in the log", entry.participant)
    return None


@rule("silent-early", "C10")
def calls_silent_after_deadline(case: Close) -> Verdict:
    """Nobody is silent before the deadline has passed."""
    deadline = _round(case).deadline_ms
    if has_passed(deadline, case.time_ms):
        return None
    for entry in case.said.excluded:
        if entry.reason == wire.REASON_SILENT:
            why = f"calls {entry.participant} silent before the deadline had passed"
            return Complaint(why, entry.participant)
    return None


@rule("too-few-updates", "C10")
def averages_enough(case: Close) -> str | None:
    """An average has at least the run's fewest updates."""
    least, have = run_of(case).rules.min_clients, len(case.said.included)
    if case.said.outcome != wire.OUTCOME_AVERAGED or have >= least:
        return None
    return f"averages {have} updates; the run needs {least}"


@rule("enough-updates", "C10")
def abandons_in_need(case: Close) -> str | None:
    """A round is abandoned only for want of updates."""
    least, have = run_of(case).rules.min_clients, len(case.said.included)
    if case.said.outcome != wire.OUTCOME_ABANDONED or have < least:
        return None
    return f"abandoned although {have} updates hold; the run needs {least}"


@rule("abandoned-model", "C5")
def abandons_unchanged(case: Close) -> str | None:
    """An abandoned round's model is its base model."""
    said = case.said
    if said.outcome != wire.OUTCOME_ABANDONED or said.model == said.base_model:
        return None
    return "abandoned, and yet with a new model"


def _and_more(count: int) -> str:
    return "" if count == 1 else f" and {count - 1} more"


CLOSED = (
    *BY_AGGREGATOR, closes_once, of_an_open_run, of_the_open_round, on_the_base_model,
    under_the_runs_rule, accounts_for_everybody, drops_nothing, invents_nothing, weighs_as_signed,
    adds_up, gives_reasons_that_can_be, calls_silent_after_deadline, averages_enough,
    abandons_in_need, abandons_unchanged,
)  # fmt: skip
