"""Decisions of a round that need a clock, a disk or large numbers to come about."""

import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from fedchain_clients import attest
from fedchain_proto import flowkeys
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.errors import FedchainError, RuleError, UsageError
from fedchain_proto.openfiles import ENOUGH
from fedchain_proto.statements import Statement
from fedchain_server import metrics
from tests.fakegrid import Client, FakeGrid
from tests.strategykit import World, initial

COUNT = 1 << 57


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def deaf(world: World, node: int) -> FakeGrid:
    """A grid on which one node says who it is and never answers again."""
    grid = world.grid()
    original = grid.send_and_receive

    def send(messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        listed = list(messages)
        if flowkeys.HELLO not in listed[0].content[flowkeys.RECORD]:
            grid.silent.add(node)
        return original(listed, timeout=timeout)

    grid.send_and_receive = send  # type: ignore[method-assign]
    return grid


# ---------------------------------------------------------------- silence


def test_silence_after_the_deadline_is_proven(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the deadline has passed beyond doubt, the log itself shows who sent nothing."""
    deadline_ms = 1_800_000_600_000
    monkeypatch.setattr(time, "time_ns", lambda: (deadline_ms + 60_000) * 1_000_000)
    strategy = world.strategy()
    strategy.start(deaf(world, 2), initial(), num_rounds=1)
    (out,) = strategy.rounds[0].exclusions
    assert (out.participant, out.reason, out.proven) == ("client-01", "silent", True)


def test_silence_before_the_deadline_is_the_servers_word(world: World) -> None:
    """As long as the owner could still be heard, nobody calls it silent."""
    strategy = world.strategy()
    strategy.start(deaf(world, 2), initial(), num_rounds=1)
    (out,) = strategy.rounds[0].exclusions
    assert (out.reason, out.proven) == ("client-overran", False)


def test_ledger_whose_clock_is_behind_gets_the_weaker_word(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the validators find that the deadline has not passed, the close says overran instead."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_900_000_000_000 * 1_000_000)

    def refuse(statement: Statement) -> RuleError | None:
        if isinstance(statement, wire.RoundClosed) and any(
            out.reason == wire.REASON_SILENT for out in statement.excluded
        ):
            return RuleError("calls client-01 silent early", code="silent-early")
        return None

    world.ledger.refuse = refuse
    strategy = world.strategy()
    strategy.start(deaf(world, 2), initial(), num_rounds=1)
    (out,) = strategy.rounds[0].exclusions
    assert out.reason == "client-overran"


# ---------------------------------------------------------------- open files


def test_round_asks_for_as_many_open_files_as_it_may_have(world: World) -> None:
    """All updates of a round are mapped at once: the usual 1,024 would end a large one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        world.strategy().start(world.grid(), initial(), num_rounds=1)
        raised, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised == (ENOUGH if hard == resource.RLIM_INFINITY else min(ENOUGH, hard))


# ---------------------------------------------------------------- integer sums


def counting(*counts: int) -> Client:
    """An app that reports an integer buffer."""

    def app(message: Message, context: Context) -> Message:
        content = RecordDict(
            {
                "arrays": ArrayRecord({"n": Array(np.array(counts, np.int64))}),
                "metrics": MetricRecord({"num-examples": 10}),
            }
        )
        return Message(content, reply_to=message)

    return app


def start_counting(world: World, counts: list[tuple[int, int]]) -> Any:
    for name, pair in zip(world.apps, counts, strict=True):
        world.apps[name] = counting(*pair)
    strategy = world.strategy()
    start = ArrayRecord({"n": Array(np.zeros(2, np.int64))})
    strategy.start(world.grid(), start, num_rounds=1)
    return strategy


def test_integer_that_leaves_the_exact_range_is_out_and_the_largest_first(world: World) -> None:
    """Not who comes last in the order, but who is too large, leaves the average."""
    strategy = start_counting(world, [(1 << 60, 0), (COUNT, 0), (7, 0)])
    (record,) = strategy.rounds
    assert [(e.participant, e.reason, e.proven) for e in record.exclusions] == [
        ("client-00", "weight-sum", True)
    ]
    assert [u.participant for u in record.updates] == ["client-01", "client-02"]


def test_largest_integer_stays_if_it_breaks_no_sum(world: World) -> None:
    """An auditor adds each excluded update to those that counted, and must find the overflow: one
    that is merely large, in an element of its own, is not left out for others' faults."""
    half = 2**62 // 20 + 1
    strategy = start_counting(world, [(half + 1000, 0), (0, half), (0, half)])
    (record,) = strategy.rounds
    assert [(e.participant, e.reason) for e in record.exclusions] == [("client-01", "weight-sum")]


def test_integers_within_the_exact_range_are_averaged(world: World) -> None:
    """Large integers whose sum is exact all count."""
    strategy = start_counting(world, [(COUNT, 0), (COUNT, 0), (7, 0)])
    assert len(strategy.rounds[0].updates) == 3


# ---------------------------------------------------------------- disk and device


@pytest.mark.parametrize(
    ("cause", "error"),
    [(ValueError("no mean"), RuleError), (RuntimeError("out of memory"), FedchainError)],
)
def test_average_that_fails_ends_the_run_in_words(
    world: World, monkeypatch: pytest.MonkeyPatch, cause: Exception, error: type[Exception]
) -> None:
    """What torch cannot do is the run's error, one line, and the ledger hears of the abort."""

    def fail(*arguments: Any) -> None:
        raise cause

    monkeypatch.setattr("fedchain_server.strategy.weighted_mean", fail)
    with pytest.raises(error, match=str(cause)):
        world.strategy().start(world.grid(), initial(), num_rounds=1)
    assert len(world.said(wire.RunClosed)) == 1


def test_model_that_cannot_be_kept_is_never_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close may only name what is in the store: with a full disk the run ends without one."""
    real = world.store.put
    calls = []

    def put(arrays: Any, digest: bytes | None = None, *, threads: int = 1) -> bytes:
        calls.append(digest)
        if len(calls) == 5:  # the initial model, three updates, the average
            raise OSError(28, "No space left on device")
        return real(arrays, digest, threads=threads)

    monkeypatch.setattr(world.store, "put", put)
    with pytest.raises(UsageError, match="No space left"):
        world.strategy().start(world.grid(), initial(), num_rounds=2)
    assert world.said(wire.RoundClosed) == []
    (ended,) = world.said(wire.RunClosed)
    assert (ended.outcome, ended.rounds) == (wire.RUN_OUTCOME_ABORTED, 0)


# ---------------------------------------------------------------- figures


def broken(records: list[RecordDict], key: str) -> MetricRecord:
    """An aggregation function with a mistake in it."""
    raise ZeroDivisionError


def test_callers_broken_aggregation_costs_the_metrics(world: World) -> None:
    """A mistake in the caller's own function does not end a run."""
    strategy = world.strategy(train_metrics_aggr_fn=broken)
    result = strategy.start(world.grid(), initial(), num_rounds=1)
    assert result.train_metrics_clientapp == {}
    assert len(strategy.rounds[0].updates) == 3


def test_callers_own_aggregation_is_used_with_signed_weights(world: World) -> None:
    """A caller's function sees the weights that were signed, whatever the metrics claim."""
    seen: list[list[int]] = []

    def own(records: list[RecordDict], key: str) -> MetricRecord:
        seen.append([int(r["metrics"][key]) for r in records])  # type: ignore[arg-type]
        return MetricRecord({"loss": 1.0})

    def boasting(message: Message, context: Context, app: Client) -> Message:
        reply = attest(message, context, app)
        if "metrics" in reply.content:
            reply.content["metrics"]["num-examples"] = 10**9  # type: ignore[index]
        return reply

    world.mods["client-00"] = boasting
    strategy = world.strategy(train_metrics_aggr_fn=own)
    strategy.start(world.grid(), initial(), num_rounds=1)
    assert seen == [[10, 11, 12]]


def test_too_many_figures_are_no_metrics() -> None:
    """A client's metrics are for display; a data set in their place is dropped."""
    fits = RecordDict({"m": MetricRecord({"a": [0.0] * metrics.MAX_VALUES})})
    too_many = RecordDict({"m": MetricRecord({"a": [0.0] * metrics.MAX_VALUES, "b": 1.0})})
    assert metrics.only_metrics(fits) is not None
    assert metrics.only_metrics(too_many) is None


@pytest.mark.parametrize("weight", [0, -1, 1001, float("nan"), float("inf"), [1], None])
def test_evaluation_with_an_impossible_weight_does_not_count(weight: Any) -> None:
    """An unsigned weight is at least held to be a number in the run's range."""
    record = MetricRecord({} if weight is None else {"num-examples": weight})
    assert metrics.claimed_weight(record, "num-examples", 1000) is None
    assert metrics.claimed_weight(MetricRecord({"num-examples": 7}), "num-examples", 1000) == 7
