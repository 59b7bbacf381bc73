"""The engine for where processes cannot be forked: one call at a time, in a thread.

Chosen off Linux, and where this process already uses CUDA. A thread cannot be stopped: a client
that overruns its time ends the whole run, by name, and one that exits or crashes takes this
process with it. Whoever leaves after such an end does well to use ``os._exit``.
"""

import random
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from fedchain.grid.codec import Packed
from fedchain.grid.engine import Batch, Call
from fedchain.grid.frames import Frame
from fedchain.grid.outcome import Outcome
from fedchain.grid.processes import read_reply
from fedchain.grid.worker import NOTHING, Clients, answer, request_frame
from fedchain_proto.errors import FedchainError, UnavailableError


class ThreadEngine:
    """See the module; `Engine` says what each method does. Calls run inside `take`."""

    def __init__(self, clients: Clients, *, timeout_s: float) -> None:
        self._clients = clients
        self._timeout_s = timeout_s
        self._states: dict[int, Packed] = {}
        self._failure: FedchainError | None = None

    def submit(self, calls: Iterable[Call], *, held: int | None) -> Batch:
        """See `Engine.submit`; without a bound the calls are run here and now."""
        batch = Batch(deque(calls), held)
        while held is None and batch.pending:
            batch.ready.append(self._run(batch.pending.popleft(), None))
        return batch

    def take(self, batch: Batch, until: float | None) -> tuple[Call, Outcome] | None:
        """See `Engine.take`."""
        if batch.ready:
            return batch.ready.popleft()
        if not batch.pending or (until is not None and time.monotonic() >= until):
            return None
        return self._run(batch.pending.popleft(), until)

    def _run(self, call: Call, until: float | None) -> tuple[Call, Outcome]:
        if self._failure is not None:
            raise self._failure
        with _own_generators():
            reply = self._reply(call, until)
        outcome, _ = read_reply(call, reply)
        if not outcome.code:
            self._states[call.node.node_id] = reply.state
        return call, outcome

    def _reply(self, call: Call, until: float | None) -> Frame:
        request = request_frame(
            call.metadata, call.content, self._states.get(call.node.node_id, NOTHING)
        )
        replies: list[Frame] = []
        thread = threading.Thread(
            target=lambda: replies.append(answer(self._clients, request)), daemon=True
        )
        wait_s = self._timeout_s
        if until is not None:
            wait_s = min(wait_s, max(0.0, until - time.monotonic()))
        thread.start()
        thread.join(wait_s)
        if not replies:
            self._failure = FedchainError(
                f"{call.node.participant} did not answer within {wait_s:.3g} s, and a client that"
                " runs in a thread cannot be stopped: the run ends here"
            )
            raise self._failure
        return replies[0]

    def cancel(self, batch: Batch) -> list[Call]:
        """See `Engine.cancel`."""
        left = list(batch.pending)
        batch.pending.clear()
        return left

    def close(self) -> None:
        """See `Engine.close`."""
        self._failure = UnavailableError("the grid was closed")


@contextmanager
def _own_generators() -> Iterator[None]:
    """Give the server's own random generators back as they were before a client was seeded."""
    torch = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_rng_state(states[2])
