"""Directed schedules: what random seeds do not find, or not soon enough.

Each is also what kills a mutant in test_mutants.py.
"""

from __future__ import annotations

from collections.abc import Callable

from fedchain_ledger.core import messages
from fedchain_ledger.core.votebook import COMMIT, PREPARE
from fedchain_proto import wire_pb2 as wire
from tests.sim.engine import Node, Policy, World

Drop = Callable[[int, int, wire.ConsensusMessage], bool]


class Directed(Policy):
    """A perfect network except for what ``drop(sender, receiver, message)`` takes away."""

    def __init__(self, drop: Drop = lambda sender, to, message: False) -> None:
        self.drop = drop

    def heal(self) -> None:
        """Drop nothing any more."""
        self.drop = lambda sender, to, message: False

    def deliveries(self, world: World, sender: Node, to: Node, message: bytes) -> tuple[int, ...]:
        return () if self.drop(sender.name, to.name, messages.parse(message)) else (10,)


def is_vote(message: wire.ConsensusMessage, type_: int) -> bool:
    """Whether this is a PREPARE, or a COMMIT."""
    return message.HasField("vote") and message.vote.type == type_


def cut(*groups: tuple[int, ...]) -> Drop:
    """A partition: nodes that share no group do not hear each other."""
    return lambda sender, to, _: not any({sender, to} <= set(group) for group in groups)


def one_history(world: World, *names: int) -> bool:
    """Whether no two of these nodes, or of all, decided two blocks at one height."""
    chains = [world.ids(name) for name in names or range(len(world.nodes))]
    longest = max(chains, key=len)
    return all(chain == longest[: len(chain)] for chain in chains)


def test_two_halves_of_six_decide_nothing_apart() -> None:
    """q = 4 of 6: 2f+1 = 3 would let each half decide its own block."""
    policy = Directed(cut((0, 1, 2), (3, 4, 5)))
    world = World(6, policy=policy)
    world.boot()
    for name in (0, 3):
        world.submit(name, b"from %d" % name)
    world.run(60_000)
    assert one_history(world)
    policy.heal()
    assert world.run(60_000, lambda: min(world.heights()) >= 1 and _recorded(world) == 2)
    assert one_history(world)


def _recorded(world: World) -> int:
    return min(len(world.transactions(node.name)) for node in world.nodes)


def test_a_twin_between_two_parts_of_five_forks_nothing() -> None:
    """f = 1 of n = 5: with 2f+1 = 3, a liar who talks to both parts completes both quorums."""
    policy = Directed(cut((0, 1, 2), (5, 3, 4)))  # node 5 has validator 0's key as well
    world = World(5, policy=policy, twins=[0])
    world.boot()
    world.submit(0, b"one")
    world.submit(5, b"two")
    world.run(60_000)
    assert one_history(world, 1, 2, 3, 4)
    world.crash(5)
    world.crash(0)
    policy.heal()
    world.submit(1, b"three")
    assert world.run(90_000, lambda: b"three" in world.transactions(4))
    assert one_history(world, 1, 2, 3, 4)


def decided_by_one(crashes: tuple[int, ...] = ()) -> None:
    """Round 0 decides at node 0 only, which is then alone; the others go on without it."""

    def to_node_0_only(sender: int, to: int, message: wire.ConsensusMessage) -> bool:
        return is_vote(message, COMMIT) and to != 0

    policy = Directed(to_node_0_only)
    world = World(4, policy=policy)
    world.boot()
    world.submit(0, b"decided by one")
    assert world.reach(1, 900, (0,))
    assert world.heights() == [1, 0, 0, 0]
    policy.drop = cut((1, 2, 3))
    for name in crashes:
        world.crash(name)
        world.boot(name)
    for name in (1, 2, 3):
        world.nodes[name].app.pool.clear()
    world.submit(2, b"something else")
    assert world.run(60_000, lambda: b"something else" in world.transactions(2))
    policy.heal()
    assert world.run(60_000, lambda: b"something else" in world.transactions(0))
    assert one_history(world)
    assert world.transactions(3) == [b"decided by one", b"something else"]


def test_what_one_validator_has_decided_the_others_decide() -> None:
    """The lock of the three carries the block into the next round, though they saw no quorum."""
    decided_by_one()


def test_restarts_do_not_undo_what_one_validator_has_decided() -> None:
    """All the others restart in between: their journals hold the lock."""
    decided_by_one(crashes=(1, 2, 3))


