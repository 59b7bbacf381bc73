"""One validator at work: it feeds the consensus core events, and runs its effects in order.

Durable before audible: each effect is finished before the next begins, and the first that fails
halts the node, loudly, with everything that it has promised still on its disk. It decides
nothing itself. Which wire its messages travel on is the transport's business.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias, cast

from fedchain_ledger.core import messages
from fedchain_ledger.core.chain import Chain, Committed
from fedchain_ledger.core.consensus import Core, Status
from fedchain_ledger.core.effects import (
    Accuse,
    Decide,
    Effect,
    Event,
    MessageReceived,
    Persist,
    Refused,
    Send,
    SendDecided,
    SetTimer,
    TimerFired,
    WorkArrived,
)
from fedchain_ledger.core.timing import Timing
from fedchain_ledger.core.verification import VerificationCache
from fedchain_ledger.service import lookups
from fedchain_ledger.service.disk import Disk
from fedchain_ledger.service.gossip import gossip_messages
from fedchain_ledger.service.inbox import GOSSIP_TAG, FromPeer, Inbox
from fedchain_ledger.service.proofs import decided
from fedchain_ledger.service.store import Store
from fedchain_ledger.service.timers import Elapsed, Timers
from fedchain_ledger.service.transport import Transport
from fedchain_ledger.service.verifying import verify_ahead
from fedchain_ledger.service.waiting import Outcome, Waiting, answer
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.blocks import MAX_BLOCK_TRANSACTIONS
from fedchain_proto.envelope import decode
from fedchain_proto.errors import (
    EvidenceError,
    FedchainError,
    RuleError,
    UnavailableError,
    UsageError,
)
from fedchain_proto.keys import SigningKey
from fedchain_proto.statements import seal_statement
from fedchain_proto.trust import Genesis

_log = logging.getLogger("fedchain.ledger")

Clock: TypeAlias = Callable[[], int]
"""Unix milliseconds."""

MAX_SUBMISSION = MAX_BLOCK_TRANSACTIONS
_TICK_S = 1.0


class NodeState(StrEnum):
    """How a node is."""

    NEW = "new"
    OPEN = "open"  # its database is replayed, it does not take part yet
    RUNNING = "running"
    HALTED = "halted"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class _Submission:
    envelopes: Sequence[bytes]
    futures: Sequence[asyncio.Future[Outcome]]
    flush: bool


class _Tick:
    """Time to look again at what waits."""


class _Stop:
    """Time to go."""


_Own: TypeAlias = _Submission | Elapsed | _Tick | _Stop


class Node:
    """One validator, or without a key an observer. Everything happens in one event loop.

    ::

        node = Node(genesis, key, path, clock)
        await node.open()              # replays what is stored, verifying all of it
        node.start(transport)          # messages go to node.receive
        await node.submit([envelope], flush=True)
        await node.stop()
    """

    def __init__(
        self,
        genesis: Genesis,
        key: SigningKey | None,
        path: Path,
        clock: Clock,
        *,
        timing: Timing | None = None,
        cache: VerificationCache | None = None,
    ) -> None:
        """Make a node; nothing is opened yet.

        Args:
            genesis: The trust root.
            key: The validator's, None to observe.
            path: Its database, made if it is not there.
            clock: For header times and time-outs.
            timing: How patient it is.
            cache: Shared with other nodes of this event loop, if given.
        """
        self.name = path.stem
        self.state = NodeState.NEW
        self.reason = ""
        self._genesis = genesis
        self._key = key
        self._clock = clock
        self._timing = timing or Timing()
        self._cache = VerificationCache() if cache is None else cache
        self._chain = Chain(genesis, cache=self._cache)
        self._disk = Disk(path)
        self._core: Core | None = None
        self._transport: Transport | None = None
        self._inbox: Inbox[_Own] = Inbox(genesis.validators.n)
        self._waiting = Waiting()
        # Of the last block that is on the disk; the chain itself may be a step ahead.
        self._parent_certificate = b""
        self._log = self._chain.state.log
        self._timers = Timers(self._inbox.put)
        self._ticker: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    # -------------------------------------------------------------- life

    async def open(self) -> None:
        """Open the database and replay it, verifying every block as if a stranger had sent it.

        Raises:
            UsageError: The database is in use, not writable, or holds another chain.
            FedchainError: It is damaged; the message names file and height.
        """
        await self._disk.open(self._genesis.chain_id)
        try:
            self._parent_certificate = await lookups.replay(self._disk, self._chain)
            self._log = self._chain.state.log
            journal = await self._disk.call(Store.journal)
            self._core = Core(
                chain_id=self._genesis.chain_id,
                key=self._key,
                app=self._chain,
                timing=self._timing,
                journal=journal,
            )
        except BaseException:
            await self._disk.close()
            raise
        self.state = NodeState.OPEN

    def start(self, transport: Transport) -> None:
        """Take part: begin to send over `transport` and to look at what `receive` was given."""
        if self.state is not NodeState.OPEN:
            raise UsageError(f"{self.name} is {self.state}; open it first")
        self._transport = transport
        self.state = NodeState.RUNNING
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """Finish the step that is under way, and close the database; may be called twice."""
        if self._task is not None:
            self._inbox.put(_Stop())
            with suppress(asyncio.CancelledError):
                await asyncio.shield(self._task)
        if self.state is not NodeState.HALTED:
            self.state = NodeState.STOPPED
        self._end(f"{self.name} has stopped")
        await self._disk.close()

    def status(self) -> Status | None:
        """Where the core stands; None before `open`."""
        return None if self._core is None else self._core.status()

    @property
    def tip_height(self) -> int:
        """Height of the last decided block."""
        return self._chain.tip_height

    def receive(self, sender: int, data: bytes) -> None:
        """Take a message of a peer that the transport has authenticated; never blocks."""
        if self.state in (NodeState.OPEN, NodeState.RUNNING):
            self._inbox.put_message(sender, data)

    async def _run(self) -> None:
        try:
            core = self._running_core()
            await self._perform(core.start(self._clock()))
            self._tick_later()
            while True:
                item = await self._inbox.get()
                if isinstance(item, _Stop):
                    return
                await self._take(core, item)
                self._settle_refused()
        except Exception as error:  # noqa: BLE001  # whatever it is: what comes after must not run
            self._halt(error)

    def _halt(self, error: Exception) -> None:
        self.state = NodeState.HALTED
        self.reason = str(error) or type(error).__name__
        expected = isinstance(error, FedchainError)
        _log.critical("%s has halted: %s", self.name, self.reason, exc_info=not expected)
        self._end(f"{self.name} has halted: {self.reason}")

    def _end(self, why: str) -> None:
        self._timers.cancel()
        if self._ticker is not None:
            self._ticker.cancel()
        self._waiting.abandon(why)
        for item in self._inbox.clear():
            if isinstance(item, _Submission):
                for future in item.futures:
                    answer(future, UnavailableError(why))

    # -------------------------------------------------------------- for users

    async def submit(self, envelopes: Sequence[bytes], *, flush: bool) -> list[Outcome]:
        """Bring envelopes into the chain.

        Args:
            envelopes: At most 1,000, from anyone; a later one may build on an earlier one.
            flush: Whether a block is cut at once.

        Returns:
            In order, for each its receipt once it is committed, or the error that refuses it.

        Raises:
            UnavailableError: The node does not run, or has no room for one of them now.
            UsageError: Too many at once.
        """
        if len(envelopes) > MAX_SUBMISSION:
            raise UsageError(f"{len(envelopes)} envelopes at once; {MAX_SUBMISSION} are allowed")
        self._check_running()
        await verify_ahead(envelopes, self._chain.state.key_of, self._cache)
        self._check_running()
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Outcome]] = [loop.create_future() for _ in envelopes]
        self._inbox.put(_Submission(tuple(envelopes), futures, flush))
        # All are waited for before one that found no room speaks for the rest.
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(
                outcome, RuleError | EvidenceError
            ):
                raise outcome
        return cast(list[Outcome], outcomes)

    async def receipt(self, tx_id: bytes) -> bytes | None:
        """Return a committed transaction's receipt, None if there is none."""
        self._check_running()
        return await self._disk.call(lookups.receipt, tx_id)

    async def round_updates(self, run: bytes, number: int) -> list[bytes]:
        """Return the receipts of the updates that stand in the log for a round, in log order."""
        self._check_running()
        return await self._disk.call(lookups.round_updates, run, number)

    async def members(self) -> list[bytes]:
        """Return the receipts of every admission and revocation, in log order."""
        self._check_running()
        return await self._disk.call(lookups.members)

    async def head(self) -> tuple[bytes, bytes] | None:
        """Return the last header and its certificate, None before the first block."""
        self._check_running()
        return await self._disk.call(lookups.head)

    def _check_running(self) -> None:
        if self.state is not NodeState.RUNNING:
            because = f": {self.reason}" if self.reason else ""
            raise UnavailableError(f"{self.name} is {self.state}{because}")

    # -------------------------------------------------------------- events

    async def _take(self, core: Core, item: _Own | FromPeer) -> None:
        match item:
            case FromPeer():
                if item.data[0] == GOSSIP_TAG:
                    await self._take_gossip(core, item)
                else:
                    await self._tell(core, MessageReceived(item.sender, item.data))
            case Elapsed():
                if self._timers.is_current(item):
                    await self._tell(core, TimerFired(item.name))
            case _Submission():
                await self._take_submission(core, item)
            case _Tick():
                await self._take_tick(core)

    async def _tell(self, core: Core, event: Event) -> None:
        await self._perform(core.handle(event, self._clock()))

    async def _take_submission(self, core: Core, item: _Submission) -> None:
        admitted = []
        for raw, future in zip(item.envelopes, item.futures, strict=True):
            try:
                verified = self._chain.admit(raw, now_ms=self._clock())
            except RuleError as error:
                known = await self._known_receipt(raw) if error.code == "duplicate" else None
                answer(future, known or error)
            except (EvidenceError, UnavailableError) as error:
                answer(future, error)
            else:
                self._waiting.add(verified.signed.tx_id, raw, future)
                admitted.append(raw)
        if admitted:
            self._gossip(admitted, flush=item.flush)
            await self._tell(core, WorkArrived(item.flush))

    async def _known_receipt(self, raw: bytes) -> bytes | None:
        return await self._disk.call(lookups.receipt, decode(raw).tx_id)

    async def _take_gossip(self, core: Core, item: FromPeer) -> None:
        try:
            message = messages.parse(item.data)
        except EvidenceError as error:
            _log.debug("%s: refused gossip of %d: %s", self.name, item.sender, error)
            return
        if not message.HasField("gossip"):  # the tag byte lied: let the core judge it
            await self._tell(core, MessageReceived(item.sender, item.data))
            return
        admitted = False
        for raw in message.gossip.envelopes:
            # What is refused here is the business of the node that its owner asked.
            with suppress(FedchainError):
                self._chain.admit(raw, now_ms=self._clock(), hold=True)
                admitted = True
        if admitted:
            await self._tell(core, WorkArrived(message.gossip.flush))

    async def _take_tick(self, core: Core) -> None:
        """Judge what waits by the clock, and tell the others again of what they may have missed."""
        self._tick_later()
        idle = not self._chain.has_work()
        self._chain.expire(self._clock())
        self._gossip(self._waiting.envelopes(), flush=True)
        if idle and self._chain.has_work():
            await self._tell(core, WorkArrived(flush=True))

    def _tick_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._ticker = loop.call_later(_TICK_S, self._inbox.put, _Tick())

    def _gossip(self, envelopes: Sequence[bytes], *, flush: bool) -> None:
        for message in gossip_messages(envelopes, flush=flush):
            self._running_transport().broadcast(message)

    def _settle_refused(self) -> None:
        for tx_id, error in self._chain.take_refused():
            self._waiting.settle(tx_id, error)

    # -------------------------------------------------------------- effects

    async def _perform(self, effects: Sequence[Effect]) -> None:
        """Run effects in order; the first that fails ends the node (see `_run`)."""
        for effect in effects:
            match effect:
                case Persist():
                    await self._disk.call(Store.save_journal, effect.entries)
                case Decide():
                    await self._decide(cast(Committed, effect.committed))
                case Send():
                    self._send(effect)
                case SendDecided():
                    await self._send_decided(effect)
                case SetTimer():
                    self._timers.set(effect.name, effect.at_ms - self._clock())
                case Accuse():
                    self._accuse(effect)
                case Refused():
                    _log.debug("%s: refused %d: %s", self.name, effect.sender, effect.reason)

    async def _decide(self, committed: Committed) -> None:
        block = lookups.new_block(committed, self._parent_certificate)
        await self._disk.call(Store.append, block)
        self._parent_certificate = block.certificate
        before, self._log = self._log, committed.valid.state.log
        transactions = committed.valid.transactions
        if any(verified.signed.tx_id in self._waiting for verified in transactions):
            proofs = decided(before, committed)
            for position, verified in enumerate(transactions):
                tx_id = verified.signed.tx_id
                if tx_id in self._waiting:
                    receipt = proofs.receipt(position, verified.signed.raw)
                    self._waiting.settle(tx_id, receipt)

    def _send(self, effect: Send) -> None:
        transport = self._running_transport()
        if effect.to is None:
            transport.broadcast(effect.message)
        else:
            transport.send(effect.to, effect.message)

    async def _send_decided(self, effect: SendDecided) -> None:
        block, certificate = await self._disk.call(lookups.decided_block, effect.height)
        message = messages.encode_decided(block, certificate)
        self._running_transport().send(effect.to, message)

    def _accuse(self, effect: Accuse) -> None:
        """Bring the offence before the chain, under our own name."""
        _log.warning("%s: %s has double-talked", self.name, effect.accused.hex()[:12])
        if self._key is None:
            return
        evidence = wire.Evidence(
            chain_id=self._genesis.chain_id,
            offence=effect.offence,
            accused=effect.accused,
            first=effect.first,
            second=effect.second,
        )
        nobody: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        # Somebody else may have brought it already: whatever the answer, there is nothing to do.
        nobody.add_done_callback(lambda future: future.exception())
        self._inbox.put(_Submission((seal_statement(evidence, self._key),), (nobody,), flush=False))

    def _running_core(self) -> Core:
        if self._core is None:
            raise AssertionError("a node that runs has a core")
        return self._core

    def _running_transport(self) -> Transport:
        if self._transport is None:
            raise AssertionError("a node that runs has a transport")
        return self._transport
