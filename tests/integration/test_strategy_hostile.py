"""`LedgerFedAvg` among hostile clients, and on a ledger that says no."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)

from fedchain_clients import OwnerHome
from fedchain_proto import flowkeys
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.envelope import decode
from fedchain_proto.errors import RuleError
from fedchain_proto.keys import SigningKey
from fedchain_proto.statements import Policy, Statement, parse, seal_statement
from tests.fakegrid import Client
from tests.strategykit import Attack, World, honest, initial


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# ---------------------------------------------------------------- hostile clients


def key_of(context: Context) -> SigningKey:
    return OwnerHome(str(context.node_config[flowkeys.NODE_CONFIG_HOME])).key


def put(reply: Message, envelope: bytes) -> Message:
    reply.content[flowkeys.RECORD] = ConfigRecord({flowkeys.UPDATE: envelope})
    return reply


def resigned(**changes: Any) -> Attack:
    """Sign the update anew with some fields changed."""

    def attack(reply: Message, message: Message, context: Context) -> Message:
        signed = decode(reply.content[flowkeys.RECORD][flowkeys.UPDATE])  # type: ignore[arg-type]
        update = parse(signed.payload_type, signed.payload)
        assert isinstance(update, wire.UpdateSubmitted)
        for name, value in changes.items():
            setattr(update, name, value)
        return put(reply, seal_statement(update, key_of(context)))

    return attack


def flip_a_bit(reply: Message, message: Message, context: Context) -> Message:
    raw = bytearray(reply.content[flowkeys.RECORD][flowkeys.UPDATE])  # type: ignore[arg-type]
    raw[-1] ^= 1
    return put(reply, bytes(raw))


def replay_round_one(reply: Message, message: Message, context: Context) -> Message:
    home = OwnerHome(str(context.node_config[flowkeys.NODE_CONFIG_HOME]))
    opened = decode(reply.content[flowkeys.RECORD][flowkeys.UPDATE])  # type: ignore[arg-type]
    update = parse(opened.payload_type, opened.payload)
    assert isinstance(update, wire.UpdateSubmitted)
    first = home.journal.signed(update.chain_id, update.run, 1)
    assert first is not None
    return put(reply, first.raw)


def swap_arrays(reply: Message, message: Message, context: Context) -> Message:
    reply.content["arrays"] = initial()
    return reply


def drop_arrays(reply: Message, message: Message, context: Context) -> Message:
    del reply.content["arrays"]
    return reply


def drop_record(reply: Message, message: Message, context: Context) -> Message:
    del reply.content[flowkeys.RECORD]
    return reply


def lie_about_bytes(reply: Message, message: Message, context: Context) -> Message:
    reply.content["arrays"]["w"] = Array("float32", (10**6,), "numpy.ndarray", b"\x93NUMPY")  # type: ignore[index]
    return reply


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (flip_a_bit, "bad-signature"),
        (resigned(participant="client-02"), "bad-signature"),
        (resigned(participant="stranger"), "unknown-participant"),
        (resigned(participant="aggregator"), "unknown-participant"),
        (resigned(run=bytes(32)), "wrong-run"),
        (resigned(chain_id=bytes(32)), "wrong-run"),
        (resigned(round=7), "wrong-round"),
        (resigned(base_model=bytes(32)), "wrong-base-model"),
        (resigned(instruction=bytes(32)), "wrong-instruction"),
        (resigned(num_examples=0), "weight-not-positive"),
        (resigned(num_examples=1001), "weight-over-cap"),
        (drop_record, "malformed-reply"),
        (resigned(update=bytes(32)), "digest-mismatch"),
        (swap_arrays, "digest-mismatch"),
        (drop_arrays, "arrays-missing"),
        (lie_about_bytes, "malformed-reply"),
    ],
)
def test_hostile_client_is_left_out_by_name_and_the_run_goes_on(
    world: World, attack: Attack, reason: str
) -> None:
    """Each falsified update costs its sender, nobody else, and the model is that of the others."""
    world.misbehave(attack)
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=1)
    (record,) = strategy.rounds
    assert [(e.participant, e.reason) for e in record.exclusions] == [("client-01", reason)]
    assert [u.participant for u in record.updates] == ["client-00", "client-02"]
    (closed,) = world.said(wire.RoundClosed)
    (out,) = closed.excluded
    # Anchored before its arrays were judged: then the close names the transaction.
    stands = reason in {"digest-mismatch", "arrays-missing"} or attack is lie_about_bytes
    assert bool(out.transaction) == stands


def test_replayed_envelope_is_of_the_wrong_round(world: World) -> None:
    """An update of round 1 does not count in round 2, though it is genuine."""
    world.misbehave(replay_round_one, first_round=2)
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=2)
    assert strategy.rounds[0].exclusions == ()
    (out,) = strategy.rounds[1].exclusions
    assert (out.participant, out.reason) == ("client-01", "wrong-round")


def poison(value: np.ndarray) -> Client:
    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        reply.content["arrays"]["w"] = Array(value)  # type: ignore[index]
        return reply

    return app


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.full((2, 2), np.nan, np.float32), "not-finite"),
        (np.full((2, 2), -np.inf, np.float32), "not-finite"),
        (np.zeros((4,), np.float32), "wrong-structure"),
        (np.zeros((2, 2), np.float64), "wrong-structure"),
    ],
)
def test_faulty_arrays_are_left_out_with_proof(
    world: World, value: np.ndarray, reason: str
) -> None:
    """What an owner really signed and cannot be averaged is anchored, kept, and provably out."""
    world.apps["client-01"] = poison(value)
    strategy = world.strategy()
    result = strategy.start(world.grid(), initial(), num_rounds=1)
    (out,) = strategy.rounds[0].exclusions
    assert (out.participant, out.reason, out.proven) == ("client-01", reason, True)
    assert np.isfinite(result.arrays["w"].numpy()).all()
    update = next(u for u in world.said(wire.UpdateSubmitted) if u.participant == "client-01")
    assert world.store.has(update.update)


def test_client_that_raises_is_named_with_its_words(world: World) -> None:
    """A crash is the crashed one's; its words are shown without their control characters."""

    def broken(message: Message, context: Context) -> Message:
        raise OSError("disk \x1b[2J gone")

    world.apps["client-02"] = broken
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=1)
    (out,) = strategy.rounds[0].exclusions
    assert (out.participant, out.reason, out.proven) == ("client-02", "client-failed", False)
    assert "disk" in out.words
    assert "\x1b" not in out.words


