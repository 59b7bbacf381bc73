"""`LedgerFedAvg` whole: honest rounds, wrong use, and the way out."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid

from fedchain_proto import flowkeys
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.errors import FedchainError, UnavailableError, UsageError
from fedchain_proto.hashing import parse_digest
from fedchain_server import LedgerFedAvg
from tests.strategykit import NAMES, World, initial


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# ---------------------------------------------------------------- honest rounds


def test_run_is_anchored_statement_by_statement(world: World) -> None:
    """Two rounds leave exactly the statements of two rounds, in order, and two blocks each."""
    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=2)
    kinds = [type(s).__name__ for s in world.ledger.statements[4:]]
    updates = ["UpdateSubmitted"] * 3
    assert kinds == [
        "RunOpened",
        "RoundOpened",
        *updates,
        "RoundClosed",
        "RoundOpened",
        *updates,
        "RoundClosed",
        "RunClosed",
    ]
    assert [r.height for r in strategy.rounds] == [7, 9]
    first, second = world.said(wire.RoundClosed)
    assert first.model == world.said(wire.RoundOpened)[1].base_model == second.base_model
    assert [i.participant for i in first.included] == list(NAMES)
    assert first.total_weight == 33
    (ended,) = world.said(wire.RunClosed)
    assert (ended.outcome, ended.rounds, ended.model) == (
        wire.RUN_OUTCOME_COMPLETED,
        2,
        second.model,
    )
    assert strategy.run_id == ended.run.hex()


def test_model_is_the_exact_mean_of_what_was_signed(world: World) -> None:
    """Every weight is the exact rational mean, rounded once; the store holds what was averaged."""
    result = world.strategy().start(world.grid(), initial(), num_rounds=1)
    steps = [np.float32((n + 1) / 3) for n in range(3)]
    exact = sum((10 + n) * Fraction(float(s)) for n, s in enumerate(steps)) / 33
    expected = np.float32(exact.numerator / exact.denominator)
    np.testing.assert_array_equal(result.arrays["w"].numpy(), np.full((2, 2), expected))
    assert result.arrays["b"].numpy().shape == ()
    (record,) = world.seen
    for digest in [record.model, *(u.digest for u in record.updates)]:
        world.store.open(parse_digest(digest), verify=True).close()


def test_records_say_what_the_ledger_says(world: World) -> None:
    """A record names each update with its signed weight; callbacks see records and replies."""
    replies: list[tuple[int, str]] = []
    strategy = world.strategy(on_reply=lambda number, name: replies.append((number, name)))
    strategy.start(world.grid(), initial(), num_rounds=2)
    assert strategy.rounds == world.seen
    for number, record in enumerate(world.seen, start=1):
        assert record.number == number
        assert [(u.participant, u.examples) for u in record.updates] == [
            ("client-00", 10),
            ("client-01", 11),
            ("client-02", 12),
        ]
        assert record.exclusions == ()
        assert not record.abandoned
    assert sorted(replies) == [(n, name) for n in (1, 2) for name in NAMES]


def test_metrics_are_weighted_by_what_was_signed(world: World) -> None:
    """Flower's Result is filled as by its own strategies, in every part."""
    strategy = world.strategy(fraction_evaluate=1.0)
    result = strategy.start(
        world.grid(),
        initial(),
        num_rounds=2,
        evaluate_fn=lambda number, arrays: MetricRecord({"accuracy": number / 10}),
    )
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx((11 + 2 * 12) / 33)
    assert result.evaluate_metrics_clientapp[2]["mean"] == pytest.approx(
        float(result.arrays["w"].numpy().mean())
    )
    assert [result.evaluate_metrics_serverapp[n]["accuracy"] for n in (0, 1, 2)] == [0, 0.1, 0.2]
    assert world.seen[1].metrics == {
        "train/loss": result.train_metrics_clientapp[2]["loss"],
        "evaluate/mean": result.evaluate_metrics_clientapp[2]["mean"],
        "accuracy": 0.2,
    }


def test_abusive_evaluate_fn_does_not_move_the_model(world: World) -> None:
    """Whoever gets the model gets a copy: what it does to it reaches neither clients nor ledger."""

    def abuse(number: int, arrays: ArrayRecord) -> None:
        arrays["w"] = Array(np.full((2, 2), np.nan, np.float32))

    strategy = world.strategy()
    strategy.start(world.grid(), initial(), num_rounds=2, evaluate_fn=abuse)
    assert all(len(r.updates) == 3 for r in strategy.rounds)


def test_bits_do_not_depend_on_threads(tmp_path: Path) -> None:
    """One thread or three: one model."""
    models = []
    for threads in (1, 3):
        world = World(tmp_path / str(threads))
        strategy = world.strategy(threads=threads)
        strategy.start(world.grid(), initial(), num_rounds=2)
        models.append(strategy.rounds[-1].model)
    assert models[0] == models[1]


# ---------------------------------------------------------------- the way out


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted_run_is_closed_as_aborted(world: World, error: type[BaseException]) -> None:
    """Ctrl-C or an error between rounds: what is decided is closed, the run is aborted, and the
    cause is what the caller sees."""

    def stop(number: int, arrays: ArrayRecord) -> None:
        if number == 2:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        world.strategy().start(world.grid(), initial(), num_rounds=5, evaluate_fn=stop)
    # Round 2 was computed but not yet closed when its evaluation failed.
    assert [c.round for c in world.said(wire.RoundClosed)] == [1, 2]
    (ended,) = world.said(wire.RunClosed)
    assert (ended.outcome, ended.rounds) == (wire.RUN_OUTCOME_ABORTED, 2)


