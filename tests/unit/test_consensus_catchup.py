"""R6: resending, tips, and blocks for those who lag; bounded per peer."""

import pytest

from fedchain_ledger.core import messages
from fedchain_ledger.core.effects import Send
from fedchain_ledger.core.peers import MAX_WINDOW
from fedchain_ledger.core.votebook import COMMIT, PREPARE, ROUND_CHANGE
from tests.sim.engine import Node, Policy, World
from tests.unit.consensuskit import Bench, decisions, sent, sent_messages, served


class Cut(Policy):
    """A network of which some nodes are cut off for a while."""

    def __init__(self, *names: int) -> None:
        self.names = set(names)

    def deliveries(self, world: World, sender: Node, to: Node, message: bytes) -> tuple[int, ...]:
        return () if (sender.name in self.names) != (to.name in self.names) else (10,)


def ahead(blocks: int = 3) -> Bench:
    """A validator that has decided a few blocks, a while ago."""
    bench = Bench()
    for number in range(blocks):
        bench.decide(b"%d" % number)
    bench.now += 60_000
    return bench


def test_all_own_messages_of_the_round_are_sent_again_every_two_seconds() -> None:
    """fabric #1917: without it, a partition at the wrong moment lasts for ever."""
    bench = Bench()
    block = bench.block()
    bench.propose(block)
    bench.say(PREPARE, (0, 2), 0, block)
    again = sent(bench.fire("resend", 2_000))
    assert [vote.type for vote in again] == [PREPARE, COMMIT]
    bench.fire("round", 1_000)
    again = sent(bench.fire("resend", 2_000))
    assert [(vote.type, vote.round) for vote in again] == [(ROUND_CHANGE, 1)]
    bench.decide()
    assert sent(bench.fire("resend", 2_000)) == []


def test_messages_lost_in_a_partition_come_through_after_it() -> None:
    """Two and two of four: nothing is decided apart, all is decided soon after the heal."""
    policy = Cut(2, 3)
    world = World(4, policy=policy)
    world.boot()
    world.submit(0, b"during the partition")
    assert not world.run(30_000, lambda: max(world.heights()) > 0)
    policy.names = set()
    healed = world.now_ms
    assert world.run(30_000, lambda: min(world.heights()) == 1)
    assert world.now_ms - healed <= 3_000


def test_an_idle_laggard_learns_from_a_tip() -> None:
    """Nobody has anything to resend: the tips, every 10 s, tell it."""
    policy = Cut(3)
    world = World(4, policy=policy)
    world.boot()
    for number in range(40):
        world.submit(0, b"%d" % number)
        assert world.reach(number + 1, 5_000, (0, 1, 2))
    assert world.heights()[3] == 0
    policy.names = set()
    assert world.run(12_000, lambda: min(world.heights()) == 40)


def test_a_tip_is_told_every_ten_seconds_and_at_the_start() -> None:
    """Nothing else would tell an idle laggard."""
    bench = Bench()
    assert [m.tip.height for m in sent_messages(bench.done, "tip")] == [0]
    bench.decide()
    assert [m.tip.height for m in sent_messages(bench.fire("tip", 10_000), "tip")] == [1]


def test_a_lower_tip_is_answered_with_the_next_block_once_a_second() -> None:
    """DECIDED to laggards, rate-limited per peer; a peer that is level gets nothing."""
    bench = ahead()
    assert served(bench.hear(2, messages.encode_tip(0))) == [(2, 1)]
    assert served(bench.hear(2, messages.encode_tip(0))) == []
    assert served(bench.hear(3, messages.encode_tip(0))) == [(3, 1)]
    assert served(bench.hear(0, messages.encode_tip(3))) == []
    bench.now += bench.timing.answer_ms
    assert served(bench.hear(2, messages.encode_tip(0))) == [(2, 1)]


def test_a_laggard_that_asks_for_what_comes_next_gets_more_and_more() -> None:
    """The window doubles up to its cap as long as all that was sent is consumed."""
    bench = ahead(60)
    has, windows = 0, []
    while has < 60:
        heights = [height for _, height in served(bench.hear(2, messages.encode_tip(has)))]
        assert heights == list(range(has + 1, has + 1 + len(heights)))
        windows.append(len(heights))
        has = heights[-1]
    assert windows[:5] == [1, 2, 4, 8, MAX_WINDOW]
    assert max(windows) == MAX_WINDOW


def test_a_higher_tip_is_answered_with_our_own() -> None:
    """The peer then serves us; asked once a second."""
    bench = Bench()
    effects = bench.hear(2, messages.encode_tip(9))
    assert [(e.to, messages.parse(e.message).tip.height) for e in effects if isinstance(e, Send)]
    assert sent_messages(bench.hear(2, messages.encode_tip(9)), "tip") == []
    assert sent_messages(bench.fire("resend", 2_000), "tip")  # and all are asked again


def test_an_applied_block_asks_its_sender_for_the_next() -> None:
    """Stop and wait with one peer, not with all of them."""
    bench = Bench()
    effects = bench.decided(bench.block(), (0, 2, 3), sender=3)
    tips = [e for e in effects if isinstance(e, Send) and e.to == 3]
    assert [messages.parse(e.message).tip.height for e in tips] == [1]


def test_a_vote_for_a_decided_height_shows_a_laggard_unless_it_was_under_way() -> None:
    """The last COMMIT of a block arrives after the decision; that is no cry for help."""
    bench = Bench()
    block = bench.block()
    vote = messages.encode_vote(bench.vote(COMMIT, 2, 0, block))
    bench.decided(block, (0, 2, 3))
    assert served(bench.hear(2, vote)) == []
    bench.now += bench.timing.laggard_ms
    assert served(bench.hear(2, vote)) == [(2, 1)]
    assert served(bench.hear(2, vote)) == []  # rate-limited


def test_a_peer_seen_at_our_height_does_not_lag() -> None:
    """An old message that arrives late asks for nothing."""
    bench = Bench()
    block = bench.block()
    old = messages.encode_vote(bench.vote(COMMIT, 2, 0, block))
    bench.decided(block, (0, 2, 3))
    bench.now += 60_000
    bench.say(PREPARE, (2,), 0, bench.block(transaction=b"next"))
    assert served(bench.hear(2, old)) == []


def test_an_old_or_early_decided_changes_nothing() -> None:
    """Only the height that we are at; the rest comes in order."""
    bench, other = Bench(), Bench(me=2)
    first = other.block()
    other.decided(first, (0, 1, 3))
    second = other.block(transaction=b"second")
    early = messages.encode_decided(second, other.certificate(second, (0, 1, 3)).encode())
    old = messages.encode_decided(first, bench.certificate(first, (0, 2, 3)).encode())
    assert decisions(bench.hear(0, early)) == []
    assert decisions(bench.hear(0, old))
    assert decisions(bench.hear(0, old)) == []
    assert decisions(bench.hear(0, early))


@pytest.mark.parametrize("blocks", [1, 100])
def test_a_node_that_was_away_catches_up_within_seconds(blocks: int) -> None:
    """Verifying every block; the last ones through the votes that it now hears."""
    world = World(4)
    world.boot(0, 1, 2)
    for number in range(blocks):
        world.submit(0, b"%d" % number)
        assert world.reach(number + 1, 5_000, (0, 1, 2))
    world.boot(3)
    assert world.run(12_000, lambda: world.heights()[3] == blocks)
    assert world.ids(3) == world.ids(0)
