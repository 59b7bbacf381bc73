"""The in-process grid: strategies run on it unchanged, and only seeds decide the replies."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401  # once, here, rather than in every zygote
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import FedAvg

from fedchain import digits
from fedchain.grid import FAILED, OVERRAN, REFUSED, InProcessGrid, NodeSpec
from fedchain.grid.inprocess import Mode
from fedchain_proto.errors import RuleError, UsageError
from tests.gridkit import ENOUGH_S, VICTIM, app_of, echo, grid_of, instructions, metric, play, sleep


def test_a_stock_strategy_runs_unchanged() -> None:
    """FedAvg.start, training and evaluating, needs nothing of ours but the grid."""
    app = app_of()

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "accuracy": context.node_id / 4})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    start = ArrayRecord({"w": Array(np.arange(8, dtype=np.float32))})
    with grid_of(app) as grid:
        result = FedAvg().start(grid, start, num_rounds=3)
    assert np.array_equal(result.arrays["w"].numpy(), np.arange(8))
    assert result.train_metrics_clientapp[3]["calls"] == 3
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == pytest.approx(0.625)


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_each_node_has_its_own_context(mode: Mode) -> None:
    """Partition, names and state are the node's, and state comes back with each reply."""
    with grid_of(app_of(), mode=mode, workers=2) as grid:
        for number in (1, 2, 3):
            replies = play(grid, number)
            assert {metric(r, "calls") for r in replies.values()} == {number}
    assert {n: metric(r, "partition") for n, r in replies.items()} == {1: 0, 2: 1, 3: 2, 4: 3}
    assert {metric(r, "partitions") for r in replies.values()} == {4}
    assert {r.metadata.dst_node_id for r in replies.values()} == {0}
    in_here = {metric(r, "pid") for r in replies.values()} == {os.getpid()}
    assert in_here == (mode == "thread")


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_pushed_messages_can_be_pulled_in_any_order(mode: Mode) -> None:
    """The two halves of send_and_receive work alone; each reply is handed out once."""
    with grid_of(app_of(), mode=mode) as grid:
        ids = grid.push_messages(instructions(grid))
        assert len(set(ids)) == 4
        got: list[Message] = []
        deadline = time.monotonic() + ENOUGH_S
        while len(got) < 1 and time.monotonic() < deadline:
            got += grid.pull_messages(ids[3:])
        while len(got) < 4 and time.monotonic() < deadline:
            got += grid.pull_messages(ids)
        assert got[0].metadata.src_node_id == 4
        assert {m.metadata.reply_to_message_id for m in got} == set(ids)
        assert not grid.pull_messages(ids)


def test_a_slow_server_makes_no_client_late() -> None:
    """Whoever takes replies may be slower than the clients' time-out."""
    with grid_of(app_of(), workers=2, nodes=5, timeout_s=2.0) as grid:
        play(grid)  # the first calls warm the workers up
        taken = []
        for reply in grid.send_and_receive(instructions(grid, 2)):
            taken.append(reply)
            time.sleep(1.0)
    assert len(taken) == 5
    assert not [r for r in taken if r.has_error()]


def test_the_rounds_time_out_bounds_the_whole() -> None:
    """Those who answered in time are heard; the others are stopped, and named as overrun."""
    with grid_of(app_of(sleep, only=VICTIM), workers=2) as grid:
        started = time.monotonic()
        replies = play(grid, timeout=3.0)
        assert time.monotonic() - started < 10
        assert [n for n, r in replies.items() if r.has_error()] == [VICTIM]
        assert replies[VICTIM].error.code == OVERRAN
        assert "the round's 3 s" in str(replies[VICTIM].error.reason)
        assert not [r for r in play(grid, 2).values() if r.has_error()]


def test_unclaimed_replies_do_not_pile_up(tmp_path: Path) -> None:
    """Clients run ahead of a slow server by twice the workers, not by the whole cohort."""

    def act(message: Message, context: Context) -> Message:
        (tmp_path / str(context.node_id)).touch()
        return echo(message, context)

    with grid_of(app_of(act), workers=2, nodes=12) as grid:
        replies = grid.send_and_receive(instructions(grid))
        next(replies)
        time.sleep(1.0)
        assert 2 <= len(list(tmp_path.iterdir())) <= 5
        assert len(list(replies)) == 11


def test_closing_the_generator_stops_the_round() -> None:
    """Who stops listening stops the work, and the grid is ready for the next round."""
    with grid_of(app_of(sleep, only=VICTIM), workers=2) as grid:
        replies = grid.send_and_receive(instructions(grid))
        next(replies)
        replies.close()
        assert len(play(grid, 2)) == 4


