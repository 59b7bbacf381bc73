"""Grids small enough for tests, and a client that says where and how often it ran."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
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

from fedchain.grid import InProcessGrid, NodeSpec

Act = Callable[[Message, Context], Any]
VICTIM = 2
ENOUGH_S = 30.0  # no honest call here takes more, however busy the machine is


def echo(message: Message, context: Context) -> Message:
    """An honest client: counts its calls in its state and says where it runs."""
    state = context.state.get("calls")
    calls = int(str(state["n"])) + 1 if isinstance(state, ConfigRecord) else 1
    context.state["calls"] = ConfigRecord({"n": calls})
    metrics = MetricRecord({"num-examples": 1, "calls": calls, "pid": os.getpid()})
    metrics["partition"] = int(context.node_config["partition-id"])
    metrics["partitions"] = int(context.node_config["num-partitions"])
    content = RecordDict({"metrics": metrics})
    content.update(message.content.array_records)
    return Message(content, reply_to=message)


def sleep(message: Message, context: Context) -> Message:
    """A client that does not come back."""
    time.sleep(3600)
    return echo(message, context)


def app_of(act: Act = echo, *, only: int | None = None) -> ClientApp:
    """An app whose node `only` (or all) does `act` in round 1 and is honest otherwise."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        bad = config["server-round"] == 1 and only in (None, context.node_id)
        reply: Message = (act if bad else echo)(message, context)
        return reply

    return app


def grid_of(app: ClientApp, *, nodes: int = 4, **options: Any) -> InProcessGrid:
    specs = [NodeSpec(n, f"client-{n}") for n in range(1, nodes + 1)]
    return InProcessGrid(app, nodes=specs, **{"seed": 0, "timeout_s": ENOUGH_S, **options})


def instructions(grid: InProcessGrid, number: int = 1, size: int = 8) -> list[Message]:
    arrays = ArrayRecord({"w": Array(np.arange(size, dtype=np.float32))})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": number})})
    return [Message(content, node, "train") for node in grid.get_node_ids()]


def play(grid: InProcessGrid, number: int = 1, **options: Any) -> dict[int, Message]:
    """One round; the replies by node."""
    replies = list(grid.send_and_receive(instructions(grid, number), **options))
    assert len({r.metadata.src_node_id for r in replies}) == len(replies)
    return {reply.metadata.src_node_id: reply for reply in replies}


def metric(reply: Message, key: str) -> int:
    value = reply.content.metric_records["metrics"][key]
    assert isinstance(value, int)
    return value


def wait_until(done: Callable[[], bool], *passing: type[BaseException]) -> bool:
    deadline = time.monotonic() + ENOUGH_S
    while time.monotonic() < deadline:
        try:
            if done():
                return True
        except passing:
            pass
        time.sleep(0.01)
    return False
