"""A Flower Grid whose nodes live on this machine: no Ray, no SuperLink, no network.

Any Flower strategy runs on it unchanged. Each client's work runs in a worker process that a hung
or crashing client cannot leave; see `processes`, and `threads` for where that is impossible.
"""

import math
import os
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Literal, Self

from flwr.app import DEFAULT_TTL, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp import Grid

from fedchain._flower import Run, empty_run, make_message, set_identity
from fedchain.grid.codec import pack
from fedchain.grid.engine import Batch, Call, Engine
from fedchain.grid.nodes import SERVER_NODE_ID, NodeSpec, index_nodes
from fedchain.grid.outcome import OVERRAN, Outcome
from fedchain.grid.processes import ProcessEngine
from fedchain.grid.threads import ThreadEngine
from fedchain.grid.worker import Clients
from fedchain_proto.errors import UsageError

Mode = Literal["auto", "process", "thread"]


class InProcessGrid(Grid):
    """Runs a ClientApp for every node; use as a context manager, or `start` and `close`.

    Start it early: workers are forked from a copy of this process as it is then, and it should
    have no threads, databases or GPU contexts yet. On a machine with a GPU, torch refuses to
    train in them if this process has already run a backward pass.

    Equal seeds give equal replies for any number of workers and any order of answers, as far as
    the app itself keeps nothing between calls but ``context.state``.

    Args:
        client_app: The owners' app, unchanged from how it was written for Flower.
        nodes: Who takes part.
        workers: Worker processes; default: one a processor core, at most one a node.
        seed: With message type, round and participant it seeds random, numpy and torch anew
            before each call.
        timeout_s: How long one call may take (seconds), from when that client starts.
        mods: Wrapped around the app, the first outermost, as ``mod(message, context, next)``.
        run_id: What clients see as ``context.run_id``; `set_run` changes it.
        mode: "process"; "thread" (one client at a time, a hung one ends the run); "auto" takes
            processes where they can be forked safely: on Linux, with no CUDA in use yet.

    Raises:
        UsageError: An argument out of range.
    """

    def __init__(
        self,
        client_app: ClientApp,
        *,
        nodes: Sequence[NodeSpec],
        workers: int | None = None,
        seed: int,
        timeout_s: float,
        mods: Sequence[Mod] = (),
        run_id: int = 1,
        mode: Mode = "auto",
    ) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be at least 1, not {workers}")
        if not (timeout_s > 0 and math.isfinite(timeout_s)):
            raise UsageError(f"timeout_s must be positive and finite, not {timeout_s}")
        self._nodes = index_nodes(nodes)
        self._workers = min(workers or os.cpu_count() or 1, len(nodes))
        self._clients = Clients(client_app, tuple(mods), self._nodes, seed)
        self._timeout_s = timeout_s
        self._mode = mode
        self._run = empty_run(run_id)
        self._ids = count(1)
        self._engine: Engine | None = None
        self._pushed: list[Batch] = []
        self._arrived: dict[str, Message] = {}

    def start(self) -> None:
        """Fork the workers.

        Raises:
            UsageError: Started already, or ``mode="process"`` where forking is unsafe.
        """
        if self._engine is not None:
            raise UsageError("this grid was started already")
        set_identity(self._run.run_id, SERVER_NODE_ID)
        _preload()
        if self._use_processes():
            self._engine = ProcessEngine(
                self._clients, workers=self._workers, timeout_s=self._timeout_s
            )
        else:
            self._engine = ThreadEngine(self._clients, timeout_s=self._timeout_s)

    def _use_processes(self) -> bool:
        obstacle = _fork_obstacle()
        if self._mode == "process" and obstacle:
            raise UsageError(f"worker processes cannot be forked safely here: {obstacle}")
        return self._mode != "thread" and not obstacle

    def close(self) -> None:
        """Kill all workers and what they started; takes milliseconds, and may be repeated."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def set_run(self, run: Run) -> None:
        """Change the run that new messages belong to."""
        self._run = run
        set_identity(run.run_id, SERVER_NODE_ID)

    @property
    def run(self) -> Run:
        """The run that new messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message, as `flwr.app.Message` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All node ids, in the order in which the nodes were given."""
        return list(self._nodes)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Generator[Message, None, None]:
        """Have nodes work on messages and yield each reply as it arrives.

        Exactly one reply a message: its content, or an `Error` with a code of `fedchain.grid`
        and a reason in plain words. Work begins when the first reply is asked for, runs ahead of
        the caller by a few replies (twice the number of workers) and no further, and is stopped
        when the generator is closed.

        Args:
            messages: To nodes of this grid.
            timeout: Bounds the whole (seconds). Nodes that have not answered by then are
                stopped, and `OVERRAN`.

        Raises:
            UsageError: A message for a node that is not here, or the grid is not running.
            FedchainError: No client can be run any more.
        """
        engine = self._running()
        until = None if timeout is None else time.monotonic() + timeout
        batch = engine.submit(self._calls(messages), held=2 * self._workers)
        try:
            while (taken := engine.take(batch, until)) is not None:
                yield self._reply(*taken)
            for call in engine.cancel(batch):
                reason = f"it had not answered when the round's {timeout:g} s were over"
                yield self._reply(call, Outcome(None, OVERRAN, reason))
        finally:
            engine.cancel(batch)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Have nodes work on messages; returns the ids to pull the replies by."""
        calls = list(self._calls(messages))
        self._pushed.append(self._running().submit(calls, held=None))
        return [call.metadata.message_id for call in calls]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Fetch those replies to pushed messages that are there; each is handed out once."""
        engine = self._running()
        self._pushed = [b for b in self._pushed if b.pending or b.running or b.ready]
        for batch in self._pushed:
            while batch.ready and (taken := engine.take(batch, None)) is not None:
                self._arrived[taken[0].metadata.message_id] = self._reply(*taken)
        wanted = [id_ for id_ in message_ids if id_ in self._arrived]
        return [self._arrived.pop(id_) for id_ in wanted]

    def _running(self) -> Engine:
        if self._engine is None:
            raise UsageError("the grid is not running: use it in a with block, or start() it")
        return self._engine

    def _calls(self, messages: Iterable[Message]) -> list[Call]:
        """Encode instructions; arrays are referred to, not copied, however many nodes get them."""
        calls = []
        for message in messages:
            asked = message.metadata
            if asked.dst_node_id not in self._nodes:
                raise UsageError(f"node {asked.dst_node_id} is not on this grid")
            metadata = Metadata(
                run_id=self._run.run_id,
                message_id=str(next(self._ids)),
                src_node_id=SERVER_NODE_ID,
                dst_node_id=asked.dst_node_id,
                reply_to_message_id="",
                group_id=asked.group_id,
                created_at=asked.created_at,
                ttl=asked.ttl,
                message_type=asked.message_type,
            )
            node = self._nodes[asked.dst_node_id]
            calls.append(Call(node, metadata, pack(message.content)))
        return calls

    def _reply(self, call: Call, outcome: Outcome) -> Message:
        """Make the reply; nothing in its metadata is the client's word."""
        asked = call.metadata
        metadata = Metadata(
            run_id=asked.run_id,
            message_id=str(next(self._ids)),
            src_node_id=asked.dst_node_id,
            dst_node_id=asked.src_node_id,
            reply_to_message_id=asked.message_id,
            group_id=asked.group_id,
            created_at=time.time(),
            ttl=DEFAULT_TTL,
            message_type=asked.message_type,
        )
        if outcome.content is not None:
            return make_message(metadata, outcome.content)
        reason = f"{call.node.participant}: {outcome.reason}"
        return make_message(metadata, Error(outcome.code, reason))


def _preload() -> None:
    """Load once, before the fork, what every worker would else load in its first call.

    Loaded late, in a call, torch would escape that call's seed; and a program's first optimizer
    makes torch import its compiler: seconds for each worker, and for each replacement of one.
    """
    with suppress(ImportError):
        import torch

        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0).zero_grad()


def _fork_obstacle() -> str:
    """Why workers cannot be forked here; empty if they can."""
    if sys.platform != "linux":
        return f"no safe fork on {sys.platform}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "this process already uses CUDA"
    return ""