OWNERS = (3, 7, 9, 11)


def digits_round(mode: Mode, workers: int, seed: int) -> dict[int, dict[str, bytes]]:
    """Two rounds of real training by four owners who answer in a random order."""

    def dither(message: Message, context: Context, call: ClientAppCallable) -> Message:
        time.sleep(os.urandom(1)[0] / 2000)
        return call(message, context)

    app = digits.make_app(20, 0.5, seed=0)
    nodes = [NodeSpec(n, f"client-{n}", {"partition-id": n, "num-partitions": 20}) for n in OWNERS]
    with InProcessGrid(
        app,
        nodes=nodes,
        workers=workers,
        seed=seed,
        timeout_s=ENOUGH_S,
        mods=[dither],
        mode=mode,
    ) as grid:
        for number in (1, 2):
            content = RecordDict(
                {
                    "arrays": digits.initial_arrays(0),
                    "config": ConfigRecord({"server-round": number}),
                }
            )
            messages = [Message(content, n, "train") for n in grid.get_node_ids()]
            replies = list(grid.send_and_receive(messages))
    assert len(replies) == len(OWNERS)
    return {
        r.metadata.src_node_id: {k: a.data for k, a in r.content.array_records["arrays"].items()}
        for r in replies
    }


def test_replies_depend_on_the_seed_and_on_nothing_else() -> None:
    """Real training gives the same bits for 1 and 2 workers, in any order of answers."""
    first = digits_round("process", 1, seed=5)
    assert digits_round("process", 2, seed=5) == first
    assert digits_round("process", 2, seed=5) == first
    assert digits_round("thread", 1, seed=5) == first
    assert digits_round("process", 2, seed=6) != first


def test_mods_wrap_the_app_first_one_outermost() -> None:
    """The first mod sees the message first and the reply last: there the signer belongs."""

    def mod(letter: str) -> Callable[[Message, Context, ClientAppCallable], Message]:
        def wrapped(message: Message, context: Context, call: ClientAppCallable) -> Message:
            reply = call(message, context)
            seen = reply.content.get("seen")
            before = str(seen["by"]) if isinstance(seen, ConfigRecord) else ""
            reply.content["seen"] = ConfigRecord({"by": before + letter})
            return reply

        return wrapped

    with grid_of(app_of(), mods=[mod("a"), mod("b")]) as grid:
        for reply in play(grid).values():
            assert reply.content.config_records["seen"]["by"] == "ba"


def test_a_client_that_refuses_is_told_from_one_that_fails() -> None:
    """A rule or evidence error of a mod has its own code, and costs no worker."""

    def wary(message: Message, context: Context, call: ClientAppCallable) -> Message:
        if (
            context.node_id == VICTIM
            and message.content.config_records["config"]["server-round"] == 1
        ):
            raise RuleError("not in the cohort", code="cohort")
        return call(message, context)

    with grid_of(app_of(), mods=[wary], workers=1) as grid:
        replies = play(grid)
        assert replies[VICTIM].error.code == REFUSED
        assert replies[VICTIM].error.reason == "client-2: RuleError: not in the cohort"
        pids = {metric(r, "pid") for n, r in replies.items() if n != VICTIM}
        assert pids == {metric(r, "pid") for r in play(grid, 2).values()}


@pytest.mark.parametrize(
    "options",
    [
        {"nodes": []},
        {"nodes": [NodeSpec(0, "a")]},
        {"nodes": [NodeSpec(1, "a"), NodeSpec(1, "b")]},
        {"nodes": [NodeSpec(1, "a"), NodeSpec(2, "a")]},
        {"workers": 0},
        {"timeout_s": 0},
        {"timeout_s": float("inf")},
    ],
)
def test_a_grid_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    """Wrong arguments are named before any process exists."""
    arguments = {"nodes": [NodeSpec(1, "a")], "seed": 0, "timeout_s": 1.0, **options}
    with pytest.raises(UsageError):
        InProcessGrid(app_of(), **arguments)


def test_a_message_to_a_stranger_is_refused() -> None:
    """The server's own mistake is an error of the server, and no client's."""
    with grid_of(app_of()) as grid:
        with pytest.raises(UsageError, match="node 77"):
            list(grid.send_and_receive([Message(RecordDict(), 77, "train")]))
        with pytest.raises(UsageError, match="already"):
            grid.start()
        assert len(play(grid)) == 4


def test_the_app_may_be_missing_a_handler() -> None:
    """A message type that the app does not know is that app's failure, said in words."""
    with grid_of(ClientApp()) as grid:
        replies = play(grid)
    assert {r.error.code for r in replies.values()} == {FAILED}
    assert "No train function" in str(replies[1].error.reason)