def test_interrupt_while_clients_train_leaves_the_round_open(world: World) -> None:
    """Ctrl-C in the middle of a round: the run is aborted and its open round stays open."""

    def stop(number: int, name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.strategy(on_reply=stop).start(world.grid(), initial(), num_rounds=2)
    assert world.said(wire.RoundClosed) == []
    (ended,) = world.said(wire.RunClosed)
    assert (ended.outcome, ended.rounds) == (wire.RUN_OUTCOME_ABORTED, 0)


def test_ledger_without_an_answer_ends_the_run_with_its_own_error(world: World) -> None:
    """An unreachable ledger is what the caller is told, not that the abort failed too."""
    real = world.ledger.submit

    def gone(envelopes: Any, **options: Any) -> Any:
        if world.said(wire.RoundOpened):
            raise UnavailableError("no receipt in time")
        return real(envelopes, **options)

    world.ledger.submit = gone  # type: ignore[method-assign]
    with pytest.raises(UnavailableError, match="no receipt in time"):
        world.strategy().start(world.grid(), initial())


# ---------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (ArrayRecord(), "empty"),
        (ArrayRecord({"w": Array(np.full(2, np.nan, np.float32))}), "NaN"),
        (ArrayRecord({"w": Array(np.ones(2, np.complex64))}), "cannot start"),
        (ArrayRecord({"w": Array(np.ones(2, np.bool_))}), "boolean"),
    ],
)
def test_model_that_cannot_be_averaged_is_refused_at_once(
    world: World, arrays: ArrayRecord, says: str
) -> None:
    """What no round could average starts no run."""
    with pytest.raises(UsageError, match=says):
        world.strategy().start(world.grid(), arrays)
    assert world.said(wire.RunOpened) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_rounds": 0}, "num_rounds"),
        ({"num_rounds": 1.5}, "num_rounds"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    world: World, options: dict[str, Any], says: str
) -> None:
    """A wrong number of rounds or seconds is named before anything is sent."""
    grid = world.grid()
    with pytest.raises(UsageError, match=says):
        world.strategy().start(grid, initial(), **options)
    assert grid.sent == []


class Unequal(LedgerFedAvg):
    """Tells one client another learning rate."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        other = ConfigRecord({**config, "lr": 1e9})
        messages[0].content = RecordDict({"arrays": arrays, "config": other})
        return messages


class OtherModel(LedgerFedAvg):
    """Sends another model than the round's."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        arrays["w"] = Array(np.ones((2, 2), np.float32))
        return super().configure_train(server_round, arrays, config, grid)


class Smuggler(LedgerFedAvg):
    """Sends more than the instruction's digest covers."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        messages[0].content["extra"] = MetricRecord({"lr": 1e9})
        return messages


class Namesake(LedgerFedAvg):
    """Uses the name of fedchain's own record."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        messages[0].content[flowkeys.RECORD] = ConfigRecord({"lr": 1e9})
        return messages


class Nobody(LedgerFedAvg):
    """Asks nobody."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []


class OwnAverage(LedgerFedAvg):
    """Thinks that it averages."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return None, None


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Unequal, "different things"),
        (OtherModel, "unchanged"),
        (Smuggler, "MetricRecord"),
        (Namesake, "rename it"),
        (Nobody, "asks nobody"),
        (OwnAverage, "overrides aggregate_train"),
    ],
)
def test_subclass_that_breaks_the_rounds_rules_is_refused(
    world: World, kind: type[LedgerFedAvg], says: str
) -> None:
    """A round has one model and one instruction for all, and one way to average."""
    with pytest.raises(UsageError, match=says):
        world.strategy(kind).start(world.grid(), initial())
    assert world.said(wire.RunOpened) == []


class Honest(LedgerFedAvg):
    """Configures as it likes, within the rules: equal copies of the model, its own settings."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        for node in grid.get_node_ids():
            copies = ArrayRecord({k: Array(a.numpy()) for k, a in arrays.items()})
            content = RecordDict(
                {
                    "arrays": copies,
                    "config": ConfigRecord(
                        {"server-round": server_round, "lr": 0.5 / server_round}
                    ),
                    "more": ConfigRecord({"names": ["a", "b"]}),
                }
            )
            yield Message(content, dst_node_id=node, message_type="train")


def test_subclass_may_configure_rounds_its_own_way(world: World) -> None:
    """Other settings each round, several ConfigRecords, fresh copies of the model: all covered."""
    strategy = world.strategy(Honest)
    strategy.start(world.grid(), initial(), num_rounds=2)
    assert all(len(r.updates) == 3 for r in strategy.rounds)
    first, second = world.said(wire.RoundOpened)
    assert first.instruction != second.instruction


def test_unknown_device_is_refused_at_once(world: World) -> None:
    """A device that is not there is named before a client is asked."""
    with pytest.raises(UsageError, match="abacus"):
        world.strategy(device="abacus").start(world.grid(), initial())


def test_flowers_own_hook_refuses_to_average(world: World) -> None:
    """Nobody gets an unsigned average by calling Flower's hook."""
    with pytest.raises(FedchainError, match="signed updates"):
        world.strategy().aggregate_train(1, [])
