"""A seeded storm over a world of cores, and what must hold through it and after it.

One seed fixes everything: n, who lies, what is lost, doubled, late or cut off, who dies between
which two effects, whose clock is wrong. Through the storm: one block a height, nothing signed
twice, nobody innocent accused. After it: every transaction once, everywhere, within a bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from fedchain_ledger.core.consensus import Core
from fedchain_ledger.core.effects import Decide, Effect
from fedchain_ledger.core.timing import Timing
from fedchain_proto.trust import ValidatorSet
from tests.sim.engine import Node, Policy, World
from tests.sim.liar import Liar
from tests.sim.toy import CHAIN_ID, Stored, fast_signatures

TIMING = Timing(base_timeout_ms=500, worst_round_ms=4_000)
BOUND_MS = 60_000  # after the storm: f dead leaders at 16 T0 each, and more; typical is 1 s
SIZES = (1, 4, 4, 5, 5, 6, 6, 7, 7)


class BrokenError(AssertionError):
    """An invariant does not hold. The seed replays it exactly."""


@dataclass
class Outcome:
    """What one seed did, for the curious."""

    seed: int
    n: int
    blocks: int
    delivered: int
    rounds: int  # highest round that decided
    recovery_ms: int  # after the storm


class Storm(Policy):
    """Loss, copies, delay, partitions and deaths, until it is over."""

    def __init__(self, rng: random.Random, n: int) -> None:
        self.rng = rng
        self.over = False
        self.loss = rng.choice((0.0, 0.05, 0.2))
        self.copies = rng.choice((0.0, 0.1))
        self.late = rng.choice((0.0, 0.05, 0.2))
        self.death = rng.choice((0.0, 0.01, 0.05))
        # Locks matter when a kind of message hardly gets through; and some links are one-way.
        self.thin = rng.choice((None, None, b"vote", b"commit", b"proposal"))
        self.deaf = {
            (rng.randrange(n), rng.randrange(n)) for _ in range(rng.choice((0, 0, n // 2, n)))
        }
        self.side: dict[int, int] = {}
        self.dead: set[int] = set()

    def split(self, names: Sequence[int]) -> None:
        """Cut the network into two or three parts, or heal it."""
        parts = self.rng.choice((1, 2, 2, 3))
        self.side = {name: self.rng.randrange(parts) for name in names}

    def deliveries(self, world: World, sender: Node, to: Node, message: bytes) -> Sequence[int]:
        if sender.name in self.dead or to.name in self.dead:
            return ()
        random_ = self.rng.random
        if self.over:
            return (1 + int(20 * random_()),)
        if self.side.get(sender.name) != self.side.get(to.name) or random_() < self.loss:
            return ()
        if (sender.name, to.name) in self.deaf and random_() < 0.9:
            return ()
        if self.thin is not None and random_() < 0.7 and _kind(message) == self.thin:
            return ()
        slow = 2_000 if random_() < self.late else 20
        first = 1 + int(slow * random_())
        return (first, first + int(500 * random_())) if random_() < self.copies else (first,)

    def dies(self, world: World, node: Node) -> bool:
        if self.over or not node.honest or self.rng.random() >= self.death:
            return False
        world.at(self.rng.randrange(3_000), lambda: self.revive(world, node))
        return True

    def revive(self, world: World, node: Node) -> None:
        """Start a dead process again, unless it is dead for good."""
        if not node.up and not node.halted and node.name not in self.dead:
            world.boot(node.name)


def _kind(message: bytes) -> bytes:
    """What a message of ours is, from the first bytes of its protobuf."""
    if message[:1] == b"\x0a":
        return b"proposal"
    if message[:1] == b"\x12":
        return b"commit" if message[3:5] == b"\x08\x03" else b"vote"
    return b"other"


class WatchedWorld(World):
    """A world in which honest decisions are compared as they are made."""

    history: dict[int, bytes]
    highest_round: int = 0

    def _effect(self, node: Node, effect: Effect) -> None:
        if isinstance(effect, Decide) and node.honest:
            known = self.history.setdefault(effect.height, effect.block_id)
            if known != effect.block_id:
                raise BrokenError(f"two blocks at height {effect.height}")
            self.highest_round = max(self.highest_round, effect.certificate.round)
        super()._effect(node, effect)


class Simulation:
    """One seed's run."""

    def __init__(
        self,
        seed: int,
        n: int | None = None,
        core_type: type[Core] = Core,
        change_set: Callable[[ValidatorSet], None] | None = None,
    ) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.n = rng.choice(SIZES) if n is None else n
        f = (self.n - 1) // 3
        faulty = rng.sample(range(self.n), rng.randint(0, f))
        kinds = {index: rng.choice(("dead", "twin", "liar")) for index in faulty}
        twins = [index for index, kind in kinds.items() if kind == "twin"]
        self.storm = Storm(rng, self.n)
        self.world = WatchedWorld(self.n, policy=self.storm, timing=TIMING, fast=True, twins=twins)
        self.world.history = {}
        if change_set is not None:
            change_set(self.world.validators)
        self.guilty = {
            self.world.keys[index].key_id for index, kind in kinds.items() if kind != "dead"
        }
        self.liars = []
        for node in self.world.nodes:
            node.core_type = core_type
            node.skew_ms = rng.choice((0, 0, 0, rng.randint(-2_000, 2_000)))
            kind = kinds.get(node.index)
            node.honest = kind is None
            if kind == "liar":
                self.liars.append(Liar(self.world, node, rng))
                self.storm.dead.add(node.name)
        self.doomed = [index for index, kind in kinds.items() if kind == "dead"]
        self.honest = [node for node in self.world.nodes if node.honest]
        self.waiting: dict[bytes, int] = {}

    def run(self) -> Outcome:
        """Live through it.

        Raises:
            BrokenError: An invariant does not hold.
        """
        world, rng = self.world, self.rng
        for node in world.nodes:
            if node.name not in self.storm.dead:
                world.boot(node.name)
        length_ms = rng.choice((2_000, 5_000, 10_000))
        for index in self.doomed:
            world.at(rng.randrange(length_ms), partial(self._bury, index))
        for number in range(rng.randint(2, 5)):
            transaction = b"transaction %d of seed %d" % (number, self.seed)
            world.at(rng.randrange(length_ms), partial(self._client, transaction))
        for _ in range(rng.randint(0, 3)):
            world.at(rng.randrange(length_ms), self._split)
        for liar in self.liars:
            liar.start(length_ms)
        self._watch(length_ms, lambda: False)
        return self._calm()

    def _calm(self) -> Outcome:
        self.storm.over = True
        for liar in self.liars:
            liar.stop()
        for node in self.world.nodes:
            self.storm.revive(self.world, node)
        started = self.world.now_ms
        if not self._watch(BOUND_MS, self._settled):
            raise BrokenError(f"no progress {BOUND_MS} ms after the storm: {self.world.heights()}")
        self._check()
        return Outcome(
            self.seed,
            self.n,
            len(self.world.history),
            self.world.delivered,
            self.world.highest_round,
            self.world.now_ms - started,
        )

    def _watch(self, for_ms: int, until: Callable[[], bool]) -> bool:
        done = self.world.run(for_ms, until)
        for node in self.honest:
            if node.halted:
                raise BrokenError(f"node {node.name} halted: {node.halted}")
        return done

    # -------------------------------------------------------------- what happens

    def _split(self) -> None:
        self.storm.split(range(len(self.world.nodes)))

    def _bury(self, index: int) -> None:
        for node in self.world.nodes:
            if node.index == index:
                node.up = False
                self.storm.dead.add(node.name)

    def _client(self, transaction: bytes) -> None:
        """Submit to somebody, and again to somebody until it is recorded somewhere."""
        self.waiting[transaction] = self.waiting.get(transaction, 0)
        if any(transaction in stored.block.envelopes for stored in self._blocks()):
            return
        node = self.rng.choice(self.honest)
        self.world.submit(node.name, transaction, flush=self.rng.random() < 0.5)
        self.world.at(2_000, lambda: self._client(transaction))

    def _blocks(self) -> Iterator[Stored]:
        for node in self.honest:
            yield from node.store.chain

    # -------------------------------------------------------------- what must hold

    def _settled(self) -> bool:
        heights = {len(node.store.chain) for node in self.honest}
        if len(heights) > 1 or len(self.waiting) == 0:
            return len(self.waiting) == 0
        recorded = self.world.transactions(self.honest[0].name)
        return self.waiting.keys() <= set(recorded)

    def _check(self) -> None:
        world = self.world
        for node in self.honest:
            recorded = world.transactions(node.name)
            if len(set(recorded)) != len(recorded):
                raise BrokenError("a transaction is recorded twice")
            for height, stored in enumerate(node.store.chain, 1):
                if stored.certificate.block_id != world.history[height]:
                    raise BrokenError(f"node {node.name} stores another block {height}")
                stored.certificate.verify(CHAIN_ID, world.validators)
            for accusation in node.accusations:
                if accusation.accused not in self.guilty:
                    raise BrokenError(f"node {node.name} accuses an honest validator")


def simulate(
    seed: int,
    n: int | None = None,
    core_type: type[Core] = Core,
    change_set: Callable[[ValidatorSet], None] | None = None,
) -> Outcome:
    """Run one seed; the same seed does the same, always.

    Raises:
        BrokenError: An invariant does not hold.
    """
    with fast_signatures():
        try:
            return Simulation(seed, n, core_type, change_set).run()
        except BrokenError:
            raise
        except AssertionError as error:  # the disk's refusal to sign twice
            raise BrokenError(str(error)) from error
