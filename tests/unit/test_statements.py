"""Statements: each has one shape, and everything outside it is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from fedchain_proto import reasons
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import decode
from fedchain_proto.errors import EvidenceError, UsageError
from fedchain_proto.statements import (
    MAX_COHORT,
    TYPES,
    Policy,
    Statement,
    parse,
    payload_type,
    seal_statement,
)
from tests.builders import key

CHAIN, RUN, MODEL, OTHER, TX = (bytes([i]) * 32 for i in range(1, 6))
CRAFTED = bytes([1]) + bytes(31)  # a small-order public key


def member_admitted() -> wire.MemberAdmitted:
    return wire.MemberAdmitted(
        chain_id=CHAIN,
        name="client-00",
        role=wire.ROLE_PARTICIPANT,
        public_key=key(100).public,
        possession=bytes(64),
    )


def member_revoked() -> wire.MemberRevoked:
    return wire.MemberRevoked(chain_id=CHAIN, name="client-00", reason="left the consortium")


def run_opened() -> wire.RunOpened:
    policy = wire.RunPolicy(
        min_clients=3,
        max_examples_per_client=100_000,
        round_deadline_ms=600_000,
        rule="fedavg/v1",
    )
    return wire.RunOpened(
        chain_id=CHAIN, nonce=bytes(16), aggregator="aggregator", initial_model=MODEL, policy=policy
    )


def round_opened() -> wire.RoundOpened:
    return wire.RoundOpened(
        chain_id=CHAIN,
        run=RUN,
        round=1,
        base_model=MODEL,
        instruction=OTHER,
        cohort=["client-00", "client-01"],
    )


def update_submitted() -> wire.UpdateSubmitted:
    return wire.UpdateSubmitted(
        chain_id=CHAIN,
        run=RUN,
        round=1,
        participant="client-00",
        base_model=MODEL,
        instruction=OTHER,
        update=OTHER,
        num_examples=100,
        data_set=MODEL,
    )


def round_closed() -> wire.RoundClosed:
    return wire.RoundClosed(
        chain_id=CHAIN,
        run=RUN,
        round=1,
        outcome=wire.OUTCOME_AVERAGED,
        base_model=MODEL,
        included=[
            wire.Included(participant="client-00", transaction=TX, num_examples=100),
            wire.Included(participant="client-02", transaction=OTHER, num_examples=50),
        ],
        excluded=[
            wire.Exclusion(participant="client-01", reason=wire.REASON_SILENT),
            wire.Exclusion(
                participant="client-03", transaction=MODEL, reason=wire.REASON_NOT_FINITE
            ),
        ],
        total_weight=150,
        rule="fedavg/v1",
        model=OTHER,
    )


def run_closed() -> wire.RunClosed:
    return wire.RunClosed(
        chain_id=CHAIN, run=RUN, outcome=wire.RUN_OUTCOME_COMPLETED, rounds=1, model=OTHER
    )


def evidence() -> wire.Evidence:
    return wire.Evidence(
        chain_id=CHAIN,
        offence=wire.OFFENCE_TWO_UPDATES,
        accused=TX,
        first=b"first",
        second=b"second",
    )


GOOD: list[Callable[[], Statement]] = [
    member_admitted,
    member_revoked,
    run_opened,
    round_opened,
    update_submitted,
    round_closed,
    run_closed,
    evidence,
]


def read(statement: Statement) -> Statement:
    return parse(payload_type(statement), statement.SerializeToString())


@pytest.mark.parametrize("make", GOOD)
def test_good_statement_is_read(make: Callable[[], Statement]) -> None:
    """What was sealed is read back as it was."""
    statement = make()
    signed = decode(seal_statement(statement, key(1)))
    assert signed.payload_type == payload_type(type(statement))
    assert parse(signed.payload_type, signed.payload) == statement


def test_payload_types_are_settled() -> None:
    """Names on the wire never change; all statement types are there."""
    assert list(TYPES) == [
        f"application/vnd.fedchain.{kind}.v1+proto"
        for kind in (
            "member-admitted",
            "member-revoked",
            "run-opened",
            "round-opened",
            "update-submitted",
            "round-closed",
            "run-closed",
            "evidence",
        )
    ]


@pytest.mark.parametrize("kind", ["", "text/plain", "application/vnd.fedchain.evidence.v2+proto"])
def test_unknown_type_is_refused(kind: str) -> None:
    """A later version's statement is not read as this one's."""
    with pytest.raises(EvidenceError, match="type"):
        parse(kind, evidence().SerializeToString())


@pytest.mark.parametrize("make", GOOD)
def test_statement_is_not_read_as_another_type(make: Callable[[], Statement]) -> None:
    """The type is part of what is signed, and each type takes its own shape only."""
    statement = make()
    for kind in TYPES:
        if kind != payload_type(statement):
            with pytest.raises(EvidenceError):
                parse(kind, statement.SerializeToString())


BAD_NAMES = ["", "Client", "a b", "x" * 64, "a\n"]
BAD_DIGESTS = [b"", bytes(31), bytes(33)]
# (statement, field, values that it may not have); a dotted field goes into a message, an index
# into a list.
BAD_FIELDS: list[tuple[Callable[[], Statement], str, list[Any]]] = [
    *((make, "chain_id", BAD_DIGESTS) for make in GOOD),
    (member_admitted, "name", BAD_NAMES),
    (member_admitted, "role", [0, 3, 99, -1, 2**31 - 1]),
    (member_admitted, "public_key", [*BAD_DIGESTS, bytes(32), CRAFTED]),
    (member_admitted, "possession", [b"", bytes(63), bytes(65)]),
    (member_revoked, "name", BAD_NAMES),
    (member_revoked, "reason", ["x" * 201, "a\nb", "\x1b[31m", "\u202e"]),
    (run_opened, "nonce", [b"", bytes(15), bytes(17)]),
    (run_opened, "aggregator", BAD_NAMES),
    (run_opened, "initial_model", BAD_DIGESTS),
    (run_opened, "policy.min_clients", [0, MAX_COHORT + 1]),
    (run_opened, "policy.max_examples_per_client", [0, 2**29, 2**64 - 1]),
    (run_opened, "policy.round_deadline_ms", [0, 30 * 86_400_000 + 1, 2**64 - 1]),
    (run_opened, "policy.rule", ["", "fedavg", "FEDAVG/v1", "fedavg/v1\n", "x" * 100 + "/v1"]),
    (round_opened, "run", BAD_DIGESTS),
    (round_opened, "round", [0, 2**32, 2**64 - 1]),
    (round_opened, "base_model", BAD_DIGESTS),
    (round_opened, "instruction", BAD_DIGESTS),
    (update_submitted, "run", BAD_DIGESTS),
    (update_submitted, "round", [0, 2**32]),
    (update_submitted, "participant", BAD_NAMES),
    (update_submitted, "base_model", BAD_DIGESTS),
    (update_submitted, "instruction", BAD_DIGESTS),
    (update_submitted, "update", BAD_DIGESTS),
    (update_submitted, "data_set", [bytes(31), bytes(33)]),
    (round_closed, "run", BAD_DIGESTS),
    (round_closed, "round", [0, 2**32]),
    (round_closed, "outcome", [0, 3, -1]),
    (round_closed, "base_model", BAD_DIGESTS),
    (round_closed, "model", BAD_DIGESTS),
    (round_closed, "rule", ["", "fedavg"]),
    (round_closed, "total_weight", [2**53, 2**64 - 1]),
    (round_closed, "included.0.participant", [*BAD_NAMES, "client-01", "client-02", "client-03"]),
    (round_closed, "included.1.participant", ["a", "client-00", "client-01", "client-03"]),
    (round_closed, "included.1.transaction", BAD_DIGESTS),
    (round_closed, "included.1.num_examples", [0, 2**29, 2**64 - 1]),
    (round_closed, "excluded.0.participant", [*BAD_NAMES, "client-00", "client-03", "x"]),
    (round_closed, "excluded.1.transaction", [bytes(31), bytes(33)]),
    (round_closed, "excluded.1.reason", [0, 99, -1, 2**31 - 1]),
    (run_closed, "run", BAD_DIGESTS),
    (run_closed, "outcome", [0, 3, -1]),
    (run_closed, "rounds", [2**32, 2**64 - 1]),
    (run_closed, "model", BAD_DIGESTS),
    (evidence, "offence", [0, 99, -1]),
    (evidence, "accused", BAD_DIGESTS),
    (evidence, "first", [b"", b"second", b"third"]),
    (evidence, "second", [b"", b"first", b"aaa"]),
]


def place(message: Any, field: str) -> tuple[Any, str]:
    """Walk to the message that holds the last part of `field`."""
    *steps, last = field.split(".")
    for step in steps:
        message = message[int(step)] if step.isdigit() else getattr(message, step)
    return message, last


@pytest.mark.parametrize(
    ("make", "field", "values"), BAD_FIELDS, ids=[f"{m.__name__}-{f}" for m, f, _ in BAD_FIELDS]
)
def test_field_out_of_range_is_refused(
    make: Callable[[], Statement], field: str, values: list[Any]
) -> None:
    """Each field has its size and range; just outside is outside."""
    for value in values:
        statement = make()
        setattr(*place(statement, field), value)
        with pytest.raises(EvidenceError):
            read(statement)
        with pytest.raises(UsageError):
            seal_statement(statement, key(1))


def test_limits_themselves_pass() -> None:
    """Just inside is inside."""
    opened = run_opened()
    opened.policy.min_clients = MAX_COHORT
    opened.policy.max_examples_per_client = 2**29 - 1
    opened.policy.round_deadline_ms = 30 * 86_400_000
    read(opened)
    cohort = round_opened()
    cohort.round = 2**32 - 1
    cohort.cohort[:] = [f"client-{i:04}" for i in range(MAX_COHORT)]
    read(cohort)
    closed = round_closed()
    closed.total_weight = 2**53 - 1
    read(closed)
    update = update_submitted()
    update.data_set = b""
    read(update)


@pytest.mark.parametrize("weight", [0, 2**29, 2**64 - 1])
def test_any_weight_is_readable(weight: int) -> None:
    """A weight of nothing or over the cap must be readable, to be refused by its own name."""
    update = update_submitted()
    update.num_examples = weight
    assert read(update) == update


@pytest.mark.parametrize(
    "cohort",
    [[], ["b", "a"], ["a", "a"], ["a", "B"], [f"client-{i:04}" for i in range(MAX_COHORT + 1)]],
)
def test_cohort_is_ascending_and_bounded(cohort: list[str]) -> None:
    """A cohort is a set in canonical order, not empty and not endless."""
    statement = round_opened()
    statement.cohort[:] = cohort
    with pytest.raises(EvidenceError):
        read(statement)


def test_close_names_somebody_and_not_everybody() -> None:
    """A close of no one, or of more than a cohort holds, is none."""
    nobody = round_closed()
    del nobody.included[:], nobody.excluded[:]
    with pytest.raises(EvidenceError):
        read(nobody)
    crowd = round_closed()
    for i in range(MAX_COHORT):
        crowd.excluded.add(participant=f"d{i:05}", reason=wire.REASON_SILENT)
    with pytest.raises(EvidenceError):
        read(crowd)


def test_missing_policy_is_refused() -> None:
    """A run without rules is no run, and an empty message is not a missing one made good."""
    statement = run_opened()
    statement.ClearField("policy")
    with pytest.raises(EvidenceError, match="missing"):
        read(statement)


def messages_in(message: Message) -> list[Message]:
    """A message and all that it holds, at every depth."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                found += messages_in(inner)
    return found