def test_a_block_that_is_proposed_again_keeps_its_bytes_and_its_id() -> None:
    """Long after its clock, by another leader: the same block, decided in a later round."""
    policy = Directed(lambda sender, to, message: is_vote(message, COMMIT))
    world = World(4, policy=policy)
    world.boot()
    world.submit(0, b"locked")
    world.run(900)
    locks = [node.core._replica.state.lock for node in world.nodes]
    blocks = {lock.block.SerializeToString() for lock in locks if lock is not None}
    assert len(blocks) == 1
    world.run(120_000)  # many rounds, far beyond the clock's 5 s
    policy.heal()
    assert world.reach(1, 60_000)
    stored = world.nodes[2].store.chain[0]
    assert stored.certificate.round > 0
    assert {stored.block.SerializeToString()} == blocks


def test_the_stall_that_the_gate_prevents() -> None:
    """One dead, one lonely validator of four: soon after the heal all three meet again.

    Without the gate the lonely one's time-outs carry it ahead, and with a capped time-out nobody
    ever makes up for that: the rounds stay apart for ever.
    """
    policy = Directed(cut((0, 1)))
    world = World(4, policy=policy)
    world.boot(0, 1, 2)
    world.submit(2, b"of the lonely one")
    world.run(600_000)
    policy.heal()
    healed = world.now_ms
    world.submit(0, b"after the heal")
    assert world.reach(1, 20_000_000, (0, 1, 2))
    assert world.now_ms - healed < 10_000


def test_rounds_that_failed_for_long_do_not_put_the_next_off_for_long() -> None:
    """The cap: after ten minutes without a PREPARE, the next round is at most 16 T0 away.

    Rounds 1, 5, 9... have a dead leader; without the cap, round 9 lasts from 511 to 1,023 s.
    """
    policy = Directed(lambda sender, to, message: is_vote(message, PREPARE))
    world = World(4, policy=policy)
    world.boot(0, 2, 3)
    world.submit(0, b"patience")
    world.run(600_000)
    assert max(world.heights()) == 0
    policy.heal()
    assert world.reach(1, 20_000, (0, 2, 3))


def test_a_leader_cannot_starve_one_owner() -> None:
    """Every other transaction is decided at once, his is dropped: the third block has it."""
    world = World(4)
    world.boot()
    world.nodes[0].app.hidden.add(b"starved")
    world.submit(2, b"starved")
    for number in range(10):
        world.submit(1, b"%d" % number)
        assert world.reach(number + 1, 500)
    blocks = [list(stored.block.envelopes) for stored in world.nodes[3].store.chain]
    assert [b"starved" in block for block in blocks[:4]] == [False, False, True, False]


def test_a_dead_leader_costs_one_timeout_and_not_one_a_height() -> None:
    """The leader after a round change stays."""
    world = World(4)
    world.boot(1, 2, 3)
    world.submit(1, b"0")
    assert world.reach(1, 5_000, (1, 2, 3))
    started = world.now_ms
    for number in range(1, 20):
        world.submit(1, b"%d" % number)
        assert world.reach(number + 1, 5_000, (1, 2, 3))
    assert world.now_ms - started < 1_000


def test_messages_that_come_in_reverse_order_are_enough() -> None:
    """Each message overtakes all earlier ones of its sender, within a round."""

    class Reversed(Policy):
        def __init__(self) -> None:
            self.count = 0

        def deliveries(self, *_: object) -> tuple[int, ...]:
            self.count += 1
            return (max(1, 400 - 3 * (self.count % 130)),)

    world = World(4, policy=Reversed())
    world.boot()
    for number in range(5):
        world.submit(number % 4, b"%d" % number)
        assert world.reach(number + 1, 30_000)
    assert one_history(world)


def test_two_of_four_cut_off_and_healed_many_times() -> None:
    """Partitions that come and go: after each heal the next block is there within 3 s."""
    policy = Directed()
    world = World(4, policy=policy)
    world.boot()
    for number in range(8):
        policy.drop = cut((number % 4, (number + 1) % 4), ((number + 2) % 4, (number + 3) % 4))
        world.submit(number % 4, b"%d" % number)
        world.run(7_000)
        policy.heal()
        healed = world.now_ms
        assert world.reach(number + 1, 30_000)
        assert world.now_ms - healed <= 3_000
    assert one_history(world)
