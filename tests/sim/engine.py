"""A world of consensus cores in one thread: a clock, a network, disks, crashes. All repeatable.

``Policy`` says what the network does to a message and when a node dies; the default is a perfect
network. Directed tests and the seeded simulator bring their own.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedchain_ledger.core import messages
from fedchain_ledger.core.consensus import Core, HaltError
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
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.keys import SigningKey
from fedchain_proto.trust import ValidatorSet
from tests.sim.toy import CHAIN_ID, START_MS, Stored, ToyApplication, ToyStore, toy_keys, toy_set

DELAY_MS = 10


class Policy:
    """A perfect network, and nobody dies."""

    def deliveries(self, world: World, sender: Node, to: Node, message: bytes) -> Sequence[int]:
        """Delays in ms at which copies of a message arrive; none if it is lost."""
        return (DELAY_MS,)

    def dies(self, world: World, node: Node) -> bool:
        """Whether a node dies before it runs its next effect."""
        return False


@dataclass
class Node:
    """One process: a core, its application in memory, its disk. ``index`` may be shared (twins)."""

    index: int
    key: SigningKey
    validators: ValidatorSet
    timing: Timing
    core_type: type[Core] = Core
    name: int = 0  # position in the world
    skew_ms: int = 0
    honest: bool = True
    store: ToyStore = field(default_factory=ToyStore)
    up: bool = False
    halted: str = ""
    lives: int = 0
    accusations: list[Accuse] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    decided: list[Decide] = field(default_factory=list)
    timers: dict[str, int] = field(default_factory=dict)
    app: ToyApplication = field(init=False)
    core: Core = field(init=False)

    def build(self, journal_lost: bool = False) -> None:
        """Start a process from what is on the disk."""
        self.app = ToyApplication(self.validators)
        self.app.replay(self.store.chain)
        self.core = self.core_type(
            chain_id=CHAIN_ID,
            key=self.key,
            app=self.app,
            timing=self.timing,
            journal=tuple(self.store.journal.values()),
            journal_lost=journal_lost,
        )
        self.timers = {}
        self.up = True
        self.lives += 1


Body = tuple[str, Any]


class World:
    """Events in the order of their time; ties in the order of their making."""

    def __init__(
        self,
        n: int,
        *,
        policy: Policy | None = None,
        timing: Timing | None = None,
        fast: bool = False,
        core_types: Sequence[type[Core]] | None = None,
        twins: Sequence[int] = (),
    ) -> None:
        self.keys = toy_keys(n, fast=fast)
        self.validators = toy_set(self.keys)
        self.policy = policy or Policy()
        self.now_ms = START_MS
        self.delivered = 0
        self.tap: Callable[[Node, Node, bytes], None] | None = None
        self._queue: list[tuple[int, int, Node, int, Body]] = []
        self._made = 0
        timing = timing or Timing()
        self.nodes = [
            Node(i, self.keys[i], self.validators, timing, name=name)
            for name, i in enumerate([*range(n), *twins])
        ]
        for node, core_type in zip(self.nodes, core_types or (), strict=False):
            node.core_type = core_type

    # -------------------------------------------------------------- life and death

    def boot(self, *names: int, journal_lost: bool = False) -> None:
        """Start nodes; all of them if none is named."""
        for name in names or range(len(self.nodes)):
            node = self.nodes[name]
            node.build(journal_lost)
            self._run(node, node.core.start(self.clock(node)))

    def crash(self, name: int) -> None:
        """Kill a process; its disk stays."""
        self.nodes[name].up = False

    def clock(self, node: Node) -> int:
        """What a node's own clock says."""
        return self.now_ms + node.skew_ms

    # -------------------------------------------------------------- what goes in

    def submit(self, name: int, transaction: bytes, *, flush: bool = True) -> None:
        """A client gives a transaction to one node, whose shell passes it on."""
        node = self.nodes[name]
        if node.up and node.app.submit(transaction):
            gossip = wire.Gossip(envelopes=[transaction], flush=flush)
            self._send(node, None, wire.ConsensusMessage(gossip=gossip).SerializeToString())
            self.feed(node, WorkArrived(flush))

    def inject(self, sender: int, to: int, message: bytes) -> None:
        """Hand a message to a node now, as coming from validator ``sender``."""
        self.feed(self.nodes[to], MessageReceived(sender, message))

    def feed(self, node: Node, event: Event) -> None:
        """Hand one event to a node's core and run what comes out."""
        if not node.up:
            return
        try:
            effects = node.core.handle(event, self.clock(node))
        except HaltError as error:
            node.up, node.halted = False, str(error)
            return
        self._run(node, effects)

    def at(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something later."""
        self._push(delay_ms, self.nodes[0], 0, ("call", action))

    # -------------------------------------------------------------- the clock

    def run(self, for_ms: int, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; stop early, with True, when ``until`` holds."""
        end = self.now_ms + for_ms
        if until is not None and until():
            return True
        while self._queue and self._queue[0][0] <= end:
            self.now_ms, _, node, life, body = heapq.heappop(self._queue)
            self._do(node, life, body)
            if until is not None and until():
                return True
        self.now_ms = end
        return False

    def reach(self, height: int, for_ms: int, names: Sequence[int] = ()) -> bool:
        """Let time pass until the named nodes, or all, have decided a height."""
        chains = [self.nodes[name].store for name in names or range(len(self.nodes))]
        return self.run(for_ms, lambda: all(len(store.chain) >= height for store in chains))

    def _do(self, node: Node, life: int, body: Body) -> None:
        kind, value = body
        if kind == "call":
            value()
        elif kind == "timer":
            name, token = value
            if node.up and node.lives == life and node.timers.get(name) == token:
                del node.timers[name]
                self.feed(node, TimerFired(name))
        elif node.up:
            sender, message = value
            self.delivered += 1
            self._receive(node, sender, message)

    def _receive(self, node: Node, sender: int, message: bytes) -> None:
        try:
            body = messages.parse(message)
        except Exception:  # noqa: BLE001  # whatever the core makes of it
            body = wire.ConsensusMessage()
        if body.HasField("gossip"):
            new = [node.app.submit(raw) for raw in body.gossip.envelopes]
            if any(new):
                self.feed(node, WorkArrived(body.gossip.flush))
        else:
            self.feed(node, MessageReceived(sender, message))

    def _push(self, delay_ms: int, node: Node, life: int, body: Body) -> None:
        self._made += 1
        at = self.now_ms + max(0, delay_ms)
        heapq.heappush(self._queue, (at, self._made, node, life, body))

    # -------------------------------------------------------------- effects, one by one, in order

    def _run(self, node: Node, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if self.policy.dies(self, node):
                node.up = False
                return
            self._effect(node, effect)

    def _effect(self, node: Node, effect: Effect) -> None:
        if isinstance(effect, Persist):
            node.store.persist(effect.entries)
        elif isinstance(effect, Decide):
            node.store.decide(Stored(effect.block, effect.certificate))
            node.decided.append(effect)
        elif isinstance(effect, Send):
            self._send(node, effect.to, effect.message)
        elif isinstance(effect, SendDecided):
            stored = node.store.chain[effect.height - 1]
            raw = messages.encode_decided(stored.block, stored.certificate.encode())
            self._send(node, effect.to, raw)
        elif isinstance(effect, SetTimer):
            self._made += 1
            node.timers[effect.name] = self._made
            delay = effect.at_ms - self.clock(node)
            self._push(delay, node, node.lives, ("timer", (effect.name, self._made)))
        elif isinstance(effect, Accuse):
            node.accusations.append(effect)
        elif len(node.refused) < 1000:
            node.refused.append(effect)

    def _send(self, sender: Node, to: int | None, message: bytes) -> None:
        for node in self.nodes:
            wanted = node is not sender if to is None else node.index == to
            if not wanted or node.index == sender.index:
                continue
            if self.tap is not None:
                self.tap(sender, node, message)
            for delay_ms in self.policy.deliveries(self, sender, node, message):
                self._push(delay_ms, node, 0, ("message", (sender.index, message)))

    # -------------------------------------------------------------- what came out

    def heights(self) -> list[int]:
        """Every node's tip, as on its disk."""
        return [len(node.store.chain) for node in self.nodes]

    def ids(self, name: int) -> list[bytes]:
        """A node's decided block ids, from its disk."""
        return [stored.certificate.block_id for stored in self.nodes[name].store.chain]

    def transactions(self, name: int) -> list[bytes]:
        """A node's decided transactions, in order."""
        return [raw for stored in self.nodes[name].store.chain for raw in stored.block.envelopes]