def test_client_that_declines_is_named_with_its_words(world: World) -> None:
    """An app that names no weight is declined by its own mod, and the record says so."""

    def weightless(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        reply.content["metrics"] = MetricRecord({"num-examples": 2.5})
        return reply

    world.apps["client-00"] = weightless
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=1)
    (out,) = strategy.rounds[0].exclusions
    assert (out.participant, out.reason) == ("client-00", "client-refused")
    assert "whole number" in out.words


def test_silent_client_overran(world: World) -> None:
    """Who does not answer is out by name; before the deadline that is the server's word."""
    grid = world.grid()
    strategy = world.strategy(
        on_round=lambda record: grid.silent.clear(), on_reply=lambda n, name: None
    )
    original = grid.send_and_receive

    def deaf(messages: Iterable[Message], *, timeout: float | None = None) -> Any:
        listed = list(messages)
        if flowkeys.HELLO not in listed[0].content[flowkeys.RECORD]:
            grid.silent.add(2)
        return original(listed, timeout=timeout)

    grid.send_and_receive = deaf  # type: ignore[method-assign]
    strategy.start(grid, initial(), num_rounds=1)
    (out,) = strategy.rounds[0].exclusions
    assert (out.participant, out.reason) == ("client-01", "client-overran")


def test_odd_metrics_cost_the_metrics_and_nothing_else(world: World) -> None:
    """A client with other metric names, or lists of other lengths, still counts in the model."""

    def odd(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        reply.content["metrics"] = MetricRecord({"num-examples": 11, "other": [1.0, 2.0]})
        return reply

    world.apps["client-01"] = odd
    strategy = world.strategy()
    result = strategy.start(world.grid(), initial(), num_rounds=1)
    assert len(strategy.rounds[0].updates) == 3
    assert dict(result.train_metrics_clientapp[1]) == {"loss": pytest.approx(2 * 12 / 22)}


def test_odd_evaluations_cost_the_evaluation_and_nothing_else(world: World) -> None:
    """An evaluation with a weight that is none is left out of the mean; the run goes on."""

    def odd(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "evaluate":
            metrics = MetricRecord({"num-examples": float("nan"), "mean": 1e9})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)
        return honest(message, context)

    world.apps["client-01"] = odd
    strategy = world.strategy(fraction_evaluate=1.0)
    result = strategy.start(world.grid(), initial(), num_rounds=1)
    assert float(result.evaluate_metrics_clientapp[1]["mean"]) < 10  # type: ignore[arg-type]


# ---------------------------------------------------------------- a ledger that says no


def test_update_refused_by_the_ledger_is_out_with_its_reason(world: World) -> None:
    """What the ledger does not record has no weight: no receipt, no weight."""

    def refuse(statement: Statement) -> RuleError | None:
        if isinstance(statement, wire.UpdateSubmitted) and statement.participant == "client-01":
            return RuleError("7 ms after the deadline", code="late")
        return None

    world.ledger.refuse = refuse
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=1)
    (out,) = strategy.rounds[0].exclusions
    assert (out.participant, out.reason) == ("client-01", "late")
    assert "7 ms" in out.words