UNKNOWN = [b"\xf8\x3f\x01", b"\xfa\x3f\x01x", b"\xf8\x3f\x00", b"\xfb\x3f\xfc\x3f"]


@pytest.mark.parametrize("make", GOOD)
def test_unknown_field_is_refused_at_every_depth(make: Callable[[], Statement]) -> None:
    """protobuf would keep it, signed and unread: a number, bytes, a default, a group."""
    for unknown in UNKNOWN:
        for number in range(len(messages_in(make()))):
            statement = make()
            messages_in(statement)[number].MergeFromString(unknown)
            with pytest.raises(EvidenceError):
                read(statement)


@pytest.mark.parametrize("make", GOOD)
def test_payload_has_nothing_superfluous(make: Callable[[], Statement]) -> None:
    """A field written twice, even with the same value, and cut or lengthened payloads."""
    statement = make()
    kind, raw = payload_type(statement), statement.SerializeToString()
    chain = raw[: 2 + 32]
    for form in (chain + raw, raw + chain, raw[:-1], raw + b"\0", raw + b"\x08\x00", b"", raw * 2):
        with pytest.raises(EvidenceError):
            parse(kind, form)


@given(st.sampled_from(sorted(TYPES)), st.binary(max_size=300))
def test_junk_earns_an_evidence_error(kind: str, raw: bytes) -> None:
    """Whatever comes, the reader says no and nothing else."""
    with pytest.raises(EvidenceError):
        parse(kind, raw)


