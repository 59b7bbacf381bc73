"""A tiny Flower app for tests: real messages, real processes, no torch, milliseconds a round."""

import ctypes
import os
import sys
import time
from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

Misdeed = Callable[[Message], Message | None]


def initial_arrays() -> ArrayRecord:
    """Two float32 tensors, 6 and 3 elements."""
    return ArrayRecord(
        {
            "layer.weight": Array(np.arange(6, dtype=np.float32).reshape(2, 3)),
            "layer.bias": Array(np.zeros(3, np.float32)),
        }
    )


def make_app(misdeeds: dict[tuple[int, int], str] | None = None, pause_s: float = 0.0) -> ClientApp:
    """A ClientApp that adds random steps; some partitions misbehave in some rounds.

    Args:
        misdeeds: (partition id, round) -> name in `MISDEEDS`.
        pause_s: How long each training takes.
    """
    app = ClientApp()
    plan = misdeeds or {}

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        number = int(message.content["config"]["server-round"])
        time.sleep(pause_s)
        misdeed = plan.get((partition, number))
        if misdeed is not None:
            return MISDEEDS[misdeed](message)  # type: ignore[return-value]  # rubbish on purpose
        return reply(message, examples=10 + partition)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 5, "loss": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def reply(message: Message, *, examples: int = 10, **changes: np.ndarray) -> Message:
    """An honest reply, or one whose named arrays are replaced."""
    arrays = {
        name: array.numpy()
        + np.random.default_rng(np.random.randint(2**31))
        .normal(size=array.shape)
        .astype(np.float32)
        for name, array in message.content["arrays"].items()
    }
    arrays |= changes
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "metrics": MetricRecord({"num-examples": examples, "loss": 0.25}),
        }
    )
    return Message(content, reply_to=message)


def _raise(message: Message) -> Message:
    raise ValueError("the data loader is broken")


def _spin(message: Message) -> Message:
    while True:
        pass


def _sleep(message: Message) -> Message:
    time.sleep(3600)
    return reply(message)


def _segfault(message: Message) -> Message:
    ctypes.string_at(0)
    return reply(message)


def _hard_exit(message: Message) -> Message:
    os._exit(3)


def _exit(message: Message) -> Message:
    sys.exit("enough")


def _nothing(message: Message) -> None:
    return None


def _no_arrays(message: Message) -> Message:
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 3})}), reply_to=message)


def _no_metrics(message: Message) -> Message:
    return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)


MISDEEDS: dict[str, Misdeed] = {
    "raise": _raise,
    "spin": _spin,
    "sleep": _sleep,
    "segfault": _segfault,
    "hard-exit": _hard_exit,
    "exit": _exit,
    "nothing": _nothing,
    "no-arrays": _no_arrays,
    "no-metrics": _no_metrics,
    "nan": lambda m: reply(m, **{"layer.bias": np.full(3, np.nan, np.float32)}),
    "infinity": lambda m: reply(m, **{"layer.bias": np.full(3, np.inf, np.float32)}),
    "wrong-shape": lambda m: reply(m, **{"layer.bias": np.zeros(1, np.float32)}),
    "wrong-dtype": lambda m: reply(m, **{"layer.bias": np.zeros(3, np.float64)}),
    "extra-name": lambda m: reply(m, other=np.zeros(3, np.float32)),
    "zero-weight": lambda m: reply(m, examples=0),
    "negative-weight": lambda m: reply(m, examples=-5),
    "over-cap": lambda m: reply(m, examples=10**6),
}