def test_update_that_went_its_own_way_is_taken_up_in_the_close(world: World) -> None:
    """An owner may submit directly. If the server never got the arrays, the close that forgot this
    update is refused, and the next one names it."""
    envelopes: list[bytes] = []

    def straight_to_the_ledger(reply: Message, message: Message, context: Context) -> Message:
        envelopes.append(reply.content[flowkeys.RECORD][flowkeys.UPDATE])  # type: ignore[arg-type]
        world.ledger.submit(envelopes[-1:])
        raise ConnectionError("lost on the way")

    world.misbehave(straight_to_the_ledger)

    def refuse(statement: Statement) -> RuleError | None:
        if isinstance(statement, wire.RoundClosed) and not any(
            out.transaction for out in statement.excluded
        ):
            return RuleError("hides the update", code="dropped-update", claim="C8")
        return None

    world.ledger.refuse = refuse
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=1)
    (out,) = strategy.rounds[0].exclusions
    assert (out.participant, out.reason) == ("client-01", "arrays-missing")
    (closed,) = world.said(wire.RoundClosed)
    assert closed.excluded[0].transaction == decode(envelopes[0]).tx_id


def test_second_update_in_the_log_is_a_conflict_with_evidence(world: World) -> None:
    """An owner that gave the ledger another update than the server is out, and both updates are
    laid open."""
    others: list[bytes] = []

    def two_voices(reply: Message, message: Message, context: Context) -> Message:
        mine = reply.content[flowkeys.RECORD][flowkeys.UPDATE]
        other = resigned(num_examples=999)(
            Message(RecordDict(dict(reply.content)), reply_to=message), message, context
        )
        others.append(other.content[flowkeys.RECORD][flowkeys.UPDATE])  # type: ignore[arg-type]
        world.ledger.submit(others)
        return put(reply, mine)  # type: ignore[arg-type]

    world.misbehave(two_voices)

    def refuse(statement: Statement) -> RuleError | None:
        if isinstance(statement, wire.UpdateSubmitted) and any(
            s.participant == statement.participant for s in world.said(wire.UpdateSubmitted)
        ):
            return RuleError("has an update", code="second-update", claim="C11")
        if isinstance(statement, wire.RoundClosed) and not any(
            out.transaction for out in statement.excluded
        ):
            return RuleError("hides the update", code="dropped-update", claim="C8")
        return None

    world.ledger.refuse = refuse
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=1)
    (out,) = strategy.rounds[0].exclusions
    assert (out.participant, out.reason) == ("client-01", "conflict")
    (evidence,) = world.said(wire.Evidence)
    assert evidence.offence == wire.OFFENCE_TWO_UPDATES
    assert others[0] in (evidence.first, evidence.second)


