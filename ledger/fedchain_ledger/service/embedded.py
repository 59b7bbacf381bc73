"""All validators of a chain in this process: one background thread, one event loop, no server.

The same node class as in a validator of its own, over another transport. One operator stands
behind all of them then, and every audit's report says so.
"""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from fedchain_ledger.client import LedgerClient, Refusal
from fedchain_ledger.core.timing import Timing
from fedchain_ledger.core.verification import VerificationCache
from fedchain_ledger.service.node import Clock, Node, NodeState
from fedchain_ledger.service.transport import InProcessHub
from fedchain_proto.errors import UnavailableError, UsageError
from fedchain_proto.keys import SigningKey
from fedchain_proto.trust import Genesis

T = TypeVar("T")

Question: TypeAlias = Callable[[Node], Coroutine[Any, Any, T]]
"""What is asked of whichever validator runs."""

_STOP_TIMEOUT_S = 60.0


def wall_clock() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class EmbeddedLedger:
    """A chain's validators, run by this process between `start` and `stop`. Thread-safe.

    ::

        with EmbeddedLedger(genesis, keys, folder) as ledger:
            ledger.client().submit([envelope])
    """

    def __init__(
        self,
        genesis: Genesis,
        keys: Mapping[str, SigningKey],
        folder: Path,
        *,
        clock: Clock = wall_clock,
        timing: Timing | None = None,
    ) -> None:
        """Name what is to run; nothing is opened or started yet.

        Args:
            genesis: The trust root.
            keys: Every validator's key, by its name in the genesis.
            folder: Holds, or gets, a database NAME.db for each validator.
            clock: Unix milliseconds.
            timing: How patient the validators are.

        Raises:
            UsageError: A key is missing, or is not the one that the genesis names.
        """
        for validator in genesis.validators:
            key = keys.get(validator.name)
            if key is None or key.public != validator.public_key:
                raise UsageError(f"no key, or another one than the genesis's, for {validator.name}")
        self._genesis = genesis
        self._keys = dict(keys)
        self._folder = folder
        self._clock = clock
        self._timing = timing
        self._lock = threading.Lock()
        self._nodes: list[Node] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "EmbeddedLedger":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Open every database and start every validator; does nothing if they run.

        Raises:
            UsageError: The folder cannot be written, or is in use by another process.
            FedchainError: A database is damaged. Nothing runs then.
        """
        with self._lock:
            if self._thread is not None:
                return
            loop = asyncio.new_event_loop()
            thread = threading.Thread(
                target=_run_loop, args=(loop,), name="fedchain-ledger", daemon=True
            )
            thread.start()
            self._loop, self._thread = loop, thread
            opening = asyncio.run_coroutine_threadsafe(self._open(), loop)
            try:
                opening.result()
            except BaseException:  # Ctrl-C included
                opening.cancel()
                self._shut_down()
                raise

    def stop(self) -> None:
        """Stop every validator after the step it is in, and close its database.

        May be called at any time, from any thread and twice. What was acknowledged is on the disk
        before that, whether or not this is ever called.
        """
        with self._lock:
            self._shut_down()

    def client(self) -> LedgerClient:
        """Return a client of the validators; it works while they run."""
        return LedgerClient(_EmbeddedTransport(self), self._genesis)

    def states(self) -> dict[str, str]:
        """Say how each validator is, with the reason for one that has halted."""
        return {
            node.name: f"{node.state}: {node.reason}" if node.reason else str(node.state)
            for node in self._nodes
        }

    async def _open(self) -> None:
        cache = VerificationCache()
        hub = InProcessHub()
        for validator in self._genesis.validators:
            node = Node(
                self._genesis,
                self._keys[validator.name],
                self._folder / f"{validator.name}.db",
                self._clock,
                timing=self._timing,
                cache=cache,
            )
            self._nodes.append(node)
            await node.open()
        transports = [hub.attach(index, node.receive) for index, node in enumerate(self._nodes)]
        for node, transport in zip(self._nodes, transports, strict=True):
            node.start(transport)

    def _shut_down(self) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._close(), loop).result(_STOP_TIMEOUT_S)
        finally:
            self._loop = self._thread = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_STOP_TIMEOUT_S)

    async def _close(self) -> None:
        nodes, self._nodes = self._nodes, []
        await asyncio.gather(*(node.stop() for node in nodes))

    def run(self, question: Question[T], timeout_s: float) -> T:
        """Ask the first validator that runs, and wait.

        Raises:
            UnavailableError: None runs, or it did not answer in time.
        """
        loop = self._loop
        if loop is None:
            raise UnavailableError("the ledger does not run")
        asking = self._ask(question)
        try:
            asked = asyncio.run_coroutine_threadsafe(asking, loop)
        except RuntimeError:  # the loop has ended since we looked
            asking.close()
            raise UnavailableError("the ledger was stopped meanwhile") from None
        try:
            return asked.result(timeout_s)
        except concurrent.futures.TimeoutError:
            raise UnavailableError(f"no answer within {timeout_s:.1f} s") from None
        except concurrent.futures.CancelledError:
            raise UnavailableError("the ledger was stopped meanwhile") from None
        finally:
            asked.cancel()

    async def _ask(self, question: Question[T]) -> T:
        for node in self._nodes:
            if node.state is NodeState.RUNNING:
                return await question(node)
        states = ", ".join(f"{name} {state}" for name, state in self.states().items())
        raise UnavailableError(f"no validator runs ({states or 'stopped'})")


class _EmbeddedTransport:
    """A `LedgerTransport` into the event loop of this process."""

    def __init__(self, ledger: EmbeddedLedger) -> None:
        self._ledger = ledger

    def submit(
        self, envelopes: Sequence[bytes], *, flush: bool, timeout_s: float
    ) -> list[bytes | Refusal]:
        """Bring envelopes into the ledger."""
        return self._ledger.run(lambda node: node.submit(envelopes, flush=flush), timeout_s)

    def receipt(self, tx_id: bytes, *, timeout_s: float) -> bytes | None:
        """Return a committed transaction's receipt."""
        return self._ledger.run(lambda node: node.receipt(tx_id), timeout_s)

    def round_updates(self, run: bytes, number: int, *, timeout_s: float) -> list[bytes]:
        """Return the receipts of a round's updates."""
        return self._ledger.run(lambda node: node.round_updates(run, number), timeout_s)

    def members(self, *, timeout_s: float) -> list[bytes]:
        """Return the receipts of every admission and revocation."""
        return self._ledger.run(lambda node: node.members(), timeout_s)

    def head(self, *, timeout_s: float) -> tuple[bytes, bytes] | None:
        """Return the last header and its certificate."""
        return self._ledger.run(lambda node: node.head(), timeout_s)


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Be the background thread: run the loop until it is stopped, then leave nothing behind."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