@given(st.sampled_from(GOOD), st.data())
def test_damaged_statement_raises_nothing_else(
    make: Callable[[], Statement], data: st.DataObject
) -> None:
    """A spliced payload is another whole statement or an EvidenceError."""
    statement = make()
    raw = bytearray(statement.SerializeToString())
    at = data.draw(st.integers(0, len(raw)))
    raw[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    try:
        result = parse(payload_type(statement), bytes(raw))
    except EvidenceError:
        return
    assert len(result.SerializeToString()) == len(raw)


def test_oversized_payload_is_not_parsed() -> None:
    """The bound holds without an envelope around it, too."""
    with pytest.raises(EvidenceError, match="more than"):
        parse(payload_type(wire.Evidence), bytes((1 << 20) + 1))


# ---------------------------------------------------------------- policy


def test_policy_has_defaults() -> None:
    """The public class needs no argument; its time-out is kept in milliseconds."""
    assert Policy() == Policy(1, 100_000, 600.0)
    assert Policy(round_timeout_s=0.25).round_deadline_ms == 250


@pytest.mark.parametrize(
    "settings",
    [
        {"min_clients": 0},
        {"min_clients": -1},
        {"min_clients": MAX_COHORT + 1},
        {"min_clients": 1.0},
        {"min_clients": True},
        {"min_clients": "3"},
        {"max_examples_per_client": 0},
        {"max_examples_per_client": 2**29},
        {"max_examples_per_client": False},
        {"round_timeout_s": 0},
        {"round_timeout_s": -1.0},
        {"round_timeout_s": float("nan")},
        {"round_timeout_s": float("inf")},
        {"round_timeout_s": 30 * 86_400 + 1},
        {"round_timeout_s": True},
        {"round_timeout_s": "600"},
        {"round_timeout_s": None},
    ],
)
def test_senseless_policy_is_refused(settings: dict[str, Any]) -> None:
    """The caller hears which setting is wrong before anything is opened."""
    with pytest.raises(UsageError, match=next(iter(settings))):
        Policy(**settings)


# ---------------------------------------------------------------- reasons


def test_every_reason_has_code_and_words() -> None:
    """A report never shows a bare number; codes and words are distinct."""
    known = [reason for reason in wire.Reason.values() if reason]
    assert len({reasons.code(reason) for reason in known}) == len(known)
    assert len({reasons.describe(reason) for reason in known}) == len(known)
    assert reasons.code(wire.REASON_NOT_FINITE) == "not-finite"


def test_unknown_reason_is_shown_as_such() -> None:
    """A number that this version does not know raises nothing and is not proven."""
    assert reasons.code(wire.Reason.ValueType(99)) == "unknown-99"
    assert "99" in reasons.describe(wire.Reason.ValueType(99))
    assert not reasons.is_proven(wire.Reason.ValueType(99))


def test_only_what_others_can_check_is_proven() -> None:
    """Silence, arrays and sums can be looked at; the rest is the server's word."""
    proven = {reason for reason in wire.Reason.values() if reasons.is_proven(reason)}
    assert proven == {
        wire.REASON_SILENT,
        wire.REASON_NOT_FINITE,
        wire.REASON_WRONG_STRUCTURE,
        wire.REASON_WEIGHT_SUM,
    }