def test_close_that_the_ledger_goes_on_refusing_ends_the_run(world: World) -> None:
    """A refusal that reading again does not mend is the caller's error; nothing loops."""

    def refuse(statement: Statement) -> RuleError | None:
        if isinstance(statement, wire.RoundClosed):
            return RuleError("hides the update", code="dropped-update", claim="C8")
        return None

    world.ledger.refuse = refuse
    with pytest.raises(RuleError, match="hides the update"):
        world.strategy().start(world.grid(), initial(), num_rounds=1)


def test_member_revoked_between_rounds_is_left_out_of_the_next_cohort(world: World) -> None:
    """A cohort that is not right any more is read again, and the round opens with the right one."""

    def refuse(statement: Statement) -> RuleError | None:
        revoked = isinstance(statement, wire.RoundOpened) and statement.round == 2
        if revoked and "client-02" in statement.cohort:
            world.ledger.refuse = lambda s: None
            world.ledger.revoke("client-02")
            return RuleError("client-02 was revoked", code="cohort-not-admitted")
        return None

    world.ledger.refuse = refuse
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=2)
    assert list(world.said(wire.RoundOpened)[1].cohort) == ["client-00", "client-01"]
    assert [u.participant for u in strategy.rounds[1].updates] == ["client-00", "client-01"]


def test_run_that_the_ledger_refuses_is_the_callers_error(world: World) -> None:
    """An aggregator that is not admitted learns that, in the ledger's words."""
    world.ledger.refuse = lambda s: (
        RuleError("aggregator is no member", code="unknown-member")
        if isinstance(s, wire.RunOpened)
        else None
    )
    with pytest.raises(RuleError, match="no member"):
        world.strategy().start(world.grid(), initial())


# ---------------------------------------------------------------- below min_clients


def test_too_few_updates_end_the_run_with_every_reason(world: World) -> None:
    """Below min_clients the round is abandoned, the run aborted, and the error names each one."""

    def broken(message: Message, context: Context) -> Message:
        raise OSError("disk gone")

    world.apps["client-00"] = broken
    world.apps["client-02"] = poison(np.full((2, 2), np.nan, np.float32))
    strategy = world.strategy()
    with pytest.raises(RuleError) as refused:
        strategy.start(world.grid(), initial(), num_rounds=3)
    says = str(refused.value)
    assert "round 1: 1 of 3 updates held, the run needs 2" in says
    assert "client-00 (its client raised an error" in says
    assert "client-02 (its arrays hold NaN" in says
    (closed,) = world.said(wire.RoundClosed)
    assert closed.outcome == wire.OUTCOME_ABANDONED
    assert closed.model == closed.base_model
    (ended,) = world.said(wire.RunClosed)
    assert (ended.outcome, ended.rounds) == (wire.RUN_OUTCOME_ABORTED, 1)
    assert strategy.rounds[0].abandoned


def test_exactly_min_clients_is_enough(world: World) -> None:
    """At min_clients the round is averaged."""
    world.misbehave(drop_record)
    strategy = world.strategy(policy=Policy(min_clients=2))
    strategy.start(world.grid(), initial(), num_rounds=1)
    assert not strategy.rounds[0].abandoned
